//! What is split off a pass sees what it saw in it.

use super::*;

const PAGE_TOKENS: usize = 4;

fn head(row: usize) -> HeadRow {
    HeadRow::new(row, HeadKind::Full)
}

/// Groups of (rows, keys of the prefix, own keys before the pass, tree mask), each with pages of
/// its own.
fn batch(groups: &[(usize, usize, usize, Option<Vec<u64>>)], heads: &[usize]) -> RaggedBatch {
    let mut batch = RaggedBatch::default();
    for (rows, prefix_len, own_len, tree) in groups {
        let mut span = |filled: usize, new: usize| {
            let begin = batch.pages.len();
            let pages = (filled + new).div_ceil(PAGE_TOKENS);
            batch.pages.extend((begin..begin + pages).map(|page| PageId(page as u32)));
            Span { pages: begin..begin + pages, len: filled }
        };
        let (prefix, own) = (span(*prefix_len, 0), span(*own_len, *rows));
        let first = batch.rows();
        batch.tokens.extend((first..first + rows).map(|row| TokenId(100 + row as u32)));
        batch.positions.extend((0..*rows).map(|i| (prefix_len + own_len + i) as u32));
        let mask = tree.clone().map_or(Mask::Causal, Mask::Tree);
        batch.groups.push(RowGroup { rows: first..first + rows, prefix, own, mask });
    }
    batch.heads = heads.iter().map(|row| head(*row)).collect();
    batch
}

fn keys(batch: &RaggedBatch, row: usize) -> Vec<(PageId, usize)> {
    let group = batch.groups.iter().find(|group| group.rows.contains(&row)).unwrap();
    let i = row - group.rows.start;
    (0..group.visible(i)).map(|j| batch.key(group, i, j, PAGE_TOKENS)).collect()
}

#[test]
fn rows_that_are_split_off_see_the_keys_they_saw() {
    let tree = Some(vec![0b1, 0b11, 0b101, 0b1011]);
    let groups = [(9, 0, 3, None), (6, 5, 0, None), (4, 6, 0, tree), (7, 2, 2, None)];
    for heads in [&[25][..], &[8, 14], &[0, 4, 5, 8], &[16, 3, 3], &[20, 19, 22, 0]] {
        let whole = batch(&groups, heads);
        let mut body = whole.clone();
        let wanted = body.split_off_wanted().expect("few rows of 26");
        for batch in [&body, &wanted] {
            batch.validate(1000, PAGE_TOKENS, 100).unwrap();
        }
        assert_eq!((body.rows(), body.heads.len()), (26, 0));
        assert_eq!(wanted.heads.len(), heads.len());
        for (head, row) in wanted.heads.iter().zip(heads) {
            assert_eq!(wanted.kept[head.row], *row);
        }
        assert_eq!(wanted.kept.len(), wanted.rows());
        assert!(wanted.kept.is_sorted_by(|a, b| a < b));
        for (i, row) in wanted.kept.iter().enumerate() {
            assert_eq!(keys(&wanted, i), keys(&whole, *row), "row {row} of {heads:?}");
            assert_eq!(wanted.tokens[i], whole.tokens[*row]);
            assert_eq!(wanted.positions[i], whole.positions[*row]);
        }
        // One row of the tree is wanted with all of it, and no other row that is not asked for.
        let tree = if heads.iter().any(|row| (15..19).contains(row)) { 15..19 } else { 0..0 };
        let mut expected: Vec<usize> = heads.iter().copied().chain(tree).collect();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(wanted.kept, expected);
    }
}

#[test]
fn a_pass_of_few_rows_or_with_many_wanted_stays_whole() {
    for (rows, heads, whole) in [
        (8, vec![7], true),
        (9, vec![8], false),
        (9, vec![0, 1, 2, 3], false),
        (9, vec![0, 1, 2, 3, 4], true),
        (300, vec![], false),
    ] {
        let mut batch = batch(&[(rows, 0, 0, None)], &heads);
        let before = batch.heads.clone();
        let split = batch.split_off_wanted();
        assert_eq!(split.is_none(), whole, "{rows} rows");
        assert_eq!(if whole { batch.heads } else { split.unwrap().heads }.len(), before.len());
    }
}

#[test]
fn only_what_looks_for_one_of_many_ids_may_look_at_the_first_of_them() {
    let check = |kind: HeadKind, ids: usize| {
        let mut batch = batch(&[(1, 0, 0, None)], &[]);
        batch.heads.push(HeadRow { row: 0, kind, first_ids: Some(ids) });
        batch.validate(1000, PAGE_TOKENS, 100).is_ok()
    };
    assert!(check(HeadKind::Argmax, 256) && check(HeadKind::Full, 768));
    assert!([0, 100, 1000, 1024].into_iter().all(|ids| !check(HeadKind::Argmax, ids)));
    assert!(!check(HeadKind::LogProb(TokenId(3)), 256));
    assert!(!check(HeadKind::Labels(vec![TokenId(3)]), 256));
}

#[test]
fn kept_rows_move_to_the_front_in_order() {
    let mut batch = batch(&[(12, 0, 0, None)], &[11, 2, 3]);
    let wanted = batch.split_off_wanted().unwrap();
    let mut values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    wanted.keep_rows(&mut values, 2);
    assert_eq!(values[..6], [4.0, 5.0, 6.0, 7.0, 22.0, 23.0]);
}

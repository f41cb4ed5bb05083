//! Cutting attention into work items: which rows of which group against which keys.
//!
//! A pure function of the batch. The keys of a row are cut into splits of [`SPLIT_KEYS`]. A *tile*
//! is a few rows of one group. It becomes either one *whole* item, whose CTA folds all splits in
//! registers, or one item a split, whose states the last of them folds from memory. Whole items
//! cost no memory and suit passes with many tiles; cut items keep a GPU busy when there are few.
//!
//! Invariant: every (row, key) is covered exactly once, and the choice changes no bit of a result:
//! both ways fold the same states in the same order (`kernels/common/attention.cuh`).

use super::layout::AttentionWork;
use crate::device::{Mask, RaggedBatch, RowGroup};
use std::ops::Range;

/// Keys of one split; `kSplitKeys` of `attention.cuh`. Part of the numerics.
pub(crate) const SPLIT_KEYS: usize = 128;
/// Queries (rows times query heads of a KV head) one item may hold; the kernel has four warps of
/// 16.
pub(crate) const ITEM_QUERIES: usize = 64;

/// What a plan may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanLimits {
    /// Partial states (one row, one split, all heads) there is memory for.
    pub(crate) partials: usize,
    /// CTAs that run at the same time on the whole device; fewer items than this leave it idle.
    pub(crate) concurrent_ctas: usize,
}

/// The work of one pass; the same for every layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AttentionPlan {
    /// Items, those with the most keys first.
    pub(crate) work: Vec<AttentionWork>,
    /// `[T]`: the row's first partial state, one a split after it; -1: the row is finished by the
    /// item that holds it.
    pub(crate) row_partials: Vec<i32>,
    /// Partial states in use.
    pub(crate) partials: usize,
}

/// Cuts the attention of `batch` for a model with `heads` query heads and `kv_heads` KV heads.
///
/// # Panics
/// If one row has more than [`ITEM_QUERIES`] query heads a KV head: no model is loaded that does
/// ([`super::ops::attention::AttentionOp::new`]).
pub(crate) fn plan_attention(
    batch: &RaggedBatch,
    heads: usize,
    kv_heads: usize,
    limits: &PlanLimits,
) -> AttentionPlan {
    let rows_max = ITEM_QUERIES / (heads / kv_heads);
    assert!(rows_max > 0, "{heads} query heads share {kv_heads} KV heads");
    let tiles: Vec<Tile> = batch
        .groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| tiles(index, group, rows_max))
        .collect();
    let splits: usize = tiles.iter().map(|t| t.splits(batch)).sum();
    // A whole item may take as long as a fair share of all splits; more only to save memory.
    let mut share = (splits * kv_heads).div_ceil(limits.concurrent_ctas.max(1)).max(1);
    let partials = |share: usize| -> usize {
        tiles.iter().filter(|t| t.splits(batch) > share).map(|t| t.partials(batch)).sum()
    };
    while partials(share) > limits.partials {
        share *= 2;
    }
    let mut plan = AttentionPlan { row_partials: vec![-1; batch.rows()], ..Default::default() };
    for tile in &tiles {
        if tile.splits(batch) > share {
            tile.cut(batch, &mut plan);
        } else {
            tile.keep_whole(batch, &mut plan);
        }
    }
    plan.work.sort_by_key(|item| std::cmp::Reverse(item.keys));
    plan
}

/// Rows that are planned together.
struct Tile {
    group: usize,
    /// Rows of the group.
    rows: Range<usize>,
    /// Rows one item may hold.
    rows_max: usize,
}

/// A causal group falls into tiles of `rows_max` rows. The rows of a tree share their prefix only,
/// so the whole group is one tile, which is cut into rows where it must be.
fn tiles(index: usize, group: &RowGroup, rows_max: usize) -> impl Iterator<Item = Tile> {
    let rows = group.rows.len();
    let step = match group.mask {
        Mask::Causal => rows_max,
        Mask::Tree(_) => rows,
    };
    (0..rows).step_by(step).map(move |start| Tile {
        group: index,
        rows: start..rows.min(start + step),
        rows_max,
    })
}

fn splits_of(keys: usize) -> usize {
    keys.div_ceil(SPLIT_KEYS)
}

impl Tile {
    fn group<'a>(&self, batch: &'a RaggedBatch) -> &'a RowGroup {
        &batch.groups[self.group]
    }

    /// Splits of the row that sees most keys.
    fn splits(&self, batch: &RaggedBatch) -> usize {
        let group = self.group(batch);
        self.rows.clone().map(|i| splits_of(group.visible(i))).max().unwrap_or(0)
    }

    /// Partial states if the tile is cut.
    fn partials(&self, batch: &RaggedBatch) -> usize {
        let group = self.group(batch);
        self.rows.clone().map(|i| splits_of(group.visible(i))).filter(|splits| *splits > 1).sum()
    }

    /// One item for all keys, or one a row in a tree.
    fn keep_whole(&self, batch: &RaggedBatch, plan: &mut AttentionPlan) {
        let group = self.group(batch);
        let step = if group.mask == Mask::Causal { self.rows.len() } else { 1 };
        for start in self.rows.clone().step_by(step) {
            let rows = start..start + step;
            let keys = group.visible(rows.end - 1);
            plan.work.push(item(self.group, rows, 0, keys));
        }
    }

    /// One item a split; rows that see nothing of a split are not in its item.
    fn cut(&self, batch: &RaggedBatch, plan: &mut AttentionPlan) {
        let group = self.group(batch);
        for i in self.rows.clone() {
            let splits = splits_of(group.visible(i));
            if splits > 1 {
                plan.row_partials[group.rows.start + i] = plan.partials as i32;
                plan.partials += splits;
            }
        }
        for split in 0..self.splits(batch) {
            let first_key = split * SPLIT_KEYS;
            let shared = group.mask == Mask::Causal || first_key + SPLIT_KEYS <= group.prefix.len;
            let step = if shared { self.rows_max } else { 1 };
            for start in self.rows.clone().step_by(step) {
                let mut rows = start..self.rows.end.min(start + step);
                // Later rows of a causal group see more: only the first may see nothing here.
                rows.start =
                    rows.clone().find(|i| group.visible(*i) > first_key).unwrap_or(rows.end);
                if !rows.is_empty() {
                    let keys = group.visible(rows.end - 1) - first_key;
                    plan.work.push(item(self.group, rows, split, keys.min(SPLIT_KEYS)));
                }
            }
        }
    }
}

fn item(group: usize, rows: Range<usize>, split: usize, keys: usize) -> AttentionWork {
    AttentionWork {
        group: group as i32,
        first_row: rows.start as i32,
        rows: rows.len() as i32,
        first_key: (split * SPLIT_KEYS) as i32,
        keys: keys as i32,
        split: split as i32,
        reserved: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Span;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A batch with nothing but groups: `(prefix, own, rows, tree bits)`.
    fn batch(groups: &[(usize, usize, usize, Option<Vec<u64>>)]) -> RaggedBatch {
        let mut start = 0;
        let groups: Vec<RowGroup> = groups
            .iter()
            .map(|(prefix, own, rows, bits)| {
                let rows = start..start + rows;
                start = rows.end;
                RowGroup {
                    rows,
                    prefix: Span { pages: 0..0, len: *prefix },
                    own: Span { pages: 0..0, len: *own },
                    mask: bits.clone().map_or(Mask::Causal, Mask::Tree),
                }
            })
            .collect();
        RaggedBatch { tokens: vec![Default::default(); start], groups, ..Default::default() }
    }

    /// The kernel's reading of a plan: which keys of which row each item adds, and where to.
    fn check(batch: &RaggedBatch, heads: usize, kv_heads: usize, limits: &PlanLimits) {
        let plan = plan_attention(batch, heads, kv_heads, limits);
        assert!(plan.partials <= limits.partials, "{} partial states", plan.partials);
        let work_max = batch.rows() + limits.partials;
        assert!(plan.work.len() <= work_max, "{} items", plan.work.len());
        let mut seen: Vec<Vec<Range<usize>>> = vec![vec![]; batch.rows()];
        let mut states: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let mut finished = vec![0; batch.rows()];
        for work in &plan.work {
            let group = &batch.groups[work.group as usize];
            let (rows, first, keys) =
                (work.rows as usize, work.first_key as usize, work.keys as usize);
            let rows = work.first_row as usize..work.first_row as usize + rows;
            assert!(!rows.is_empty() && rows.end <= group.rows.len() && keys > 0);
            assert!(rows.len() * (heads / kv_heads) <= ITEM_QUERIES);
            assert_eq!((first, work.reserved), (work.split as usize * SPLIT_KEYS, [0; 2]));
            let left = group.visible(rows.end - 1) - first;
            assert!(keys == left || keys == SPLIT_KEYS && left > keys, "{keys} of {left} keys");
            let own_keys = first + keys > group.prefix.len;
            assert!(group.mask == Mask::Causal || rows.len() == 1 || !own_keys);
            for i in rows {
                let visible = group.visible(i);
                assert!(visible > first, "row {i} sees nothing of an item that holds it");
                let row = group.rows.start + i;
                seen[row].push(first..visible.min(first + keys));
                match plan.row_partials[row] {
                    -1 => {
                        assert_eq!((first, keys.min(visible)), (0, visible), "not the whole row");
                        finished[row] += 1;
                    }
                    base => {
                        assert!(keys <= SPLIT_KEYS, "a state of several splits");
                        let state = base as usize + work.split as usize;
                        assert!(state < plan.partials);
                        assert_eq!(states.insert(state, (row, work.split as usize)), None);
                    }
                }
            }
        }
        for group in &batch.groups {
            for (i, row) in group.rows.clone().enumerate() {
                seen[row].sort_by_key(|keys| keys.start);
                let next = |next, keys: &Range<usize>| (keys.start == next).then_some(keys.end);
                let covered = seen[row].iter().try_fold(0, next);
                assert_eq!(covered, Some(group.visible(i)), "row {row}: {:?}", seen[row]);
                assert_eq!(finished[row], usize::from(plan.row_partials[row] < 0));
            }
        }
        assert_eq!(states.len(), plan.partials, "a state nobody writes");
    }

    const WIDE: PlanLimits = PlanLimits { partials: 4096, concurrent_ctas: 512 };

    #[test]
    fn one_long_row_is_cut_into_its_splits() {
        let batch = batch(&[(0, 999, 1, None)]);
        let plan = plan_attention(&batch, 8, 2, &WIDE);
        let keys: Vec<_> = plan.work.iter().map(|w| (w.split, w.first_key, w.keys)).collect();
        let whole = (0..7).map(|split| (split, split * 128, 128));
        assert_eq!(keys, whole.chain([(7, 896, 104)]).collect::<Vec<_>>());
        assert_eq!((plan.row_partials, plan.partials), (vec![0], 8));
    }

    #[test]
    fn a_row_of_one_split_has_no_partial_state() {
        for own in [0, 1, 126, 127] {
            let plan = plan_attention(&batch(&[(0, own, 1, None)]), 8, 2, &WIDE);
            assert_eq!((plan.work.len(), plan.partials), (1, 0));
            assert_eq!(plan.row_partials, [-1]);
        }
    }

    #[test]
    fn many_rows_are_folded_where_they_are_computed() {
        let batch = batch(&[(0, 1536, 512, None)]);
        let plan = plan_attention(&batch, 32, 8, &PlanLimits { partials: 0, ..WIDE });
        assert_eq!((plan.work.len(), plan.partials), (32, 0));
        assert_eq!(plan.work[0].keys, 2048, "the longest item comes first");
    }

    #[test]
    fn memory_for_partial_states_is_never_exceeded() {
        let batch = batch(&[(0, 5000, 40, None), (0, 300, 1, None), (700, 0, 3, None)]);
        for partials in [0, 1, 2, 6, 100, 800, 4096] {
            check(&batch, 8, 2, &PlanLimits { partials, ..WIDE });
        }
    }

    #[test]
    fn tree_rows_share_items_in_the_prefix_only() {
        let bits = vec![0b1, 0b11, 0b101, 0b1011];
        let batch = batch(&[(600, 0, 4, Some(bits))]);
        let plan = plan_attention(&batch, 4, 2, &WIDE);
        let items: Vec<_> = plan.work.iter().map(|w| (w.split, w.rows)).collect();
        let shared = (0..4).map(|split| (split, 4));
        assert_eq!(items, shared.chain([(4, 1); 4]).collect::<Vec<_>>());
        check(&batch, 4, 2, &WIDE);
    }

    #[test]
    fn every_boundary_of_a_split_is_covered_exactly_once() {
        for first in [0, 1, 15, 16, 17, 63, 64, 65, 120, 127, 128, 129, 255, 256, 257] {
            for rows in [1, 2, 3, 9, 17, 64, 65, 300] {
                for (heads, kv_heads) in [(2, 2), (4, 2), (14, 2), (64, 1)] {
                    let both = [(first, 0, rows, None), (0, first, rows, None)];
                    check(&batch(&both), heads, kv_heads, &WIDE);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_row_and_key_is_covered_exactly_once(
            groups in prop::collection::vec(
                (0..900_usize, 0..900_usize, 1..70_usize, any::<bool>(), any::<u64>()), 1..6),
            ratio in 1..17_usize,
            kv_heads in 1..5_usize,
            partials in 0..4000_usize,
            concurrent_ctas in 1..600_usize,
        ) {
            let groups: Vec<_> = groups
                .into_iter()
                .map(|(prefix, own, rows, tree, noise)| {
                    if !tree {
                        return (prefix, own, rows, None);
                    }
                    let rows = rows.min(64);
                    let bits = (0..rows)
                        .map(|i| noise.rotate_left(i as u32 * 7) & ((1 << i) - 1) | 1 << i)
                        .collect();
                    (prefix, 0, rows, Some(bits))
                })
                .collect();
            let limits = PlanLimits { partials, concurrent_ctas };
            check(&batch(&groups), ratio * kv_heads, kv_heads, &limits);
        }
    }
}

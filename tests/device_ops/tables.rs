//! Two-table groups, tree masks, scratch suffixes and what recycled pages may hold.

use crate::harness::{BatchBuilder, Buffers, Model, POISON, Spec, Table, tokens};
use crate::{cpu, levels};
use forerun::device::cpu::CpuDevice;
use forerun::device::{BlockType, Device, HeadKind, KvType, Mask, PageCopy};
use forerun::ids::{PageId, TokenId};

const ROWS: usize = 400;
const PAGES: usize = 200;

/// Appends `tokens` to `table` in passes of at most [`ROWS`] rows; hidden bits of the last pass.
fn append(
    device: &CpuDevice,
    model: &Model<CpuDevice>,
    buffers: &mut Buffers<CpuDevice>,
    tokens: &[u32],
    table: &mut Table,
) -> Vec<Vec<u32>> {
    let mut last = Vec::new();
    for chunk in tokens.chunks(ROWS) {
        buffers.forward(device, model, BatchBuilder::default().causal(chunk, table).build());
        table.len += chunk.len();
        last = buffers.hidden_bits(device, &model.spec, chunk.len());
    }
    last
}

/// Leaves NaN in every slot of the pool.
fn poison(device: &CpuDevice, model: &Model<CpuDevice>, buffers: &mut Buffers<CpuDevice>) {
    let p = model.spec.shape.page_tokens;
    for page in 0..PAGES as u32 {
        let table = Table { pages: vec![page], len: 0 };
        buffers.forward(
            device,
            model,
            BatchBuilder::default().causal(&vec![POISON; p], &table).build(),
        );
    }
    let bits = buffers.page_bits(device, &model.spec, &[PAGES as u32 - 1]);
    assert!(bits[0].iter().all(|b| f32::from_bits(*b).is_nan()), "the poison does not take");
}

fn setups(heads: [usize; 4]) -> impl Iterator<Item = (CpuDevice, Model<CpuDevice>, String)> {
    levels().into_iter().map(move |simd| {
        let device = cpu(simd, 2, KvType::Bf16);
        let model = Model::new(&device, Spec::new(1, heads, BlockType::Q8_0, 2));
        (device, model, simd.name().to_owned())
    })
}

#[test]
fn keys_in_two_tables_count_like_the_same_keys_in_one() {
    for page_tokens in [16, 64] {
        for (device, model, simd) in setups([6, 2, 64, page_tokens]) {
            for prefix_len in [0, 1, 15, 16, 17, 500, 1100] {
                for suffix_len in [1, 2, 7, 100] {
                    let mut buffers = Buffers::new(&device, &model.spec, ROWS, PAGES);
                    let (before, suffix) = (tokens(prefix_len, 1), tokens(suffix_len, 2));
                    let pages = (prefix_len + suffix_len).div_ceil(page_tokens) as u32;
                    let mut table = Table::new(0, pages);
                    append(&device, &model, &mut buffers, &before, &mut table);
                    let scratch = Table::new(1, suffix_len.div_ceil(page_tokens) as u32);
                    let batch =
                        BatchBuilder::default().group(&suffix, &table, &scratch, Mask::Causal);
                    let pages_before = buffers.page_bits(&device, &model.spec, &table.pages);
                    buffers.forward(&device, &model, batch.build());
                    let apart = buffers.hidden_bits(&device, &model.spec, suffix_len);
                    let pages_after = buffers.page_bits(&device, &model.spec, &table.pages);
                    assert!(pages_before == pages_after, "a suffix left a trace in the branch");
                    let together = append(&device, &model, &mut buffers, &suffix, &mut table);
                    let what = format!("P {page_tokens}, {prefix_len} + {suffix_len}, {simd}");
                    assert!(apart == together, "{what}");
                }
            }
        }
    }
}

#[test]
fn what_unused_slots_hold_never_reaches_a_result() {
    for (device, model, simd) in setups([7, 1, 80, 16]) {
        for len in [1, 15, 17, 40, 530] {
            let mut clean = Buffers::new(&device, &model.spec, ROWS, PAGES);
            let mut dirty = Buffers::new(&device, &model.spec, ROWS, PAGES);
            poison(&device, &model, &mut dirty);
            let ids = tokens(len, 3);
            let run = |buffers: &mut Buffers<CpuDevice>| {
                // One page more than needed, and a scratch table.
                let mut table = Table::new(0, len.div_ceil(16) as u32 + 1);
                let rows = append(&device, &model, buffers, &ids, &mut table);
                let suffix = BatchBuilder::default()
                    .group(&tokens(3, 4), &table, &Table::new(1, 2), Mask::Causal)
                    .head(2, HeadKind::LogProb(TokenId(1)));
                let results = buffers.forward(&device, &model, suffix.build());
                assert_eq!(results.non_finite_row, None);
                (rows, buffers.hidden_bits(&device, &model.spec, 3))
            };
            assert!(run(&mut clean) == run(&mut dirty), "{len} tokens, {simd}");
        }
    }
}

#[test]
fn a_row_of_nan_spoils_no_row_before_it_and_no_other_group() {
    for (device, model, simd) in setups([3, 1, 64, 16]) {
        let mut buffers = Buffers::new(&device, &model.spec, ROWS, PAGES);
        let (a, b) = (tokens(9, 5), tokens(6, 6));
        let (table_a, table_b) = (Table::new(0, 1), Table::new(1, 1));
        let batch = |a: &[u32]| {
            let batch = BatchBuilder::default().causal(a, &table_a).causal(&b, &table_b);
            (0..15).fold(batch, |batch, row| batch.head(row, HeadKind::Argmax)).build()
        };
        assert_eq!(buffers.forward(&device, &model, batch(&a)).non_finite_row, None);
        let good = buffers.hidden_bits(&device, &model.spec, 15);
        let mut bad = a.clone();
        bad[4] = POISON;
        let results = buffers.forward(&device, &model, batch(&bad));
        assert_eq!(results.non_finite_row, Some(4), "{simd}");
        let spoiled = buffers.hidden_bits(&device, &model.spec, 15);
        assert!(good[..4] == spoiled[..4] && good[9..] == spoiled[9..], "{simd}");
        for row in &spoiled[4..9] {
            assert!(row.iter().any(|v| f32::from_bits(*v).is_nan()), "a NaN was lost, {simd}");
        }
    }
}

#[test]
fn a_chain_shaped_mask_equals_the_causal_one() {
    for (device, model, simd) in setups([6, 1, 64, 16]) {
        for prefix_len in [0, 17, 480, 530] {
            let mut buffers = Buffers::new(&device, &model.spec, ROWS, PAGES);
            let mut prefix = Table::new(0, 40);
            append(&device, &model, &mut buffers, &tokens(prefix_len, 7), &mut prefix);
            let ids = tokens(64, 8);
            let chain = (0..64).map(|i| u64::MAX >> (63 - i)).collect();
            let mut run = |mask| {
                let own = Table::new(1, 4);
                let batch = BatchBuilder::default().group(&ids, &prefix, &own, mask);
                buffers.forward(&device, &model, batch.build());
                buffers.hidden_bits(&device, &model.spec, 64)
            };
            assert!(run(Mask::Tree(chain)) == run(Mask::Causal), "{prefix_len} keys, {simd}");
        }
    }
}

#[test]
fn a_branch_of_a_tree_has_the_bits_of_the_same_tokens_in_sequence() {
    // Parents of the nodes; depth is the distance to the root.
    let parents = [None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(5), Some(4)];
    let ids = tokens(parents.len(), 9);
    let path = |node: usize| {
        let mut path: Vec<usize> = std::iter::successors(Some(node), |n| parents[*n]).collect();
        path.reverse();
        path
    };
    let nodes = 0..parents.len();
    let bits = nodes.clone().map(|n| path(n).iter().fold(0_u64, |b, a| b | 1 << a)).collect();
    for (device, model, simd) in setups([6, 2, 64, 16]) {
        for prefix_len in [0, 16, 509, 512, 700] {
            let mut buffers = Buffers::new(&device, &model.spec, ROWS, PAGES);
            let mut prefix = Table::new(0, 50);
            append(&device, &model, &mut buffers, &tokens(prefix_len, 7), &mut prefix);
            let positions: Vec<u32> =
                nodes.clone().map(|n| (prefix_len + path(n).len() - 1) as u32).collect();
            let own = Table::new(1, 1);
            let mask = Mask::Tree(Vec::clone(&bits));
            let batch = BatchBuilder::default().group_at(&ids, &positions, &prefix, &own, mask);
            buffers.forward(&device, &model, batch.build());
            let tree = buffers.hidden_bits(&device, &model.spec, ids.len());
            for node in nodes.clone() {
                let line: Vec<u32> = path(node).iter().map(|n| ids[*n]).collect();
                let own = Table::new(3, 1);
                let batch = BatchBuilder::default().group(&line, &prefix, &own, Mask::Causal);
                buffers.forward(&device, &model, batch.build());
                let sequence = buffers.hidden_bits(&device, &model.spec, line.len());
                let last = &sequence[line.len() - 1];
                assert!(&tree[node] == last, "node {node} after {prefix_len} keys, {simd}");
            }
        }
    }
}

#[test]
fn a_copied_page_serves_like_its_original_and_leaves_it_alone() {
    for (device, model, simd) in setups([6, 2, 64, 16]) {
        let mut buffers = Buffers::new(&device, &model.spec, ROWS, PAGES);
        let mut table = Table::new(0, 3);
        append(&device, &model, &mut buffers, &tokens(20, 12), &mut table);
        // The fork shares the full page and copies the four rows of the second.
        let mut fork = table.clone();
        fork.pages[1] = 101;
        fork.pages[2] = 103;
        let copy = PageCopy { from: PageId(table.pages[1]), to: PageId(101), tokens: 4 };
        let Buffers { stream, pool, .. } = &mut buffers;
        device.copy_pages(stream, &model.spec.shape, &[copy], pool).unwrap();
        let before = buffers.page_bits(&device, &model.spec, &table.pages);
        let ours = append(&device, &model, &mut buffers, &tokens(15, 13), &mut fork);
        assert!(before == buffers.page_bits(&device, &model.spec, &table.pages), "{simd}");
        let theirs = append(&device, &model, &mut buffers, &tokens(15, 13), &mut table);
        assert!(ours == theirs, "{simd}");
    }
}

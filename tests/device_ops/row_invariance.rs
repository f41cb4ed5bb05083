//! A row has the same bits whatever shares its pass, however its prompt was cut, and whoever
//! computes it.

use crate::harness::{BatchBuilder, Buffers, Model, Spec, Table, tokens};
use crate::{cpu, levels};
use forerun::device::cpu::CpuDevice;
use forerun::device::{BlockType, HeadKind, HeadResult, KvType, RaggedBatch};
use forerun::ids::TokenId;

/// Everything one row leaves: hidden state, and what its heads found.
#[derive(Debug, Clone, PartialEq)]
struct RowBits {
    hidden: Vec<u32>,
    heads: Vec<u32>,
}

struct Sequence {
    tokens: Vec<u32>,
    table: Table,
}

/// A wanted result of every kind that fits into the logits buffer.
fn with_heads(mut batch: BatchBuilder, rows: std::ops::Range<usize>) -> RaggedBatch {
    for row in rows.clone() {
        batch = batch
            .head(row, HeadKind::Argmax)
            .head(row, HeadKind::LogProb(TokenId(17)))
            .head(row, HeadKind::Labels(vec![TokenId(3), TokenId(250), TokenId(9)]));
    }
    batch.build()
}

/// Runs the next `count` tokens of `sequence` after `company` other sequences.
fn step(
    device: &CpuDevice,
    model: &Model<CpuDevice>,
    buffers: &mut Buffers<CpuDevice>,
    sequence: &mut Sequence,
    count: usize,
    company: &[Sequence],
) -> Vec<RowBits> {
    let mut batch = BatchBuilder::default();
    let mut before = 0;
    for other in company {
        batch = batch.causal(&other.tokens, &other.table);
        before += other.tokens.len();
    }
    let start = sequence.table.len;
    batch = batch.causal(&sequence.tokens[start..start + count], &sequence.table);
    let results = buffers.forward(device, model, with_heads(batch, before..before + count));
    assert_eq!(results.non_finite_row, None);
    sequence.table.len += count;
    let hidden = buffers.hidden_bits(device, &model.spec, before + count);
    let heads: Vec<Vec<u32>> = results
        .heads
        .chunks(3)
        .map(|three| {
            three
                .iter()
                .flat_map(|head| match head {
                    HeadResult::Argmax { id, logit } => vec![id.0, logit.to_bits()],
                    HeadResult::LogProb(p) => vec![p.to_bits()],
                    HeadResult::Labels(p) => p.iter().map(|p| p.to_bits()).collect(),
                    HeadResult::Full(_) => panic!("no full head was asked for"),
                })
                .collect()
        })
        .collect();
    hidden[before..]
        .iter()
        .cloned()
        .zip(heads)
        .map(|(hidden, heads)| RowBits { hidden, heads })
        .collect()
}

/// All rows of one sequence, cut into the given chunks, the last of which repeats.
fn in_chunks(
    device: &CpuDevice,
    model: &Model<CpuDevice>,
    total: usize,
    chunks: &[usize],
    company: &[Sequence],
) -> (Vec<RowBits>, Vec<Vec<u32>>) {
    let p = model.spec.shape.page_tokens;
    let mut buffers = Buffers::new(device, &model.spec, 400, 160);
    let table = Table::new(0, total.div_ceil(p) as u32);
    let mut sequence = Sequence { tokens: tokens(total, 11), table };
    let mut rows = Vec::new();
    let mut sizes = chunks.iter().chain(std::iter::repeat(chunks.last().unwrap()));
    while rows.len() < total {
        let count = (*sizes.next().unwrap()).min(total - rows.len());
        rows.extend(step(device, model, &mut buffers, &mut sequence, count, company));
    }
    let pages = buffers.page_bits(device, &model.spec, &sequence.table.pages);
    (rows, pages)
}

/// Six other sequences of one row each, in pages of their own.
fn company() -> Vec<Sequence> {
    let other = |i: u32| Sequence {
        tokens: tokens(1, 100 + u64::from(i)),
        table: Table { pages: vec![100 + i], len: 0 },
    };
    (0..6).map(other).collect()
}

fn assert_same_rows(
    a: &(Vec<RowBits>, Vec<Vec<u32>>),
    b: &(Vec<RowBits>, Vec<Vec<u32>>),
    what: &str,
) {
    for (t, (a, b)) in a.0.iter().zip(&b.0).enumerate() {
        assert_eq!(a, b, "row {t} differs: {what}");
    }
    assert_eq!(a.0.len(), b.0.len());
    assert!(a.1 == b.1, "keys or values differ: {what}");
}

#[test]
fn a_row_alone_in_company_and_in_any_chunks_has_the_same_bits() {
    for kind in [BlockType::Q4_K, BlockType::F32] {
        let spec = Spec::new(2, [6, 2, 64, 16], kind, 2);
        for simd in levels() {
            for threads in [1, 2] {
                let device = cpu(simd, threads, KvType::Bf16);
                let model = Model::new(&device, spec);
                let what = |how: &str| format!("{how}, {kind}, {}, {threads} threads", simd.name());
                let whole = in_chunks(&device, &model, 300, &[300], &[]);
                for (how, chunks) in
                    [("100 at a time", &[100][..]), ("uneven chunks", &[7, 1, 64, 33])]
                {
                    let cut = in_chunks(&device, &model, 300, chunks, &[]);
                    assert_same_rows(&whole, &cut, &what(how));
                }
                let alone = in_chunks(&device, &model, 300, &[200, 1], &[]);
                assert_same_rows(&whole, &alone, &what("one by one"));
                let seven = in_chunks(&device, &model, 300, &[290, 1], &company());
                assert_same_rows(&whole, &seven, &what("in a batch of 7"));
            }
        }
    }
}

#[test]
fn every_block_type_is_row_invariant_through_the_whole_chain() {
    for kind in BlockType::ALL {
        let mut spec = Spec::new(1, [4, 4, 32, 16], kind, 2);
        spec.head_norm = true;
        for simd in levels() {
            let device = cpu(simd, 2, KvType::Bf16);
            let model = Model::new(&device, spec);
            let whole = in_chunks(&device, &model, 40, &[40], &[]);
            let alone = in_chunks(&device, &model, 40, &[1], &[]);
            assert_same_rows(&whole, &alone, &format!("one by one, {kind}, {}", simd.name()));
            let mixed = in_chunks(&device, &model, 40, &[9, 2, 1], &company());
            assert_same_rows(&whole, &mixed, &format!("in company, {kind}, {}", simd.name()));
        }
    }
}

#[test]
fn rows_beyond_one_attention_split_have_the_same_bits_for_every_head_shape() {
    for [h, g, d, p] in [[7, 1, 64, 16], [6, 2, 80, 64], [12, 2, 32, 16], [2, 2, 128, 64]] {
        let mut spec = Spec::new(1, [h, g, d, p], BlockType::Q8_0, 4);
        spec.positions = 1300;
        for simd in levels() {
            let mut reference = None;
            for threads in [1, 2] {
                let device = cpu(simd, threads, KvType::F32);
                let model = Model::new(&device, spec);
                let what = format!("{:?}, {}, {threads} threads", [h, g, d, p], simd.name());
                let whole = in_chunks(&device, &model, 1100, &[400], &[]);
                let cut = in_chunks(&device, &model, 1100, &[399, 311, 333, 50, 1], &[]);
                assert_same_rows(&whole, &cut, &what);
                let first = reference.get_or_insert_with(|| whole.clone());
                assert_same_rows(first, &whole, &what);
            }
        }
    }
}

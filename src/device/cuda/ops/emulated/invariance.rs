//! Bits that do not depend on the company a row keeps, nor on the order in which warps run; and
//! what the kernels cost.

use super::Gpu;
use super::weights::{
    FORMATS, NONE, SMS, Weights, assert_prepared, batch, gpu, preparation, prepared, split,
};
use crate::device::BlockType;
use crate::device::cuda::layout::{ResultsView, VocabHead};
use crate::device::cuda::ops::{gate_up, head, project, qkv};
use crate::device::cuda::samples::Random;
use half::bf16;

const TOTAL: usize = 300;
/// Activations: more groups of panels than CTAs on a GPU of two SMs.
const FEATURES: usize = 100;
const COUNTS: [usize; 10] = [1, 2, 3, 16, 17, 63, 64, 65, 100, 300];
/// SMs of the GPU that a pass is launched for, by its rows: K is split in 1, 2 and 4 parts.
const OF_SMS: [usize; 3] = [16, 2, 4];

/// Every matrix operation on one set of weights; the bits it leaves for `rows`, which are rows of a
/// larger set of hidden states.
struct Everything {
    kind: BlockType,
    cols: usize,
    hidden: Vec<bf16>,
}

impl Everything {
    fn new(kind: BlockType) -> Self {
        let cols = match kind {
            BlockType::BF16 => 300,
            BlockType::Q8_0 => 416,
            _ => 768,
        };
        Self { kind, cols, hidden: Random(1).bf16s(TOTAL * cols) }
    }

    /// Bits of every output row, one vector a row.
    fn run(&self, gpu: &Gpu, rows: &[usize]) -> Vec<Vec<u32>> {
        let (cols, count) = (self.cols, rows.len());
        let mut random = Random(2);
        let mut weights = |n| Weights::random(gpu, self.kind, n, cols, &mut random);
        let (q, k, v) = (weights(20), weights(9), weights(16));
        let (project_w, head_w) = (weights(33), weights(270));
        let pairs = Weights::pairs(gpu, [self.kind; 2], FEATURES, cols, &mut random);
        let (norm, sms) = (random.floats(cols), OF_SMS[count % OF_SMS.len()]);
        let split = split(gpu, sms);
        let x: Vec<bf16> =
            rows.iter().flat_map(|r| &self.hidden[r * cols..][..cols]).copied().collect();
        let hidden = prepared(gpu, &x, &norm);
        let mut batch = batch(gpu, [count as i32, 0, count as i32, 0, 0, 0, 0, 0]);
        let heads: Vec<VocabHead> = (0..count as i32)
            .map(|row| VocabHead { row, kind: 1, argument: 123, ids: 270, result: row })
            .collect();
        batch.vocab_heads = gpu.upload(&heads, "heads");

        let y = gpu.unwritten(count * 45 * 4, "y");
        let input = qkv::QkvInput {
            batch,
            q: q.matrix,
            k: k.matrix,
            v: v.matrix,
            q_bias: NONE,
            k_bias: NONE,
            v_bias: NONE,
            rows: hidden,
            split,
            eps: 1e-6,
            reserved: 0,
        };
        gpu.run(&qkv::qkv_sums(count, sms, &input, y));
        let act = gpu.unwritten(count * FEATURES * 2, "act");
        gpu.run(&gate_up::gate_up(
            count,
            sms,
            &gate_up::GateUpParams {
                batch,
                pairs: pairs.matrix,
                rows: hidden,
                act,
                split,
                eps: 1e-6,
                features: FEATURES as i32,
            },
        ));
        let out = gpu.upload(&vec![bf16::ONE; count * 33], "out");
        let next_norm = random.floats(33);
        let next = preparation(gpu, count, &next_norm);
        gpu.run(&project::project(
            count,
            sms,
            &project::ProjectParams {
                batch,
                weights: project_w.matrix,
                bias: NONE,
                x: hidden.scaled,
                hidden: out,
                next,
                split,
            },
        ));
        let results = gpu.unwritten(count * 16, "results");
        let params = head::HeadParams {
            batch,
            weights: head_w.matrix,
            rows: hidden,
            logits: NONE,
            summaries: gpu.unwritten(head::summaries_bytes(count, 270), "summaries"),
            targets: gpu.unwritten(head::targets_bytes(count), "targets"),
            eps: 1e-6,
            reserved: 0,
        };
        let view = ResultsView { heads: results, ..ResultsView::default() };
        for launch in head::head((count, 270), &params, view) {
            gpu.run(&launch);
        }

        let y: Vec<u32> = gpu.read(y, count * 45);
        let act: Vec<u16> = gpu.read(act, count * FEATURES);
        let out: Vec<u16> = gpu.read(out, count * 33);
        assert_prepared(gpu, &next, bytemuck::cast_slice(&out), &next_norm);
        let results: Vec<u32> = gpu.read(results, count * 4);
        (0..count)
            .map(|t| {
                let mut bits = y[t * 45..][..45].to_vec();
                bits.extend(act[t * FEATURES..][..FEATURES].iter().map(|b| u32::from(*b)));
                bits.extend(out[t * 33..][..33].iter().map(|b| u32::from(*b)));
                bits.extend(&results[t * 4..][..3]);
                bits
            })
            .collect()
    }
}

fn check_invariance(kind: BlockType) {
    let everything = Everything::new(kind);
    let all: Vec<usize> = (0..TOTAL).collect();
    let expected = everything.run(&gpu(0), &all);
    for count in COUNTS {
        // The pass's rows are some of the whole's, in another place and another company.
        let rows: Vec<usize> = (0..count).map(|i| (i * 7 + count) % TOTAL).collect();
        let got = everything.run(&gpu(count as u64), &rows);
        for (bits, row) in got.iter().zip(rows) {
            assert_eq!(*bits, expected[row], "{kind}: row {row} in a pass of {count}");
        }
    }
}

#[test]
fn a_bf16_row_has_the_same_bits_in_every_pass() {
    check_invariance(BlockType::BF16);
}

#[test]
fn a_q8_0_row_has_the_same_bits_in_every_pass() {
    check_invariance(BlockType::Q8_0);
}

#[test]
fn a_q4_k_row_has_the_same_bits_in_every_pass() {
    check_invariance(BlockType::Q4_K);
}

#[test]
fn a_q6_k_row_has_the_same_bits_in_every_pass() {
    check_invariance(BlockType::Q6_K);
}

#[test]
fn three_orders_of_warps_give_the_same_bits() {
    for kind in FORMATS {
        let everything = Everything::new(kind);
        for count in [1, 11, 20, 70] {
            let rows: Vec<usize> = (0..count).collect();
            let expected = everything.run(&gpu(1), &rows);
            for seed in [2, 3] {
                assert_eq!(everything.run(&gpu(seed), &rows), expected, "{kind} {seed}");
            }
        }
    }
}

#[test]
fn weights_are_read_once_in_whole_sectors() {
    let mut random = Random(8);
    for kind in FORMATS {
        for rows in [1, 16, 40] {
            let gpu = gpu(1);
            let (features, cols) = (128, 1024);
            let weights = Weights::random(&gpu, kind, features, cols, &mut random);
            let counters = gpu.run(&project::project(
                rows,
                SMS,
                &project::ProjectParams {
                    batch: batch(&gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]),
                    weights: weights.matrix,
                    bias: NONE,
                    x: gpu.upload(&random.bf16s(rows * cols), "x"),
                    hidden: gpu.upload(&random.bf16s(rows * features), "hidden"),
                    next: preparation(&gpu, rows, &random.floats(features)),
                    split: split(&gpu, SMS),
                },
            ));
            let sectors = counters.sectors_loaded[&weights.matrix.data.0];
            println!(
                "{kind} {rows} rows: {sectors} sectors of weights, floor {}; {counters:?}",
                weights.bytes / 32
            );
            // The high bits and scales of Q6_K are fetched once a unit.
            assert!(sectors * 32 <= weights.bytes * 103 / 100, "{kind}: {sectors} sectors");
            assert_eq!(counters.local_bytes, 0);
        }
    }
}

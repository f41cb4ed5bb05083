//! The vocabulary head and the label head.

use super::Gpu;
use super::weights::{Sum, Weights, assert_close, batch, gpu, normed, prepared};
use crate::device::BlockType;
use crate::device::cuda::layout::{HeadOut, LabelHead, ResultsView, VocabHead};
use crate::device::cuda::ops::{head, labels};
use crate::device::cuda::samples::{Random, random_bytes};
use half::bf16;

const EPS: f32 = 1e-5;
const ARGMAX: i32 = 0;
const LOG_PROB: i32 = 1;
const FULL: i32 = 2;

/// What a model's head is made of.
struct Model<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    norm: &'a [f32],
    /// Rows of the batch.
    hidden: &'a [bf16],
}

/// What a pass's heads left.
struct Found {
    heads: Vec<HeadOut>,
    logits: Vec<f32>,
}

impl Model<'_> {
    fn logits_of(&self, row: usize, rounded: bool) -> (Vec<Sum>, f64) {
        let cols = self.norm.len();
        let (staged, scale) = normed(&self.hidden[row * cols..][..cols], self.norm, EPS, rounded);
        (self.weights.times(&staged), scale)
    }

    /// Runs the heads; `heads` are `(row, kind, argument)`, results in their order.
    fn heads(&self, heads: &[(usize, i32, i32)]) -> Found {
        self.heads_of(heads, &vec![self.weights.rows; heads.len()])
    }

    /// The same, each of its first `ids`.
    fn heads_of(&self, heads: &[(usize, i32, i32)], ids: &[usize]) -> Found {
        let (gpu, vocab, count) = (self.gpu, self.weights.rows, heads.len());
        let full = heads.iter().filter(|head| head.1 == FULL).count();
        let vocab_heads: Vec<VocabHead> = heads
            .iter()
            .enumerate()
            .map(|(result, (row, kind, argument))| VocabHead {
                ids: ids[result] as i32,
                row: *row as i32,
                kind: *kind,
                argument: *argument,
                result: result as i32,
            })
            .collect();
        let mut batch = batch(gpu, [0, 0, count as i32, 0, 0, 0, 0, 0]);
        batch.vocab_heads = gpu.upload(&vocab_heads, "vocab heads");
        let results = gpu.unwritten(count * 16, "results");
        let logits = gpu.unwritten((full * vocab * 4).max(16), "logits");
        let params = head::HeadParams {
            batch,
            weights: self.weights.matrix,
            rows: prepared(gpu, self.hidden, self.norm),
            logits,
            summaries: gpu.unwritten(head::summaries_bytes(count, vocab), "summaries"),
            targets: gpu.unwritten(head::targets_bytes(count), "targets"),
            eps: EPS,
            reserved: 0,
        };
        let results_view = ResultsView { heads: results, ..ResultsView::default() };
        let most = ids.iter().copied().max().unwrap();
        for launch in head::head((count, most), &params, results_view) {
            gpu.run(&launch);
        }
        // What no head looks at is not written.
        let row = |i: usize| {
            let mut row: Vec<f32> = gpu.read(logits.offset(i * vocab * 4), most);
            row.resize(vocab, f32::NAN);
            row
        };
        Found { heads: gpu.read(results, count), logits: (0..full).flat_map(row).collect() }
    }

    /// Runs label heads `(row, labels)`; probabilities in their order and whether each was finite.
    fn labels(&self, heads: &[(usize, &[i32])]) -> (Vec<f32>, Vec<HeadOut>) {
        let gpu = self.gpu;
        let ids: Vec<i32> = heads.iter().flat_map(|head| head.1).copied().collect();
        let mut first_label = 0;
        let label_heads: Vec<LabelHead> = heads
            .iter()
            .enumerate()
            .map(|(result, (row, labels))| {
                first_label += labels.len() as i32;
                LabelHead {
                    row: *row as i32,
                    first_label: first_label - labels.len() as i32,
                    labels: labels.len() as i32,
                    result: result as i32,
                }
            })
            .collect();
        let mut batch = batch(gpu, [0, 0, 0, heads.len() as i32, 0, 0, 0, 0]);
        batch.label_heads = gpu.upload(&label_heads, "label heads");
        batch.labels = gpu.upload(&ids, "labels");
        let results = ResultsView {
            heads: gpu.unwritten(heads.len() * 16, "results"),
            probabilities: gpu.unwritten(ids.len() * 4, "probabilities"),
            ..ResultsView::default()
        };
        gpu.run(&labels::labels(
            heads.len(),
            &labels::LabelsParams {
                batch,
                results,
                weights: self.weights.matrix,
                rows: prepared(gpu, self.hidden, self.norm),
                eps: EPS,
                reserved: 0,
            },
        ));
        (gpu.read(results.probabilities, ids.len()), gpu.read(results.heads, heads.len()))
    }
}

fn norm_weights(cols: usize, random: &mut Random) -> Vec<f32> {
    random.floats(cols).iter().map(|g| 0.5 + g * 0.25).collect()
}

/// `ln(sum(exp(logits)))`.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

#[test]
fn a_full_head_stores_normed_sums_in_every_format_and_for_every_count() {
    for (kind, vocab, cols) in [
        (BlockType::BF16, 300, 72),
        (BlockType::BF16, 5, 33),
        (BlockType::Q8_0, 259, 96),
        (BlockType::Q4_K, 530, 256),
        (BlockType::Q6_K, 258, 512),
    ] {
        for count in [1, 2, 9, 17, 33, 70] {
            let mut random = Random(count as u64);
            let gpu = gpu(count as u64);
            let weights = Weights::random(&gpu, kind, vocab, cols, &mut random);
            let (norm, hidden) = (norm_weights(cols, &mut random), random.bf16s(5 * cols));
            let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
            // Rows repeat, and logits rows are in another order than the heads.
            let heads: Vec<(usize, i32, i32)> =
                (0..count).map(|i| (i * 3 % 5, FULL, (count - 1 - i) as i32)).collect();
            let found = model.heads(&heads);
            for (row, _, at) in heads {
                let (sums, scale) = model.logits_of(row, true);
                let expected: Vec<(f64, f64)> = sums
                    .iter()
                    .map(|s| {
                        let value = s.value * scale;
                        (value, s.error(cols) * scale + value.abs() * 1e-6)
                    })
                    .collect();
                let got: Vec<f64> = found.logits[at as usize * vocab..][..vocab]
                    .iter()
                    .map(|v| f64::from(*v))
                    .collect();
                assert_close(&format!("{kind} {vocab} row {row}"), &got, &expected);
            }
            assert!(found.heads.iter().all(|head| *head == HeadOut::default()));
        }
    }
}

#[test]
fn arg_max_and_log_probability_are_those_of_the_full_row() {
    for (kind, vocab, cols) in
        [(BlockType::BF16, 1000, 64), (BlockType::Q4_K, 300, 256), (BlockType::Q8_0, 17, 160)]
    {
        for rows in [1, 3, 10, 24] {
            let mut random = Random(rows as u64);
            let gpu = gpu(rows as u64);
            let weights = Weights::random(&gpu, kind, vocab, cols, &mut random);
            let (norm, hidden) = (norm_weights(cols, &mut random), random.bf16s(rows * cols));
            let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
            let targets: Vec<usize> = (0..rows).map(|_| random.below(vocab)).collect();
            let mut heads = Vec::new();
            for (row, target) in targets.iter().enumerate() {
                heads.push((row, LOG_PROB, *target as i32));
                heads.push((row, FULL, row as i32));
                heads.push((row, ARGMAX, 0));
            }
            let found = model.heads(&heads);
            for (row, target) in targets.iter().enumerate() {
                let logits = &found.logits[row * vocab..][..vocab];
                let best = (0..vocab).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
                let best = best.unwrap();
                let arg_max = found.heads[3 * row + 2];
                assert_eq!((arg_max.id as usize, arg_max.value), (best, logits[best]));
                let log_prob = f64::from(found.heads[3 * row].value);
                let expected = f64::from(logits[*target]) - log_sum_exp(logits);
                let bound = 1e-5 + 3e-7 * expected.abs();
                assert!((log_prob - expected).abs() < bound, "{log_prob} for {expected}");
            }
            assert!(found.heads.iter().all(|head| head.non_finite == 0));
        }
    }
}

#[test]
fn a_head_of_the_first_ids_finds_the_best_of_them_whoever_shares_the_pass() {
    let (vocab, cols) = (1100, 64);
    for kind in [BlockType::BF16, BlockType::Q8_0] {
        let mut random = Random(11);
        let gpu = gpu(11);
        let weights = Weights::random(&gpu, kind, vocab, cols, &mut random);
        let (norm, hidden) = (norm_weights(cols, &mut random), random.bf16s(4 * cols));
        let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
        let rows: Vec<(usize, i32, i32)> = (0..4).map(|row| (row, FULL, row as i32)).collect();
        let logits = model.heads(&rows).logits;
        let best = |row: usize, ids: usize| {
            let logits = &logits[row * vocab..][..ids];
            let best = (0..ids).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            (best, logits[best])
        };
        let heads: Vec<(usize, i32, i32)> = (0..4).map(|row| (row, ARGMAX, 0)).collect();
        for ids in [[256, 512, 1024, 256], [512; 4], [vocab, 256, 768, vocab], [256; 4]] {
            let found = model.heads_of(&heads, &ids).heads;
            for (row, ids) in ids.into_iter().enumerate() {
                let found = (found[row].id as usize, found[row].value);
                assert_eq!(found, best(row, ids), "{kind} row {row} of {ids}");
            }
        }
        let first = model.heads_of(&rows, &[512; 4]).logits;
        for (first, logits) in first.chunks_exact(vocab).zip(logits.chunks_exact(vocab)) {
            assert_eq!(first[..512], logits[..512], "{kind}");
        }
    }
}

#[test]
fn equal_logits_go_to_the_lower_id() {
    let (vocab, cols) = (1030, 32);
    let mut random = Random(4);
    let gpu = gpu(4);
    let mut bytes = random_bytes(BlockType::BF16, vocab, cols, &mut random);
    // One row, larger than any other, at four places: two in one panel, others in other CTAs.
    let large: Vec<u8> = (0..cols).flat_map(|_| bf16::from_f32(9.0).to_le_bytes()).collect();
    for id in [1029, 700, 213, 211] {
        bytes[id * cols * 2..][..cols * 2].copy_from_slice(&large);
    }
    let weights = Weights::of(&gpu, BlockType::BF16, vocab, cols, &bytes);
    let (norm, hidden) = (vec![1.0; cols], vec![bf16::ONE; cols]);
    let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
    assert_eq!(model.heads(&[(0, ARGMAX, 0)]).heads[0].id, 211);
}

#[test]
fn a_logit_that_is_not_finite_is_reported_of_its_own_head_only() {
    let (vocab, cols) = (300, 64);
    let mut random = Random(6);
    let gpu = gpu(6);
    let weights = Weights::random(&gpu, BlockType::BF16, vocab, cols, &mut random);
    let norm = norm_weights(cols, &mut random);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut hidden = random.bf16s(3 * cols);
        hidden[cols + 5] = bf16::from_f32(bad);
        let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
        let found = model.heads(&[(0, ARGMAX, 0), (1, ARGMAX, 0), (2, LOG_PROB, 3), (1, FULL, 0)]);
        let flags: Vec<i32> = found.heads.iter().map(|head| head.non_finite).collect();
        assert_eq!(flags, [0, 1, 0, 1], "{bad}");
        let ids: &[i32] = &[1, 2];
        let (_, heads) = model.labels(&[(0, ids), (1, ids), (2, ids)]);
        assert_eq!(
            heads.iter().map(|head| head.non_finite).collect::<Vec<_>>(),
            [0, 1, 0],
            "{bad}"
        );
    }
}

#[test]
fn labels_have_the_probabilities_that_the_full_rows_logits_give() {
    let (vocab, rows) = (700, 4);
    for (kind, cols) in [
        (BlockType::BF16, 96),
        (BlockType::Q8_0, 160),
        (BlockType::Q4_K, 512),
        (BlockType::Q6_K, 256),
    ] {
        let mut random = Random(9);
        let gpu = gpu(9);
        let weights = Weights::random(&gpu, kind, vocab, cols, &mut random);
        let (norm, hidden) = (norm_weights(cols, &mut random), random.bf16s(rows * cols));
        let model = Model { gpu: &gpu, weights: &weights, norm: &norm, hidden: &hidden };
        let sets: Vec<Vec<i32>> = [1, 2, 10, 16, 17, 32]
            .iter()
            .map(|count| (0..*count).map(|_| random.below(vocab) as i32).collect())
            .collect();
        let heads: Vec<(usize, &[i32])> =
            sets.iter().enumerate().map(|(i, ids)| (i % rows, ids.as_slice())).collect();
        let (probabilities, results) = model.labels(&heads);
        assert!(results.iter().all(|result| result.non_finite == 0));
        let full = model.heads(&[(0, FULL, 0), (1, FULL, 1), (2, FULL, 2), (3, FULL, 3)]).logits;
        let mut at = 0;
        for (row, ids) in heads {
            let logits: Vec<f32> = ids.iter().map(|id| full[row * vocab + *id as usize]).collect();
            for logit in &logits {
                let expected = (f64::from(*logit) - log_sum_exp(&logits)).exp();
                let got = f64::from(probabilities[at]);
                assert!(
                    (got - expected).abs() < 1e-6 * expected + 1e-9,
                    "{kind}: {got} {expected}"
                );
                at += 1;
            }
        }
    }
}

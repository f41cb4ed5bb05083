//! Heads and samplers: against the reference, and against each other.

use crate::against_reference::devices;
use crate::harness::{BatchBuilder, Buffers, Rng, Spec, encode, matrix};
use crate::probes::rows_only;
use forerun::device::{
    BlockType, Device, HeadKind, HeadResult, HeadRow, HeadWeights, RaggedBatch, SampleRow,
};
use forerun::ids::{BranchId, Role, TokenId};
use forerun::sample::{Key, Purpose, SamplingParams, Scratch};

struct Headed {
    heads: Vec<HeadResult>,
    samples: Vec<forerun::sample::Sampled>,
    logits: Vec<f32>,
}

fn headed<D: Device>(device: &D, spec: &Spec, batch: &RaggedBatch) -> Headed {
    let (c, rows) = (spec.shape.hidden, batch.rows());
    let mut buffers = Buffers::new(device, spec, rows, 1);
    let x = Rng(31).vector(rows * c, 2.0);
    let bytes = encode(spec.kind, spec.shape.vocab, c, 0.2, &mut Rng(32));
    let (norm, head) = (
        device.vector(&Rng(33).vector(c, 1.0)).unwrap(),
        matrix(device, spec.shape.vocab, c, spec.kind, &bytes),
    );
    Buffers::upload(device, &buffers.stream, c, &x, &norm, &mut buffers.hidden);
    let weights = HeadWeights { norm: &norm, matrix: &head };
    let Buffers { stream, hidden, logits, results, .. } = &mut buffers;
    let staged = device.stage(stream, batch.clone()).unwrap();
    device.head(stream, &spec.shape, &weights, &staged, hidden, logits, results).unwrap();
    device.sample(stream, &staged, logits, results).unwrap();
    let results = std::slice::from_mut(results);
    let found = device.collect(stream, &[staged], results).unwrap().remove(0);
    assert_eq!(found.non_finite_row, None);
    let logits = device.read(stream, logits, 0, batch.full_rows() * spec.shape.vocab).unwrap();
    Headed { heads: found.heads, samples: found.samples, logits }
}

fn warm(logits_row: usize) -> SampleRow {
    let (branch, role, purpose) = (BranchId::ROOT, Role::Base, Purpose::Draw);
    SampleRow {
        logits_row,
        params: SamplingParams { temperature: 0.8, ..SamplingParams::greedy() },
        key: Key { seed: 9, branch, position: logits_row as u32, role, purpose },
        prompt: vec![],
        generated: vec![],
    }
}

#[test]
fn heads_of_the_first_ids_find_what_the_full_rows_hold_there() {
    const ROWS: usize = 5;
    for kind in [BlockType::BF16, BlockType::Q8_0, BlockType::Q6_K] {
        let mut spec = Spec::new(1, [1, 1, 32, 16], kind, 4);
        spec.shape.vocab = 1003;
        let vocab = spec.shape.vocab;
        let full = |builder: BatchBuilder, row| builder.head(row, HeadKind::Full);
        let whole = (0..ROWS).fold(BatchBuilder(rows_only(ROWS)), full).build();
        let ids = [256, 768, 512, 256, 512];
        // Beside a log-probability, which looks at all of them, and without it.
        for beside in [false, true] {
            let mut builder = BatchBuilder(rows_only(ROWS));
            for (row, ids) in ids.into_iter().enumerate() {
                for kind in [HeadKind::Argmax, HeadKind::Full] {
                    builder.0.heads.push(HeadRow { row, kind, first_ids: Some(ids) });
                }
                if beside {
                    builder = builder.head(row, HeadKind::LogProb(TokenId(1002)));
                }
            }
            let mut batch = builder.build();
            batch.samples = (0..ROWS).map(warm).collect();
            for (cpu, reference, simd) in devices() {
                let of = |device: &dyn Fn(&RaggedBatch) -> Headed| {
                    let (logits, found) = (device(&whole).logits, device(&batch));
                    for (row, ids) in ids.into_iter().enumerate() {
                        let logits = &logits[row * vocab..][..ids];
                        assert_eq!(found.logits[row * vocab..][..ids], *logits, "{kind}, {simd}");
                        let best = forerun::sample::argmax(logits);
                        let want = HeadResult::Argmax { id: best, logit: logits[best.index()] };
                        assert_eq!(found.heads[row * (2 + usize::from(beside))], want);
                        let SampleRow { params, key, .. } = &batch.samples[row];
                        let history = batch.samples[row].history();
                        let mut scratch = Scratch::default();
                        let want =
                            forerun::sample::sample(logits, params, &history, key, &mut scratch);
                        assert_eq!(found.samples[row], want, "{kind}, {simd}");
                    }
                };
                of(&|batch| headed(&cpu, &spec, batch));
                of(&|batch| headed(&reference, &spec, batch));
            }
        }
    }
}

#[test]
fn heads_agree_with_the_full_rows_and_these_with_the_reference() {
    const ROWS: usize = 9;
    for kind in BlockType::ALL {
        let mut spec = Spec::new(1, [1, 1, 32, 16], kind, 4);
        spec.shape.vocab = 1003;
        let labels = vec![TokenId(1002), TokenId(0), TokenId(17), TokenId(16)];
        let mut builder = BatchBuilder(rows_only(ROWS));
        // Out of order and repeated on purpose; neighbours share a scan in some of the orders.
        for row in [4, 0, 8, 3, 1, 2, 7, 5, 6] {
            builder = builder
                .head(row, HeadKind::LogProb(TokenId(1001)))
                .head(row, HeadKind::Full)
                .head(row, HeadKind::Labels(labels.clone()))
                .head(row, HeadKind::Argmax)
                .head(row, HeadKind::LogProb(TokenId(5)))
                .head(row, HeadKind::LogProb(TokenId(6)));
        }
        let mut batch = builder.build();
        batch.samples = (0..ROWS).map(warm).collect();
        for (cpu, reference, simd) in devices() {
            let got = headed(&cpu, &spec, &batch);
            let want = headed(&reference, &spec, &batch);
            // Σ|w||x| is about 256 · 0.1 · 0.5; int8 steps are 1/254 of the block's largest.
            let bound = if kind.is_plain() { 2e-4 } else { 0.2 };
            for (i, (a, b)) in got.logits.iter().zip(&want.logits).enumerate() {
                assert!((a - b).abs() <= bound, "{kind} logit {i}: {a} for {b}, {simd}");
            }
            for (found, row) in got.heads.chunks(6).zip(0..) {
                let logits = &got.logits[row * spec.shape.vocab..][..spec.shape.vocab];
                let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                for (at, target) in [(0, 1001), (4, 5), (5, 6)] {
                    let HeadResult::LogProb(p) = found[at] else { panic!("{:?}", found[at]) };
                    let exact = f64::from(logits[target]) - total.ln();
                    assert!((f64::from(p) - exact).abs() < 1e-5, "{p} for {exact}, {kind}, {simd}");
                }
                assert_eq!(found[1], HeadResult::Full(row));
                let chosen: Vec<f32> = labels.iter().map(|l| logits[l.index()]).collect();
                assert_eq!(found[2], HeadResult::Labels(forerun::sample::softmax_labels(&chosen)));
                let id = forerun::sample::argmax(logits);
                assert_eq!(found[3], HeadResult::Argmax { id, logit: logits[id.index()] });
                let sampled = &batch.samples[row];
                let (params, history) = (&sampled.params, sampled.history());
                let mut scratch = Scratch::default();
                let drawn =
                    forerun::sample::sample(logits, params, &history, &sampled.key, &mut scratch);
                assert_eq!(got.samples[row], drawn);
            }
        }
    }
}

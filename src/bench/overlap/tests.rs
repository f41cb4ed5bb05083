//! Claims about the model, each against a form that can be written down.

use super::passes::{LayerBytes, Logits, ModelSizes, PassSizes};
use super::*;
use crate::device::Shape;
use proptest::prelude::*;

const GPU: Gpu = GPUS[1];

/// Takes `us` at full bandwidth, on many SMs.
fn reads(us: f64) -> Kernel {
    Kernel { ctas: 10 * GPU.sms, bytes: us * GPU.bytes_per_us(), flop: 0.0 }
}

/// Takes `us` at the peak, on all SMs.
fn computes(us: f64) -> Kernel {
    Kernel { ctas: 10 * GPU.sms, bytes: 0.0, flop: us * GPU.flop_per_us() }
}

fn round(draft: &[Kernel], base: &[Kernel]) -> Round {
    Round { draft: draft.to_vec(), base: base.to_vec() }
}

#[track_caller]
fn near(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{got} for {want}");
}

#[test]
fn one_pass_at_a_time_takes_the_sum_of_its_kernels_and_boundaries() {
    let round = round(&[reads(5.0), computes(3.0)], &[reads(20.0)]);
    let off = round.predict(&GPU, Mode::Off);
    near(off.draft_us, 8.0 + 2.0 * GPU.launch_us);
    near(off.us, 28.0 + 3.0 * GPU.launch_us);
    let [bandwidth, sms, launches] = off.bounds_us;
    near(bandwidth, 25.0);
    near(sms, 3.0);
    near(launches, 3.0 * GPU.launch_us);
    assert_eq!(off.bound().unwrap().0, Bound::Bandwidth);
}

#[test]
fn two_streams_bound_by_bandwidth_do_not_beat_the_sum_of_their_bytes() {
    let round = round(&[reads(40.0)], &[reads(60.0)]);
    let stream = round.predict(&GPU, Mode::Stream);
    // Both boundaries are at once, then the memory is never idle.
    near(stream.us, 100.0 + GPU.launch_us);
    // Shared evenly until the shorter is done.
    near(stream.draft_us, 80.0 + GPU.launch_us);
    assert_eq!(stream.bound().unwrap().0, Bound::Bandwidth);
    for split in [8, 64, 124] {
        assert!(round.predict(&GPU, Mode::Split(split)).us >= 100.0 + GPU.launch_us - 1e-6);
    }
}

#[test]
fn a_draft_bound_by_launches_hides_behind_a_base_bound_by_bandwidth() {
    let draft = vec![reads(0.1); 100];
    let base = vec![reads(100.0); 5];
    let round = round(&draft, &base);
    let alone = 5.0 * (100.0 + GPU.launch_us);
    let off = round.predict(&GPU, Mode::Off);
    near(off.us, alone + 100.0 * (0.1 + GPU.launch_us));
    // What is left of the draft is its bytes: its boundaries cost nothing.
    let stream = round.predict(&GPU, Mode::Stream);
    assert!(stream.us <= alone + 100.0 * 0.1 + 1e-6, "{stream:?}");
    assert!(stream.us >= alone + 100.0 * 0.1 - 5.0 * GPU.launch_us, "{stream:?}");
}

#[test]
fn a_base_that_computes_leaves_the_memory_to_the_draft() {
    let round = round(&[reads(50.0)], &[computes(50.0)]);
    near(round.predict(&GPU, Mode::Off).us, 100.0 + 2.0 * GPU.launch_us);
    near(round.predict(&GPU, Mode::Stream).us, 50.0 + GPU.launch_us);
    // On SMs of its own the base computes more slowly: a quarter of them is missing.
    let split = round.predict(&GPU, Mode::Split(32));
    assert!(split.us > 50.0 * 132.0 / 100.0 && split.bound().unwrap().0 == Bound::Sms, "{split:?}");
}

#[test]
fn a_split_gains_nothing_where_there_is_nothing_to_overlap() {
    let kernels = [reads(30.0), computes(10.0), reads(0.2)];
    for round in [round(&kernels, &[]), round(&[], &kernels)] {
        let off = round.predict(&GPU, Mode::Off).us;
        near(round.predict(&GPU, Mode::Stream).us, off);
        for split in (8..132).step_by(8) {
            assert!(round.predict(&GPU, Mode::Split(split)).us >= off - 1e-6, "{split}");
        }
    }
    let nothing = Round::default().predict(&GPU, Mode::Off);
    assert_eq!((nothing.us, nothing.bound()), (0.0, None));
}

#[test]
fn as_many_sms_as_fill_the_memory_are_as_good_as_all() {
    // 32 KiB each 0.7 µs: 71.6 SMs ask for 3.35 TB/s.
    let kernel = reads(100.0);
    near(kernel.alone(&GPU, 132).us, 100.0);
    near(kernel.alone(&GPU, 120).us, 100.0);
    assert!(kernel.alone(&GPU, 64).us > 110.0);
    // A kernel of few CTAs gets no faster by more SMs.
    let few = Kernel { ctas: 16, bytes: 1e6, flop: 0.0 };
    near(few.alone(&GPU, 16).us, 1e6 / 16.0 / (32768.0 / 0.7));
    near(few.alone(&GPU, 16).us, few.alone(&GPU, 132).us);
    // One CTA more than SMs: the fullest SM has two.
    let tail = Kernel { ctas: 133, bytes: 0.0, flop: 133.0 * GPU.flop_per_us() / 132.0 };
    near(tail.alone(&GPU, 132).us, 2.0);
}

#[test]
fn splits_are_those_the_hardware_has() {
    let [a100, h100, _] = GPUS;
    assert_eq!(h100.split(25), 40);
    assert_eq!([1, 50, 99].map(|pct| h100.split(pct)), [8, 72, 128]);
    assert_eq!([1, 25, 99].map(|pct| a100.split(pct)), [4, 28, 104]);
    assert_eq!(Gpu::named("NVIDIA H200"), Some(GPUS[2]));
    assert_eq!(Gpu::named("forerun emulated GPU"), None);
}

fn kernel() -> impl Strategy<Value = Kernel> {
    (1_usize..400, 0.0..2e8, 0.0..1e10).prop_map(|(ctas, bytes, flop)| Kernel { ctas, bytes, flop })
}

proptest! {
    #[test]
    fn overlap_is_never_slower_than_none_nor_faster_than_the_floor(
        draft in prop::collection::vec(kernel(), 0..20),
        base in prop::collection::vec(kernel(), 0..20),
        split in 1_usize..131,
    ) {
        let round = Round { draft, base };
        for gpu in GPUS {
            let off = round.predict(&gpu, Mode::Off);
            let stream = round.predict(&gpu, Mode::Stream);
            let split = round.predict(&gpu, Mode::Split(split % (gpu.sms - 1) + 1));
            prop_assert!(stream.us <= off.us * (1.0 + 1e-9));
            for prediction in [off, stream, split] {
                prop_assert!(prediction.us >= round.floor_us(&gpu) * (1.0 - 1e-9));
                let spent: f64 = prediction.bounds_us.iter().sum();
                prop_assert!((spent - prediction.us).abs() <= 1e-6 * prediction.us.max(1.0));
            }
            // Neither model is faster for the other's being there.
            let alone = Round { draft: round.draft.clone(), base: vec![] };
            prop_assert!(stream.draft_us >= alone.predict(&gpu, Mode::Off).us * (1.0 - 1e-9));
        }
    }
}

/// QwQ-32B in bf16, its layers of one matrix each.
fn sizes() -> ModelSizes {
    let (hidden, heads, kv_heads, head_dim, ffn, vocab) = (5120, 40, 8, 128, 27_648, 152_064);
    let bytes = |rows: usize, columns: usize| (rows * columns * 2) as u64;
    let layer = LayerBytes {
        qkv: bytes((heads + 2 * kv_heads) * head_dim, hidden),
        output: bytes(hidden, heads * head_dim),
        gate_up: bytes(2 * ffn, hidden),
        down: bytes(hidden, ffn),
    };
    ModelSizes {
        shape: Shape {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            rms_eps: 1e-6,
            layers: 64,
            page_tokens: 16,
            page_bytes: 0,
        },
        head_norm: false,
        kv_element_bytes: 2,
        layers: vec![layer; 64],
        head_bytes: bytes(vocab, hidden),
    }
}

fn bytes(kernels: &[Kernel]) -> f64 {
    kernels.iter().map(|k| k.bytes).sum()
}

#[test]
fn a_token_moves_every_weight_and_every_key_once() {
    let sizes = sizes();
    let pass = sizes.pass(PassSizes::decode(1024));
    // 64.0 GB of weights (`reference` value of the model card's shapes), 256 KiB of KV a token.
    let weights = 63.97e9;
    let kv = 1025.0 * 262_144.0;
    assert!((bytes(&pass) / (weights + kv) - 1.0).abs() < 1e-3, "{}", bytes(&pass));
    assert_eq!(pass.len(), 1 + 64 * 5 + 2);
    // 2 operations a weight and a tile's tokens.
    let flop: f64 = pass.iter().map(|k| k.flop).sum();
    assert!(flop > 8.0 * weights && flop < 8.5 * weights, "{flop}");
}

#[test]
fn a_score_reads_ten_rows_of_the_head_and_a_step_is_no_dearer_than_a_few_tokens() {
    let sizes = sizes();
    let score = sizes.pass(PassSizes { rows: 42, before: 1024, logits: Logits::Labels(10) });
    let token = sizes.pass(PassSizes::decode(1024));
    let head = 2.0 * 152_064.0 * 5120.0;
    assert!((bytes(&token) - bytes(&score) - head).abs() < 0.01 * head);
    let us = |base: Vec<Kernel>| Round { draft: vec![], base }.predict(&GPU, Mode::Off).us;
    assert!(us(score) < 1.5 * us(token.clone()) && us(token) > 64e9 / GPU.bytes_per_us());
}

#[test]
fn norms_of_heads_are_a_launch_more_a_layer() {
    let plain = sizes();
    let normed = ModelSizes { head_norm: true, ..plain.clone() };
    let launches = |sizes: &ModelSizes, before| sizes.pass(PassSizes::decode(before)).len();
    assert_eq!(launches(&normed, 1024) - launches(&plain, 1024), 64);
}

const STEP: table::StepSizes =
    table::StepSizes { tokens: 3, score_rows: 42, labels: 10, before: 1024 };

#[test]
fn a_round_has_a_pass_a_token_and_one_to_score() {
    let sizes = sizes();
    let [score, rewrite] = STEP.rounds(&sizes, &sizes);
    assert_eq!(score.draft.len(), 3 * (1 + 64 * 5 + 2));
    assert_eq!(score.base.len(), 1 + 64 * 5 + 1);
    assert_eq!(rewrite.base, score.draft);
}

#[test]
fn the_table_has_every_mode_of_every_gpu_once() {
    let sizes = sizes();
    let text = table::predictions(&STEP.rounds(&sizes, &sizes), STEP, &[1, 2, 25, 50]);
    let rows = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    // Alone twice, off, stream; 1 and 2 percent of an H100 are the same split, 8 SMs.
    assert_eq!(["| A100 |", "| H100 |", "| H200 |"].map(rows), [7, 7, 7], "{text}");
    assert_eq!(rows("| H100 | green-ctx 8 + 124 |"), 1, "{text}");
    assert!(text.contains("Model, nothing measured"));
}

#[test]
fn a_mode_without_a_time_shows_none() {
    let run = table::ModeRun {
        mode: "stream".into(),
        sms: None,
        steps: 3,
        timeline: timeline::Timeline::default(),
        tokens: 20,
        ms: None,
    };
    let timed = table::ModeRun { mode: "off".into(), ms: Some(40.0), ..run.clone() };
    let text = table::runs(&[run, timed]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[2], "| stream | all | 3 | 0 | 0 | 0 | 0 | 20 | | |");
    assert_eq!(lines[3], "| off | all | 3 | 0 | 0 | 0 | 0 | 20 | 40.0 | 500.0 |");
    assert!(lines.iter().all(|l| l.matches('|').count() == lines[0].matches('|').count()));
}

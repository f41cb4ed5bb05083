//! The kernels of a pass in closed form (`bench::overlap::passes`) against what the software GPU
//! counts when the CUDA device runs that pass.
#![cfg(feature = "cuda")]

#[path = "../benches/kernel_report/counts.rs"]
#[allow(dead_code, reason = "the kernel report uses the rest")]
mod counts;
#[path = "cuda/emulator.rs"]
#[allow(dead_code, reason = "the measurement opens its own device")]
mod emulator;
#[path = "../benches/kernel_report/measure.rs"]
#[allow(dead_code, reason = "the kernel report uses the rest")]
mod measure;
#[path = "../benches/kernel_report/shapes.rs"]
#[allow(dead_code, reason = "the kernel report uses the rest")]
mod shapes;
#[path = "../benches/kernel_report/weights.rs"]
mod weights;

use counts::{Launch, Region};
use emulator::kernels;
use forerun::bench::overlap::Kernel;
use forerun::bench::overlap::passes::{CUTS, LayerBytes, Logits, ModelSizes, PassSizes};
use measure::{CONTEXT, LABELS, LAYER, Measured, Op, Pass, measure};
use shapes::{Fixture, Mix};

/// As real models are built, small: groups of three query heads, rows that end inside tiles.
const SMALL: Fixture = Fixture {
    name: "small",
    hidden: 384,
    heads: [6, 2],
    head_dim: 64,
    ffn: 1000,
    vocab: 5000,
    layers: 1,
};

/// Operations of an `mma.m16n8k16`.
const MMA_FLOP: f64 = 2.0 * 16.0 * 8.0 * 16.0;

fn of(measured: &[Measured], pass: Pass, op: Op) -> &Measured {
    measured.iter().find(|m| (m.pass, m.op) == (pass, op)).expect("measured")
}

/// The sizes the device packed `SMALL` to.
fn sizes(measured: &[Measured]) -> ModelSizes {
    let bytes = |op| of(measured, Pass::Decode, op).weight_bytes;
    ModelSizes {
        shape: SMALL.layer_shape(),
        head_norm: false,
        kv_element_bytes: 2,
        layers: vec![LayerBytes {
            qkv: bytes(Op::Qkv),
            output: bytes(Op::Out),
            gate_up: bytes(Op::GateUp),
            down: bytes(Op::Down),
        }],
        head_bytes: bytes(Op::Head),
    }
}

/// Bytes of weights, and of keys and values that were there before the pass.
fn from_memory(op: Op, launch: &Launch) -> u64 {
    match op {
        Op::Attention => launch.bytes(Region::Kv),
        // The table is labelled with the vectors.
        Op::Embed => launch.bytes(Region::Vectors),
        _ => launch.bytes(Region::Weights),
    }
}

#[test]
fn a_pass_in_closed_form_is_what_the_software_gpu_counts() {
    if !kernels() {
        return;
    }
    let measured = measure(&SMALL, Mix::Bf16, &Pass::ALL, &Pass::ALL);
    let sizes = sizes(&measured);
    for (pass, logits) in [
        (Pass::Decode, Logits::Argmax(1)),
        (Pass::Verify, Logits::Argmax(8)),
        (Pass::Score, Logits::Labels(LABELS)),
    ] {
        let predicted = sizes.pass(PassSizes { rows: pass.rows(), before: CONTEXT, logits });
        let ops = [Op::Embed].iter().chain(&LAYER).chain(&[Op::Head]);
        let counted: Vec<(Op, &Launch)> = ops
            .flat_map(|op| of(&measured, pass, *op).launches.iter().map(move |l| (*op, l)))
            .collect();
        let names: Vec<_> = counted.iter().map(|(_, launch)| &launch.kernel).collect();
        assert_eq!(predicted.len(), counted.len(), "{pass:?}: launches {names:?}");
        for (Kernel { ctas, bytes, flop }, (op, launch)) in predicted.iter().zip(counted) {
            let kernel = &launch.kernel;
            assert_eq!(*ctas as u64, launch.ctas(), "{pass:?}: CTAs of {kernel}");
            let requested = from_memory(op, launch) as f64;
            match op {
                // Several rows of queries read the keys again: from the L2.
                Op::Attention if pass == Pass::Score => {
                    assert!(*bytes <= requested, "{pass:?}: {bytes} of {requested}, {kernel}");
                }
                Op::Head if logits == Logits::Labels(LABELS) => {
                    assert!(*bytes <= 1.05 * requested, "{bytes} of {requested}, {kernel}");
                }
                _ => assert!(
                    (bytes - requested).abs() <= 0.05 * requested,
                    "{pass:?}: {bytes} bytes of {requested}, {kernel}"
                ),
            }
            let done = launch.mmas as f64 * MMA_FLOP;
            // Attention's tiles depend on where groups of rows end.
            let slack = if op == Op::Attention { 1.5 } else { 1.05 };
            assert!(
                done == 0.0 || (flop / done <= slack && done / flop <= slack),
                "{pass:?}: {flop} operations of {done}, {kernel}"
            );
        }
    }
    const { assert!(CONTEXT > CUTS.split_keys, "keys are in one split") };
}

//! Projections, queries, keys and values, gate and up.

use super::Gpu;
use super::weights::{
    FORMATS, NONE, ROWS, SMS, Weights, assert_close, assert_prepared, batch, gpu, half_ulp, normed,
    preparation, prepared, split,
};
use crate::device::BlockType;
use crate::device::cuda::ops::{gate_up, project};
use crate::device::cuda::samples::Random;
use half::bf16;

const EPS: f32 = 1e-5;

/// The hidden states of `rows` rows.
fn hidden(rows: usize, width: usize, random: &mut Random) -> Vec<bf16> {
    random.bf16s(rows * width)
}

fn floats(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

fn project_once(
    gpu: &Gpu,
    weights: &Weights,
    bias: Option<&[f32]>,
    x: &[bf16],
    before: &[bf16],
) -> Vec<bf16> {
    let rows = x.len() / weights.cols;
    let out = gpu.upload(before, "hidden");
    let norm: Vec<f32> = (0..before.len() / rows).map(|i| 1.0 - i as f32 / 300.0).collect();
    let next = preparation(gpu, rows, &norm);
    let launch = project::project(
        rows,
        SMS,
        &project::ProjectParams {
            batch: batch(gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]),
            weights: weights.matrix,
            bias: bias.map_or(NONE, |b| gpu.upload(b, "bias")),
            x: gpu.upload(x, "x"),
            hidden: out,
            next,
            split: split(gpu, SMS),
        },
    );
    gpu.run(&launch);
    let now = gpu.read(out, before.len());
    assert_prepared(gpu, &next, &now, &norm);
    now
}

fn check_project(kind: BlockType, rows: usize, features: usize, cols: usize, biased: bool) {
    let what = format!("{kind} [{features}, {cols}] times {rows} rows");
    let mut random = Random(rows as u64 + 1000 * cols as u64);
    let gpu = gpu(rows as u64);
    let weights = Weights::random(&gpu, kind, features, cols, &mut random);
    let bias = biased.then(|| random.floats(features));
    let (x, before) = (hidden(rows, cols, &mut random), hidden(rows, features, &mut random));
    let got = project_once(&gpu, &weights, bias.as_deref(), &x, &before);
    for row in 0..rows {
        let sums = weights.times(&floats(&x[row * cols..][..cols]));
        let expected: Vec<(f64, f64)> = sums
            .iter()
            .enumerate()
            .map(|(n, sum)| {
                let bias = bias.as_ref().map_or(0.0, |b| f64::from(b[n]));
                let value = before[row * features + n].to_f64() + (sum.value + bias);
                (value, half_ulp(value) + sum.error(cols) + 1e-6)
            })
            .collect();
        let got = floats(&got[row * features..][..features]);
        assert_close(&format!("{what}, row {row}"), &got, &expected);
    }
}

#[test]
fn a_projection_is_added_to_the_hidden_states_at_every_row_count_in_every_format() {
    for kind in FORMATS {
        for rows in ROWS {
            check_project(kind, rows, 40, 256, rows % 2 == 0);
        }
    }
}

#[test]
fn a_projection_of_any_size_is_right() {
    for (features, cols) in [(1, 1), (3, 7), (17, 33), (16, 100), (35, 300), (100, 136), (7, 1000)]
    {
        for rows in [1, 9, 17, 70] {
            check_project(BlockType::BF16, rows, features, cols, true);
        }
    }
    for (features, cols) in [(1, 32), (19, 96), (64, 160), (33, 1120)] {
        for rows in [1, 9, 17, 70] {
            check_project(BlockType::Q8_0, rows, features, cols, true);
        }
    }
    for kind in [BlockType::Q4_K, BlockType::Q6_K] {
        for (features, cols) in [(1, 256), (21, 768), (66, 1280), (20, 2304)] {
            for rows in [1, 9, 17, 70] {
                check_project(kind, rows, features, cols, false);
            }
        }
    }
}

#[test]
fn widened_block_types_multiply_as_what_they_were_widened_to() {
    for kind in BlockType::ALL.into_iter().filter(|kind| !FORMATS.contains(kind)) {
        check_project(kind, 3, 33, 256, true);
    }
}

#[test]
fn rows_beyond_the_count_are_neither_read_nor_written() {
    let mut random = Random(3);
    for (bucket, rows) in [(8, 3), (16, 1), (64, 17), (128, 65)] {
        let gpu = gpu(5);
        let weights = Weights::random(&gpu, BlockType::Q8_0, 24, 64, &mut random);
        // Memory for the bucket's rows, of which the first are written.
        let (x, out) = (gpu.unwritten(bucket * 128, "x"), gpu.unwritten(bucket * 48, "hidden"));
        gpu.write(x, &random.bf16s(rows * 64));
        gpu.write(out, &random.bf16s(rows * 24));
        let next = preparation(&gpu, bucket, &[1.0; 24]);
        let launch = project::project(
            bucket,
            SMS,
            &project::ProjectParams {
                batch: batch(&gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]),
                weights: weights.matrix,
                bias: NONE,
                x,
                hidden: out,
                next,
                split: split(&gpu, SMS),
            },
        );
        gpu.run(&launch);
        for (left, row_bytes) in [(out, 48), (next.rows.scaled, 48), (next.rows.squares, 8)] {
            assert!(gpu.untouched(left.offset(rows * row_bytes), (bucket - rows) * row_bytes));
        }
    }
}

fn gate_up_once(
    gpu: &Gpu,
    pairs: &Weights,
    features: usize,
    norm: &[f32],
    x: &[bf16],
) -> Vec<bf16> {
    let rows = x.len() / norm.len();
    let act = gpu.unwritten(rows * features * 2, "act");
    let launch = gate_up::gate_up(
        rows,
        SMS,
        &gate_up::GateUpParams {
            batch: batch(gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]),
            pairs: pairs.matrix,
            rows: prepared(gpu, x, norm),
            act,
            split: split(gpu, SMS),
            eps: EPS,
            features: features as i32,
        },
    );
    gpu.run(&launch);
    gpu.read(act, rows * features)
}

fn check_gate_up(kinds: [BlockType; 2], features: usize, cols: usize, rows: usize) {
    let mut random = Random(rows as u64 + 7 * features as u64);
    let gpu = gpu(rows as u64);
    let pairs = Weights::pairs(&gpu, kinds, features, cols, &mut random);
    let norm: Vec<f32> = random.floats(cols).iter().map(|g| 0.2 + g * 0.1).collect();
    let x = hidden(rows, cols, &mut random);
    let got = gate_up_once(&gpu, &pairs, features, &norm, &x);
    for row in 0..rows {
        let (staged, scale) = normed(&x[row * cols..][..cols], &norm, EPS, true);
        let sums = pairs.times(&staged);
        let expected: Vec<(f64, f64)> = (0..features)
            .map(|f| {
                let at = f / 8 * 16 + f % 8;
                let (g, u) = (sums[at], sums[at + 8]);
                let (gate, up) = (g.value * scale, u.value * scale);
                let silu = gate / (1.0 + (-gate).exp());
                let errors = [g, u].map(|sum| sum.error(cols) * scale);
                // The derivative of silu is below 1.1.
                let bound = errors[0] * 1.1 * up.abs() + errors[1] * (silu.abs() + errors[0]);
                let value = silu * up;
                (value, bound + half_ulp(value) + value.abs() * 1e-6 + 1e-7)
            })
            .collect();
        let got = floats(&got[row * features..][..features]);
        let what = format!("{kinds:?} [{features}, {cols}], row {row} of {rows}");
        assert_close(&what, &got, &expected);
    }
}

#[test]
fn gate_and_up_make_activations_at_every_row_count_in_every_format() {
    for kind in FORMATS {
        for rows in ROWS {
            check_gate_up([kind; 2], 48, 256, rows);
        }
    }
}

#[test]
fn gate_and_up_may_differ_in_format_and_have_any_size() {
    for rows in [1, 9, 17, 65] {
        check_gate_up([BlockType::Q4_K, BlockType::BF16], 35, 512, rows);
        check_gate_up([BlockType::Q8_0, BlockType::Q6_K], 64, 768, rows);
        check_gate_up([BlockType::BF16; 2], 5, 19, rows);
    }
}

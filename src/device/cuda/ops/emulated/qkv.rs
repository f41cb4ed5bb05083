//! Queries, keys and values: the sums against f64, and the one launch against the two it replaces.

use super::Gpu;
use super::weights::{
    FORMATS, NONE, ROWS, SMS, Weights, assert_close, batch, gpu, normed, prepared, split,
};
use crate::device::cuda::ops::qkv::{self, QkvInput, QkvOutput};
use crate::device::cuda::ops::rope_append::{RopeAppendBuffers, rope_append};
use crate::device::cuda::pack::Source;
use crate::device::cuda::samples::{Random, random_bytes};
use crate::device::{BlockType, MatrixView, Shape};
use half::bf16;

const EPS: f32 = 1e-6;

/// Runs `qkv_sums` and returns its f32 sums.
fn sums_once(
    gpu: &Gpu,
    weights: [&Weights; 3],
    biases: Option<[&[f32]; 3]>,
    norm: &[f32],
    x: &[bf16],
) -> Vec<f32> {
    let rows = x.len() / norm.len();
    let width: usize = weights.iter().map(|w| w.rows).sum();
    let y = gpu.unwritten(rows * width * 4, "y");
    let [q_bias, k_bias, v_bias] =
        biases.map_or([NONE; 3], |biases| biases.map(|b| gpu.upload(b, "bias")));
    let input = QkvInput {
        batch: batch(gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]),
        q: weights[0].matrix,
        k: weights[1].matrix,
        v: weights[2].matrix,
        q_bias,
        k_bias,
        v_bias,
        rows: prepared(gpu, x, norm),
        split: split(gpu, SMS),
        eps: EPS,
        reserved: 0,
    };
    gpu.run(&qkv::qkv_sums(rows, SMS, &input, y));
    gpu.read(y, rows * width)
}

fn check_sums(kinds: [BlockType; 3], sizes: [usize; 3], rows: usize, cols: usize, biased: bool) {
    let mut random = Random(rows as u64 + 77 * cols as u64);
    let gpu = gpu(rows as u64);
    let weights: [Weights; 3] =
        std::array::from_fn(|i| Weights::random(&gpu, kinds[i], sizes[i], cols, &mut random));
    let biases: [Vec<f32>; 3] = std::array::from_fn(|i| random.floats(sizes[i]));
    let norm: Vec<f32> = random.floats(cols).iter().map(|g| 1.0 + g * 0.5).collect();
    let x = random.bf16s(rows * cols);
    let got = sums_once(
        &gpu,
        weights.each_ref(),
        biased.then(|| biases.each_ref().map(Vec::as_slice)),
        &norm,
        &x,
    );
    let width: usize = sizes.iter().sum();
    for row in 0..rows {
        let x = &x[row * cols..][..cols];
        for rounded in [true, false] {
            let (staged, scale) = normed(x, &norm, EPS, rounded);
            let mut expected = Vec::new();
            for (weights, bias) in weights.iter().zip(&biases) {
                for (sum, bias) in weights.times(&staged).iter().zip(bias) {
                    let bias = if biased { f64::from(*bias) } else { 0.0 };
                    let value = sum.value * scale + bias;
                    let rounding = if rounded { 0.0 } else { 2f64.powi(-8) * sum.magnitude };
                    let bound = (rounding + sum.error(cols)) * scale + value.abs() * 1e-6 + 1e-7;
                    expected.push((value, bound));
                }
            }
            let got: Vec<f64> = got[row * width..][..width].iter().map(|v| f64::from(*v)).collect();
            let what = format!("{kinds:?} {sizes:?} {cols} columns, row {row} of {rows}");
            assert_close(&format!("{what}, rounded {rounded}"), &got, &expected);
        }
    }
}

#[test]
fn queries_keys_and_values_are_normed_sums_at_every_row_count_in_every_format() {
    for kind in FORMATS {
        for rows in ROWS {
            check_sums([kind; 3], [32, 16, 16], rows, 256, rows % 2 == 1);
        }
    }
}

#[test]
fn queries_keys_and_values_may_differ_in_format_and_have_any_size() {
    use BlockType::{BF16, Q4_K, Q6_K, Q8_0};
    for rows in [1, 9, 20, 65] {
        check_sums([Q4_K, Q4_K, Q6_K], [96, 32, 32], rows, 512, true);
        check_sums([Q8_0, BF16, Q6_K], [65, 3, 18], rows, 768, true);
        check_sums([BF16, BF16, BF16], [10, 5, 5], rows, 77, true);
        check_sums([Q8_0, Q8_0, BF16], [24, 8, 8], rows, 1152, false);
    }
}

/// What both ways leave for one head shape: queries, then the pool.
struct Ways {
    one_launch: (Vec<u16>, Vec<u16>),
    two_launches: (Vec<u16>, Vec<u16>),
}

/// Runs the one launch and the two on the same weights, packed differently.
fn both_ways(kinds: [BlockType; 3], heads: [usize; 2], head_dim: usize, rows: usize) -> Ways {
    let [heads, kv_heads] = heads;
    let (cols, page_tokens, pages, positions) = (256, 16, rows.div_ceil(16) + 1, 40);
    let mut random = Random((rows + 1000 * head_dim) as u64);
    let gpu = gpu(rows as u64);
    let shape = Shape {
        hidden: cols,
        heads,
        kv_heads,
        head_dim,
        ffn: 0,
        vocab: 0,
        rms_eps: EPS,
        layers: 2,
        page_tokens,
        page_bytes: 2 * 2 * kv_heads * page_tokens * head_dim * 2,
    };
    let sizes = [heads, kv_heads, kv_heads].map(|h| h * head_dim);
    let bytes: [Vec<u8>; 3] =
        std::array::from_fn(|i| random_bytes(kinds[i], sizes[i], cols, &mut random));
    let packed = |i: usize, rotary: bool| {
        let (rows, kind) = (sizes[i], kinds[i]);
        let view = MatrixView { name: "weights", rows, cols, kind, bytes: &bytes[i] };
        let plain = Source::Plain(view);
        let source = if rotary { Source::rotary(view, head_dim).unwrap() } else { plain };
        Weights::packed(&gpu, &source).matrix
    };
    let mut batch = batch(&gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]);
    let at: Vec<i32> = (0..rows).map(|_| random.below(positions) as i32).collect();
    let slots: Vec<i32> = (0..rows).map(|t| ((t * 37) % (pages * 16 - 5)) as i32).collect();
    batch.positions = gpu.upload(&at, "positions");
    batch.slots = gpu.upload(&slots, "slots");
    let biases: [_; 3] = std::array::from_fn(|i| gpu.upload(&random.floats(sizes[i]), "bias"));
    let rope = gpu.upload(&random.floats(positions * head_dim), "rope");
    let norm = random.floats(cols);
    let hidden = prepared(&gpu, &random.bf16s(rows * cols), &norm);
    let input = |rotary| QkvInput {
        batch,
        q: packed(0, rotary),
        k: packed(1, rotary),
        v: packed(2, false),
        q_bias: biases[0],
        k_bias: biases[1],
        v_bias: biases[2],
        rows: hidden,
        split: split(&gpu, SMS),
        eps: EPS,
        reserved: 0,
    };
    let (q_count, pool_count) = (rows * heads * head_dim, pages * shape.page_bytes / 2);
    let memory = || {
        let q = gpu.unwritten(q_count * 2, "q");
        (q, gpu.upload(&vec![0x1234_u16; pool_count], "pool"))
    };
    let left = |(q, pool)| (gpu.read(q, q_count), gpu.read(pool, pool_count));

    let (q, pool) = memory();
    let output = QkvOutput { rope, q, pool };
    gpu.run(&qkv::qkv(rows, SMS, &shape, 1, &input(true), &output));
    let one_launch = left((q, pool));

    let (q, pool) = memory();
    let y = gpu.unwritten(rows * sizes.iter().sum::<usize>() * 4, "y");
    gpu.run(&qkv::qkv_sums(rows, SMS, &input(false), y));
    let buffers = RopeAppendBuffers { batch, y, rope, q_norm: NONE, k_norm: NONE, q, pool };
    gpu.run(&rope_append(rows, &shape, 1, &buffers));
    Ways { one_launch, two_launches: left((q, pool)) }
}

#[test]
fn one_launch_leaves_the_bits_of_sums_and_rotation_apart() {
    use BlockType::{BF16, Q4_K, Q6_K, Q8_0};
    let shapes = [(16, [3, 1]), (32, [2, 2]), (64, [4, 1]), (80, [2, 1]), (128, [2, 1])];
    for (i, rows) in ROWS.into_iter().enumerate() {
        let (head_dim, heads) = shapes[i % shapes.len()];
        let kinds = [[BF16; 3], [Q4_K, Q4_K, Q6_K], [Q8_0; 3], [Q6_K, Q8_0, BF16]][i % 4];
        let ways = both_ways(kinds, heads, head_dim, rows);
        let what = format!("{kinds:?} D {head_dim} H, G {heads:?}, {rows} rows");
        assert!(ways.one_launch.0 == ways.two_launches.0, "queries: {what}");
        assert!(ways.one_launch.1 == ways.two_launches.1, "pool: {what}");
    }
}

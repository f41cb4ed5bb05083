//! What the tests of the matrix kernels share: random weights on the device and in f64, and bounds.
//!
//! Sums in f32 of K products err by at most K 2^-24 of the sum of their magnitudes; a bf16 result
//! by half a unit in its last place; and a norm's x g is rounded to bf16 once, which the tests do
//! too where they compare closely, and bound by 2^-8 of the magnitudes where they compare with the
//! unrounded definition.

use super::{ARCHS, Gpu};
use crate::device::blocks::dequantize_row;
use crate::device::cuda::layout::{Address, Batch};
use crate::device::cuda::ops::matrix::{Matrix, Preparation, PreparedRows, SplitSums};
use crate::device::cuda::pack::{Format, Packing, Source};
use crate::device::cuda::samples::{Random, random_bytes};
use crate::device::{BlockType, MatrixView};
use half::bf16;

/// The kernel files these tests run.
const SUBJECTS: [&str; 8] =
    ["embed", "gate_up", "head", "labels", "project", "qkv", "qkv_sums", "rope_append"];

/// A GPU with them; the seed also picks the architecture.
pub(super) fn gpu(seed: u64) -> Gpu {
    Gpu::new(&SUBJECTS, ARCHS[seed as usize % ARCHS.len()], seed)
}

/// No bias, no norm.
pub(super) const NONE: Address = Address(0);

/// Row counts around every tile's edges.
pub(super) const ROWS: [usize; 11] = [1, 2, 3, 7, 8, 9, 16, 17, 64, 65, 100];

/// The formats the device has, with the block type that is kept as each.
pub(super) const FORMATS: [BlockType; 4] =
    [BlockType::BF16, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K];

/// A random matrix: on the device, and what its elements are there.
pub(super) struct Weights {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) values: Vec<f64>,
    pub(super) matrix: Matrix,
    pub(super) bytes: u64,
}

impl Weights {
    pub(super) fn random(
        gpu: &Gpu,
        kind: BlockType,
        rows: usize,
        cols: usize,
        random: &mut Random,
    ) -> Self {
        Self::of(gpu, kind, rows, cols, &random_bytes(kind, rows, cols, random))
    }

    pub(super) fn of(gpu: &Gpu, kind: BlockType, rows: usize, cols: usize, bytes: &[u8]) -> Self {
        let view = MatrixView { name: "weights", rows, cols, kind, bytes };
        Self::packed(gpu, &Source::Plain(view))
    }

    /// Two random matrices packed as pairs.
    pub(super) fn pairs(
        gpu: &Gpu,
        kinds: [BlockType; 2],
        rows: usize,
        cols: usize,
        random: &mut Random,
    ) -> Self {
        let bytes = kinds.map(|kind| random_bytes(kind, rows, cols, random));
        let view = |i: usize| {
            let (kind, bytes): (_, &[u8]) = (kinds[i], &bytes[i]);
            MatrixView { name: "weights", rows, cols, kind, bytes }
        };
        Self::packed(gpu, &Source::Pairs([view(0), view(1)]))
    }

    /// Packed as `source` says; `values` in the order of the panels.
    pub(super) fn packed(gpu: &Gpu, source: &Source<'_>) -> Self {
        let packing = source.packing();
        let Packing { rows, cols, .. } = packing;
        let packed = source.pack();
        let mut decoded = vec![0.0; cols];
        let mut values = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            match source.row(row) {
                Some((kind, bytes)) => dequantize_row(kind, bytes, &mut decoded),
                None => decoded.fill(0.0),
            }
            values.extend(decoded.iter().map(|v| match packing.format {
                Format::Bf16 => bf16::from_f32(*v).to_f64(),
                _ => f64::from(*v),
            }));
        }
        let data = gpu.upload(&packed, "weights");
        Self { rows, cols, values, matrix: Matrix::new(data, &packing), bytes: packed.len() as u64 }
    }

    /// `W x` for one row, and the sums of the products' magnitudes.
    pub(super) fn times(&self, x: &[f64]) -> Vec<Sum> {
        assert_eq!(x.len(), self.cols);
        self.values
            .chunks_exact(self.cols)
            .map(|row| {
                let mut sum = Sum::default();
                for (w, x) in row.iter().zip(x) {
                    sum.value += w * x;
                    sum.magnitude += (w * x).abs();
                }
                sum
            })
            .collect()
    }
}

/// A sum of products.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) value: f64,
    pub(super) magnitude: f64,
}

impl Sum {
    /// What summing `count` products in f32 may be off by. A K-quant's group and its minimum cancel
    /// partly, which the magnitudes of decoded weights do not show: hence a constant on top of K.
    pub(super) fn error(&self, count: usize) -> f64 {
        (count + 64) as f64 * 2f64.powi(-23) * self.magnitude
    }
}

/// A row's hidden states times the norm's weight as the kernels stage them, rounded to bf16, and
/// the scale that the sums are then multiplied by; or unrounded.
pub(super) fn normed(hidden: &[bf16], norm: &[f32], eps: f32, rounded: bool) -> (Vec<f64>, f64) {
    let squares: f64 = hidden.iter().map(|x| x.to_f64().powi(2)).sum();
    let scale = 1.0 / (squares / hidden.len() as f64 + f64::from(eps)).sqrt();
    let staged = hidden.iter().zip(norm).map(|(x, g)| match rounded {
        true => bf16::from_f32(x.to_f32() * g).to_f64(),
        false => x.to_f64() * f64::from(*g),
    });
    (staged.collect(), scale)
}

/// The same rows as kernels that write hidden states leave them: `x g` rounded, and the sum of
/// squares of every 16 columns, in their order.
pub(super) fn prepared(gpu: &Gpu, hidden: &[bf16], norm: &[f32]) -> PreparedRows {
    let rows = hidden.chunks_exact(norm.len());
    let scaled: Vec<bf16> = rows
        .clone()
        .flat_map(|row| row.iter().zip(norm).map(|(x, g)| bf16::from_f32(x.to_f32() * g)))
        .collect();
    let squares: Vec<f32> = rows.flat_map(|row| row.chunks(16).map(squares_of_panel)).collect();
    PreparedRows {
        scaled: gpu.upload(&scaled, "scaled rows"),
        squares: gpu.upload(&squares, "squares"),
    }
}

/// Four columns in a lane, four lanes in a butterfly.
pub(super) fn squares_of_panel(columns: &[bf16]) -> f32 {
    let mut lanes = [0.0_f32; 4];
    for (lane, four) in lanes.iter_mut().zip(columns.chunks(4)) {
        *lane = four.iter().fold(0.0, |sum, x| x.to_f32().mul_add(x.to_f32(), sum));
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}

/// Room for what a kernel that writes `rows` rows of `norm.len()` columns leaves for `norm`.
pub(super) fn preparation(gpu: &Gpu, rows: usize, norm: &[f32]) -> Preparation {
    let [scaled, squares] = PreparedRows::bytes(rows, norm.len());
    let rows = PreparedRows {
        scaled: gpu.unwritten(scaled, "scaled rows"),
        squares: gpu.unwritten(squares, "squares"),
    };
    Preparation { norm: gpu.upload(norm, "norm"), rows }
}

/// Asserts that `left` is what the hidden states `rows` are for `norm`, bit for bit.
pub(super) fn assert_prepared(gpu: &Gpu, left: &Preparation, rows: &[bf16], norm: &[f32]) {
    let want = prepared(gpu, rows, norm);
    let count = rows.len() / norm.len() * norm.len().div_ceil(16);
    let scaled = |at| gpu.read::<u16>(at, rows.len());
    let squares = |at| gpu.read::<u32>(at, count);
    assert_eq!(scaled(left.rows.scaled), scaled(want.scaled), "rows times the norm's weight");
    assert_eq!(squares(left.rows.squares), squares(want.squares), "sums of squares");
}

/// SMs that these tests launch for: enough that tiles of 64 tokens are split.
pub(super) const SMS: usize = 16;

/// Room for the sums of kernels that split K.
pub(super) fn split(gpu: &Gpu, sms: usize) -> SplitSums {
    SplitSums {
        sums: gpu.unwritten(SplitSums::bytes(sms), "split sums"),
        arrivals: gpu.upload(&vec![0_u8; SplitSums::arrivals_bytes(sms)], "arrivals"),
    }
}

/// What rounding `value` to bf16 may change.
pub(super) fn half_ulp(value: f64) -> f64 {
    2f64.powi(value.abs().max(1e-30).log2().floor() as i32 - 8)
}

/// A staged batch with `counts` and whichever arrays a test needs.
pub(super) fn batch(gpu: &Gpu, counts: [i32; 8]) -> Batch {
    Batch { counts: gpu.upload(&counts, "counts"), ..Batch::default() }
}

/// Every value within its bound of what it should be.
pub(super) fn assert_close(what: &str, got: &[f64], expected: &[(f64, f64)]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, (expected, bound))) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= *bound,
            "{what}: element {i} is {got}, not {expected} +- {bound}"
        );
    }
}

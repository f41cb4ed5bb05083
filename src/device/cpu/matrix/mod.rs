//! SIGNATURES ONLY (first commit of the branch, so that callers can be written against them).
//!
//! `simd` is the lane level (`SimdLevel::from_env()?`), `threads` the pool (`Threads::from_env()?`).
//! All `[T, N]` buffers are row-major f32.

use crate::device::cpu::{simd::SimdLevel, threads::Threads};
use crate::device::{BlockType, MatrixView};
use crate::error::DeviceError;

/// A packed weight matrix, `[rows, cols]`.
pub struct Matrix {}

impl Matrix {
    pub fn pack(view: MatrixView<'_>) -> Result<Self, DeviceError> { unimplemented!() }
    pub fn rows(&self) -> usize { unimplemented!() }
    pub fn cols(&self) -> usize { unimplemented!() }
    pub fn kind(&self) -> BlockType { unimplemented!() }
    pub fn bytes(&self) -> usize { unimplemented!() }
    /// Which form of the activations this matrix reads; combine with `|`.
    pub fn need(&self) -> Need { unimplemented!() }
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) { unimplemented!() }
}

/// Forms of activations that are wanted.
#[derive(Clone, Copy)]
pub struct Need(u8);
impl std::ops::BitOr for Need { type Output = Self; fn bitor(self, o: Self) -> Self { Self(self.0 | o.0) } }

/// Prepared input rows, reusable without allocating once grown.
#[derive(Default)]
pub struct Activations {}

impl Activations {
    pub fn new() -> Self { Self::default() }
    /// Copies `x: [rows, cols]` and builds the forms in `need`.
    pub fn prepare(&mut self, threads: &Threads, simd: SimdLevel, x: &[f32], rows: usize, cols: usize, need: Need) { unimplemented!() }
    /// As `prepare`, with row `t` written by `fill(t, &mut row)` on a worker: fuse the RMS norm here.
    pub fn prepare_with(&mut self, threads: &Threads, simd: SimdLevel, rows: usize, cols: usize, need: Need, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) { unimplemented!() }
    pub fn rows(&self) -> usize { unimplemented!() }
    pub fn cols(&self) -> usize { unimplemented!() }
    /// Row `t` as it was filled, `[cols]`.
    pub fn row(&self, t: usize) -> &[f32] { unimplemented!() }
}

/// One product of `multiply_each`: `out[t, n] (+)= W[n, :] · x[t, :] + bias[n]`.
pub struct Product<'a> {
    pub matrix: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    /// Adds to `out` instead of overwriting it.
    pub add: bool,
    /// `[T, N]`.
    pub out: &'a mut [f32],
}

/// Several matrices over the same rows in one go (q, k, v: one dispatch).
pub fn multiply_each(threads: &Threads, simd: SimdLevel, x: &Activations, products: &mut [Product<'_>]) { unimplemented!() }
pub fn multiply(threads: &Threads, simd: SimdLevel, w: &Matrix, bias: Option<&[f32]>, x: &Activations, out: &mut [f32]) { unimplemented!() }
pub fn multiply_add(threads: &Threads, simd: SimdLevel, w: &Matrix, bias: Option<&[f32]>, x: &Activations, out: &mut [f32]) { unimplemented!() }
/// `out[t, f] = silu(gate x) * (up x)`, `[T, F]`.
pub fn multiply_gate_up(threads: &Threads, simd: SimdLevel, gate: &Matrix, up: &Matrix, x: &Activations, out: &mut [f32]) { unimplemented!() }
/// `out[i] = W[rows[i], :] · x[x_row, :]`, the same bits as the full product.
pub fn multiply_rows_subset(threads: &Threads, simd: SimdLevel, w: &Matrix, rows: &[usize], x: &Activations, x_row: usize, out: &mut [f32]) { unimplemented!() }

/// What a streaming head found in one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSummary {
    /// Index of the largest logit, ties to the lower one.
    pub id: usize,
    pub logit: f32,
    /// `ln Σ exp(logit)`; 0 unless asked for.
    pub log_sum_exp: f32,
    /// The logit of this row's target; 0 without one.
    pub target_logit: f32,
    /// No NaN and no infinity among the logits.
    pub finite: bool,
}

/// Streams a head over all rows of `x` without storing rows of logits; keeps its scratch.
#[derive(Default)]
pub struct HeadScan {}
impl HeadScan {
    /// One summary per row of `x`. `targets` is empty or has one entry per row.
    pub fn scan(&mut self, threads: &Threads, simd: SimdLevel, w: &Matrix, x: &Activations, log_sum_exp: bool, targets: &[Option<usize>]) -> &[RowSummary] { unimplemented!() }
}

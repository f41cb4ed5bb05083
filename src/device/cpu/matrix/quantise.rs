//! Rows of f32 to int8, by the rules of the file formats that quantised weights are made for.
//!
//! Weights in blocks of 32 meet blocks of 32 ([`Block32`], the rule of Q8_0 and Q8_1), K-quants
//! meet blocks of 256 ([`Block256`], the rule of Q8_K). Every engine that follows these rules sees
//! the same rounded activations, so their results differ by the order of f32 sums only; and a
//! K-quant needs one f32 multiplication for 256 columns, the scales inside being whole numbers.
//!
//! Invariant: every `q` is within ±127 and the nearest to `x / scale`; sums are those of the `q`.
//! Read next: `integer` and `super_blocks`, which multiply them.

use super::layout::{BLOCK, SUPER_BLOCK};
use crate::device::cpu::simd::{Kernel, Simd};
use half::f16;

/// 32 columns of one row: `x ≈ scale * q`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(super) struct Block32 {
    pub q: [i8; BLOCK],
    /// Largest magnitude over 127, rounded to f16; NaN if an element was not finite.
    pub scale: f32,
    /// The scale, before its rounding, times the sum of all `q`, rounded to f16: what the minimum
    /// of a weight is multiplied with.
    pub sum: f32,
    /// The sum of all `q`, negated: what takes a weight's offset off again.
    pub minus_sum: i32,
}

/// 256 columns of one row: `x ≈ scale * q`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(super) struct Block256 {
    pub q: [i8; SUPER_BLOCK],
    /// The element of largest magnitude is -127 of these; NaN if an element was not finite.
    pub scale: f32,
    /// The sums of 32 `q` each, negated.
    pub minus_sums: [i16; 8],
    /// The sums of 16 `q` each, negated.
    pub minus_half_sums: [i16; 16],
}

/// A block of int8 columns.
pub(super) trait Block: Copy {
    /// All columns zero.
    const ZERO: Self;
    /// Columns of a block.
    const COLS: usize;
    /// The block of `x`, which has [`Block::COLS`] values.
    fn quantise<S: Simd>(simd: S, x: &[f32]) -> Self;
}

/// Quantises one padded row into blocks `stride` apart.
pub(super) struct Quantise<'a, B> {
    /// Whole blocks.
    pub x: &'a [f32],
    /// Valid for writes of a block at every multiple of `stride` below the row's blocks.
    pub to: *mut B,
    pub stride: usize,
}

impl<B: Block> Kernel for Quantise<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (b, x) in self.x.chunks_exact(B::COLS).enumerate() {
            let block = B::quantise(simd, x);
            // SAFETY: by the contract of the field.
            unsafe { self.to.add(b * self.stride).write(block) };
        }
    }
}

/// Below this magnitude a block counts as zero: its reciprocal would overflow.
const TINY: f32 = 1e-30;

/// The largest value and the largest negated value, at least 0 each; `None` if a value is not
/// finite.
#[inline(always)]
fn extremes<S: Simd>(simd: S, x: &[f32]) -> Option<(f32, f32)> {
    let zero = simd.splat(0.0);
    let (mut above, mut below, mut poison) = (zero, zero, zero);
    for x in x.chunks_exact(S::LANES) {
        let v = simd.load(x);
        above = simd.max(v, above);
        below = simd.max(simd.sub(zero, v), below);
        // Zero, unless a value is a NaN or an infinity.
        poison = simd.fma(v, zero, poison);
    }
    (simd.sum(poison) == 0.0).then(|| (simd.max_lane(above), simd.max_lane(below)))
}

/// `round(x * inverse)` of 16 values, and their sum.
#[inline(always)]
fn round_half<S: Simd>(simd: S, x: &[f32], inverse: S::F32, q: &mut [i8]) -> i32 {
    assert!(x.len() == 16 && q.len() == 16, "half a block");
    let mut sum = 0;
    for i in (0..16).step_by(S::LANES) {
        let rounded = simd.round_to_i32(simd.mul(simd.load(&x[i..]), inverse));
        // SAFETY: `i + L <= 16`; lanes are within 127 of zero: `|x|` is at most the largest
        // magnitude, which `inverse` takes to 127 but for a rounding.
        unsafe { simd.store_i8_ptr(q.as_mut_ptr().add(i), rounded) };
        sum += simd.sum_i32(rounded);
    }
    sum
}

/// Rounds to f16, as the format stores it; what f16 cannot hold stays as it is.
#[inline(always)]
fn through_half(v: f32) -> f32 {
    let rounded = f16::from_f32(v).to_f32();
    if rounded.is_finite() { rounded } else { v }
}

impl Block for Block32 {
    const ZERO: Self = Self { q: [0; BLOCK], scale: 0.0, sum: 0.0, minus_sum: 0 };
    const COLS: usize = BLOCK;

    #[inline(always)]
    fn quantise<S: Simd>(simd: S, x: &[f32]) -> Self {
        let mut block = Self::ZERO;
        let Some((above, below)) = extremes(simd, x) else {
            return Self { scale: f32::NAN, sum: f32::NAN, ..block };
        };
        let largest = above.max(below);
        if largest < TINY {
            return block;
        }
        let inverse = simd.splat(127.0 / largest);
        let mut sum = 0;
        for (x, q) in x.chunks_exact(16).zip(block.q.chunks_exact_mut(16)) {
            sum += round_half(simd, x, inverse, q);
        }
        let scale = largest / 127.0;
        block.scale = through_half(scale);
        block.sum = through_half(scale * sum as f32);
        block.minus_sum = -sum;
        block
    }
}

impl Block for Block256 {
    const ZERO: Self =
        Self { q: [0; SUPER_BLOCK], scale: 0.0, minus_sums: [0; 8], minus_half_sums: [0; 16] };
    const COLS: usize = SUPER_BLOCK;

    #[inline(always)]
    fn quantise<S: Simd>(simd: S, x: &[f32]) -> Self {
        let mut block = Self::ZERO;
        let Some((above, below)) = extremes(simd, x) else {
            return Self { scale: f32::NAN, ..block };
        };
        if above.max(below) < TINY {
            return block;
        }
        // The first element of the largest magnitude, with its sign.
        let heaviest = if above > below {
            above
        } else if below > above {
            -below
        } else {
            *x.iter().find(|x| x.abs() == above).expect("one of the values")
        };
        let inverse = -127.0 / heaviest;
        for (h, (x, q)) in x.chunks_exact(16).zip(block.q.chunks_exact_mut(16)).enumerate() {
            // At most 16 * 127: fits.
            let sum = round_half(simd, x, simd.splat(inverse), q) as i16;
            block.minus_half_sums[h] = -sum;
            block.minus_sums[h / 2] -= sum;
        }
        block.scale = 1.0 / inverse;
        block
    }
}

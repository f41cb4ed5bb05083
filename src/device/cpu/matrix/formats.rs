//! What the kernels must know of each type in blocks of 32: its scales, and how its quants unpack.
//!
//! A [`Format`] turns a cell into eight vectors of bytes and gives each row a scale and, where it
//! has one, a minimum: `w = scale * (q - offset) + minimum`. Offsets of bytes follow `layout`.
//! Invariant: unpacked quants are the file's, exactly. Read next: `integer`, which calls this;
//! `super_formats` is the same for the K-quants, `plain` for types without scales.

use super::layout::{HALVES, VECTOR};
use crate::device::cpu::simd::Simd;

/// A quantised type in blocks of 32. In all methods `cell` points to one cell of the type, readable
/// whole, and `row` is a multiple of the lanes below 16.
pub(super) trait Format {
    /// Bytes of a cell.
    const CELL_BYTES: usize;
    /// Whether weights have a minimum.
    const MINIMUM: bool = false;

    /// The offset of a quant as [`Format::quads`] returns it: `2^bits`, or 0.
    #[inline(always)]
    fn offset_bits<S: Simd>() -> Option<i32> {
        None
    }

    /// The scales of the rows from `row` on.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, row: usize) -> S::F32 {
        // SAFETY: a cell begins with its scales.
        unsafe { halves(simd, cell, row) }
    }

    /// The minimums of the rows from `row` on; not called where there are none.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn minimums<S: Simd>(simd: S, cell: *const u8, row: usize) -> S::F32 {
        // SAFETY: they follow the scales.
        unsafe { halves(simd, cell.add(HALVES), row) }
    }

    /// The eight quads of the rows from `row` on.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, row: usize) -> [S::Bytes; 8];

    /// For each row `acc` plus the dot of the quads with the 32 bytes at `x`, exact.
    ///
    /// # Safety
    /// Every `x` is readable for 32 bytes, all above -128.
    unsafe fn dot<S: Simd, const R: usize>(
        simd: S,
        acc: [S::I32; R],
        w: [S::Bytes; 8],
        x: [*const i8; R],
    ) -> [S::I32; R];
}

/// Nibbles of `group`, see `layout`.
///
/// # Safety
/// Four vectors per group are readable from `at`.
#[inline(always)]
pub(super) unsafe fn nibbles<S: Simd>(
    simd: S,
    at: *const u8,
    group: usize,
    row: usize,
) -> [S::Bytes; 8] {
    let low = simd.splat_u8(0x0f);
    let mut quads = [low; 8];
    for v in 0..4 {
        // SAFETY: by the contract; a vector has four bytes for each of the 16 rows.
        let both = unsafe { simd.load_bytes_ptr(at.add((4 * group + v) * VECTOR + 4 * row)) };
        quads[v] = simd.and(both, low);
        quads[v + 4] = simd.and(simd.shift_right::<4>(both), low);
    }
    quads
}

/// Adds bit `q` of the bytes at `at` to quad `q` as its fifth bit.
///
/// # Safety
/// A vector is readable from `at`.
#[inline(always)]
pub(super) unsafe fn fifth_bits<S: Simd>(
    simd: S,
    at: *const u8,
    row: usize,
    quads: &mut [S::Bytes; 8],
) {
    // SAFETY: by the contract.
    let bits = unsafe { simd.load_bytes_ptr(at.add(4 * row)) };
    let fifth = simd.splat_u8(0x10);
    let shifted = [
        simd.shift_left::<4>(bits),
        simd.shift_left::<3>(bits),
        simd.shift_left::<2>(bits),
        simd.shift_left::<1>(bits),
        bits,
        simd.shift_right::<1>(bits),
        simd.shift_right::<2>(bits),
        simd.shift_right::<3>(bits),
    ];
    for q in 0..8 {
        quads[q] = simd.or(quads[q], simd.and(shifted[q], fifth));
    }
}

/// The `f16` values at `at` of the rows from `row` on.
///
/// # Safety
/// 32 bytes are readable from `at`.
#[inline(always)]
pub(super) unsafe fn halves<S: Simd>(simd: S, at: *const u8, row: usize) -> S::F32 {
    // SAFETY: by the contract; f16 has no invalid bits and the load takes any alignment.
    unsafe { simd.load_f16_ptr(at.cast::<half::f16>().add(row)) }
}

/// The addresses `bytes` further.
///
/// # Safety
/// They are within the objects that `x` point into.
#[inline(always)]
pub(super) unsafe fn further<const R: usize>(
    mut x: [*const i8; R],
    bytes: usize,
) -> [*const i8; R] {
    for x in &mut x {
        // SAFETY: by the contract of this function.
        *x = unsafe { x.add(bytes) };
    }
    x
}

macro_rules! simple_format {
    ($(#[$doc:meta])* $name:ident, $minimum:literal, $offset_bits:expr, $five_bits:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Format for $name {
            const CELL_BYTES: usize =
                HALVES * (1 + $minimum as usize) + VECTOR * (4 + $five_bits as usize);
            const MINIMUM: bool = $minimum;

            #[inline(always)]
            fn offset_bits<S: Simd>() -> Option<i32> {
                $offset_bits
            }

            #[inline(always)]
            unsafe fn quads<S: Simd>(simd: S, cell: *const u8, row: usize) -> [S::Bytes; 8] {
                // SAFETY: the fifth bits, if any, and then the nibbles follow the halves.
                unsafe {
                    let bits = cell.add(HALVES * (1 + $minimum as usize));
                    let mut quads = nibbles(simd, bits.add(VECTOR * $five_bits as usize), 0, row);
                    if $five_bits {
                        fifth_bits(simd, bits, row, &mut quads);
                    }
                    quads
                }
            }

            #[inline(always)]
            unsafe fn dot<S: Simd, const R: usize>(
                simd: S,
                acc: [S::I32; R],
                w: [S::Bytes; 8],
                x: [*const i8; R],
            ) -> [S::I32; R] {
                // SAFETY: the contract is the same. In 16 bits eight quads of four bits reach
                // 2 * 8 * 15 * 127 = 30480, four quads of five bits 2 * 4 * 31 * 127 = 31496.
                unsafe {
                    if S::WIDE_DOTS || !$five_bits {
                        return simd.dot(acc, w, x);
                    }
                    let [a, b, c, d, e, f, g, h] = w;
                    let first = simd.dot(acc, [a, b, c, d], x);
                    simd.dot(first, [e, f, g, h], further(x, 16))
                }
            }
        }
    };
}

simple_format!(
    /// `d * (q - 8)`, four bits.
    Q40, false, Some(3), false
);
simple_format!(
    /// `d * q + m`, four bits.
    Q41, true, None, false
);
simple_format!(
    /// `d * (q - 16)`, five bits.
    Q50, false, Some(4), true
);
simple_format!(
    /// `d * q + m`, five bits.
    Q51, true, None, true
);

/// `d * q`, signed bytes.
pub(super) struct Q80;

impl Format for Q80 {
    const CELL_BYTES: usize = HALVES + 8 * VECTOR;

    #[inline(always)]
    fn offset_bits<S: Simd>() -> Option<i32> {
        S::SIGNED_OFFSET_BITS
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, row: usize) -> [S::Bytes; 8] {
        let mut quads = [simd.splat_u8(0); 8];
        for (q, quad) in quads.iter_mut().enumerate() {
            // SAFETY: eight vectors follow the scales.
            let bytes = unsafe { simd.load_bytes_ptr(cell.add(HALVES + q * VECTOR + 4 * row)) };
            *quad = simd.signed_weights(bytes);
        }
        quads
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const R: usize>(
        simd: S,
        acc: [S::I32; R],
        w: [S::Bytes; 8],
        x: [*const i8; R],
    ) -> [S::I32; R] {
        // SAFETY: the contract is the same.
        unsafe { simd.dot_signed(acc, w, x) }
    }
}

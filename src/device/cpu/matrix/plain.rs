//! How the plain types (F32, F16, BF16) unpack: columns of a cell as f32.
//!
//! Invariant: the values are the file's, exactly. Read next: `float`, which calls this.

use super::layout::PANEL;
use crate::device::cpu::simd::Simd;

/// A plain type. `cell` points to one cell of 32 columns, readable whole.
pub(super) trait PlainFormat {
    /// Bytes of a cell.
    const CELL_BYTES: usize;

    /// Columns `2 pair` and `2 pair + 1` of the rows from `row` on.
    ///
    /// # Safety
    /// See the trait; `pair < 16`, `row` is a multiple of the lanes below 16.
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2];
}

/// Single precision.
pub(super) struct F32;

impl PlainFormat for F32 {
    const CELL_BYTES: usize = 32 * 4 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column][row]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<f32>().add(2 * pair * PANEL + row);
            [simd.load_ptr(at), simd.load_ptr(at.add(PANEL))]
        }
    }
}

/// Half precision.
pub(super) struct F16;

impl PlainFormat for F16 {
    const CELL_BYTES: usize = 32 * 2 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column][row]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<half::f16>().add(2 * pair * PANEL + row);
            [simd.load_f16_ptr(at), simd.load_f16_ptr(at.add(PANEL))]
        }
    }
}

/// The upper half of single precision.
pub(super) struct Bf16;

impl PlainFormat for Bf16 {
    const CELL_BYTES: usize = 32 * 2 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column / 2][row][2]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<half::bf16>().add(2 * (pair * PANEL + row));
            let (first, second) = simd.load_bf16_pairs_ptr(at);
            [first, second]
        }
    }
}

//! Weights in blocks of 32 times int8 activations: one kernel body for every type and row count.
//!
//! Per 32 columns: unpack eight quads of 8 or 16 weight rows once, then for each activation row
//! `acc += (scale_w * scale_x) * dot + minimum_w * sum_x`, where `dot` is exact in integers, the
//! offsets of the quants included, and `acc` is one f32 lane per weight row. Nothing is summed
//! across lanes. A decode step keeps `acc` in registers; more rows keep it in the first-level
//! cache; the operations are the same.
//!
//! Cost with AVX2, per 8 weight rows and 32 columns of four-bit weights: 12 instructions to unpack,
//! then 8 broadcasts, 8 `vpmaddubsw` and some 13 others per activation row. With VNNI the 8 dots
//! take their broadcasts along and serve 16 rows. Read next: `formats`.

#![expect(
    clippy::needless_range_loop,
    reason = "`part` counts sums and weight rows alike, `r` several arrays"
)]

use super::activations::TILE;
use super::formats::Format;
use super::layout::PANEL;
use super::quantise::Block32;
use crate::device::cpu::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// Activation rows multiplied side by side, so that their chains of additions overlap.
pub(super) const ROWS: usize = 4;
/// How far ahead of their use weights are asked for. The processor's own prefetch stops while a
/// tile of rows is multiplied and does not fill the memory's queue at one row. Measured on Zen 5
/// with `benches/matrix.rs`: 4 KiB lose a fifth at 4 to 8 rows, 16 KiB gain nothing.
const AHEAD_BYTES: usize = 8 << 10;

/// Asks for the cache lines of `bytes` bytes at `cell + at`, [`AHEAD_BYTES`] further.
#[inline(always)]
pub(super) fn request_ahead<S: Simd>(simd: S, cell: *const u8, at: usize, bytes: usize) {
    // The address may lie behind the panels: a hint asks for nothing that must exist.
    simd.prefetch_all(cell.wrapping_add(AHEAD_BYTES + at), bytes);
}

/// Some panels, and some rows of one tile in blocks `B`.
pub(super) struct Strip<'a, B> {
    /// Whole panels of the format, one after another.
    pub panels: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// Blocks `[block][row of the tile]`, beginning at the first row wanted.
    pub x: &'a [B],
    /// Rows of the tile: from one block of a row to its next.
    pub stride: usize,
    /// Rows wanted.
    pub rows: usize,
    /// `[rows][panels * 16]`, overwritten.
    pub out: &'a mut [f32],
}

impl<B> Strip<'_, B> {
    /// Asserts that all sizes fit, with a block for each cell; returns `panels * 16`.
    #[inline(always)]
    pub(super) fn check(&self, cell_bytes: usize) -> usize {
        assert!(self.rows >= 1 && self.rows <= self.stride && self.panel_bytes > 0);
        assert!(self.rows <= TILE, "rows of a tile");
        assert!(self.panel_bytes.is_multiple_of(cell_bytes));
        let blocks = self.panel_bytes / cell_bytes;
        assert!(self.x.len() >= (blocks - 1) * self.stride + self.rows, "blocks of the tile");
        assert!(self.panels.len().is_multiple_of(self.panel_bytes));
        let width = self.panels.len() / self.panel_bytes * PANEL;
        assert_eq!(self.out.len(), self.rows * width, "rows of the strip");
        width
    }
}

/// The products of some panels with some rows of one tile.
pub(super) struct IntegerStrip<'a, F> {
    pub strip: Strip<'a, Block32>,
    pub format: PhantomData<F>,
}

impl<F: Format> Kernel for IntegerStrip<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strip = self.strip;
        let width = strip.check(F::CELL_BYTES);
        for (p, panel) in strip.panels.chunks_exact(strip.panel_bytes).enumerate() {
            let out = &mut strip.out[p * PANEL..];
            // SAFETY: the sizes were checked: the panel is whole cells of `F`; row `t < rows` of
            // block `b` is block `b * stride + t` of `x` and within it.
            unsafe {
                if strip.rows == 1 {
                    one_row::<S, F>(simd, panel, strip.x.as_ptr(), strip.stride, out);
                } else {
                    let x = Rows { x: strip.x.as_ptr(), stride: strip.stride, rows: strip.rows };
                    many_rows::<S, F>(simd, panel, &x, out, width);
                }
            }
        }
    }
}

/// Activation rows of a tile.
struct Rows {
    x: *const Block32,
    stride: usize,
    rows: usize,
}

/// The sums of one weight row of every activation row; aligned so that no vector of lanes lies
/// across two cache lines.
#[repr(align(64))]
struct Sums([[f32; PANEL]; TILE]);

/// What the rows of one vector of a cell share.
struct Cell<S: Simd> {
    w: [S::Bytes; 8],
    scale: S::F32,
    /// Unused where the type has none.
    minimum: S::F32,
}

impl<S: Simd> Cell<S> {
    /// # Safety
    /// As the methods of [`Format`].
    #[inline(always)]
    unsafe fn unpack<F: Format>(simd: S, cell: *const u8, row: usize) -> Self {
        // SAFETY: the contract is the same.
        unsafe {
            let scale = F::scales(simd, cell, row);
            let minimum = if F::MINIMUM { F::minimums(simd, cell, row) } else { scale };
            Self { w: F::quads(simd, cell, row), scale, minimum }
        }
    }

    /// For each row `acc` plus what 32 columns contribute: the one place where the arithmetic is
    /// written down.
    #[inline(always)]
    fn accumulate<F: Format, const R: usize>(
        &self,
        simd: S,
        mut acc: [S::F32; R],
        x: [&Block32; R],
    ) -> [S::F32; R] {
        let mut dots = [simd.splat_i32(0); R];
        let mut quants = [std::ptr::null(); R];
        for r in 0..R {
            if let Some(bits) = F::offset_bits::<S>() {
                dots[r] = simd.shift_left_i32(simd.splat_i32(x[r].minus_sum), bits);
            }
            quants[r] = x[r].q.as_ptr();
        }
        // SAFETY: a block has 32 bytes, and quantisation never yields -128.
        let dots = unsafe { F::dot(simd, dots, self.w, quants) };
        for r in 0..R {
            let scale = simd.mul(self.scale, simd.splat(x[r].scale));
            acc[r] = simd.fma(scale, simd.to_f32(dots[r]), acc[r]);
            if F::MINIMUM {
                acc[r] = simd.fma(self.minimum, simd.splat(x[r].sum), acc[r]);
            }
        }
        acc
    }

    /// Accumulates the first `R` rows of `x` in lanes `row..` of their `sums`.
    ///
    /// # Safety
    /// `x` and `sums` have `R` rows, and a vector of lanes at `row` is within a row of `sums`.
    #[inline(always)]
    unsafe fn accumulate_rows<F: Format, const R: usize>(
        &self,
        simd: S,
        x: &[Block32],
        sums: &mut [[f32; PANEL]],
        row: usize,
    ) {
        let mut acc = [simd.splat(0.0); R];
        let mut blocks = [&x[0]; R];
        // SAFETY: by the contract of this function.
        unsafe {
            for r in 0..R {
                blocks[r] = x.get_unchecked(r);
                acc[r] = simd.load_ptr(sums.get_unchecked(r).as_ptr().add(row));
            }
            let acc = self.accumulate::<F, R>(simd, acc, blocks);
            for r in 0..R {
                simd.store_ptr(sums.get_unchecked_mut(r).as_mut_ptr().add(row), acc[r]);
            }
        }
    }
}

/// # Safety
/// `panel` is whole cells of `F`, and block `b` of the row is readable at `x + b * stride`.
#[inline(always)]
unsafe fn one_row<S: Simd, F: Format>(
    simd: S,
    panel: &[u8],
    x: *const Block32,
    stride: usize,
    out: &mut [f32],
) {
    // At most two vectors make a panel.
    let mut acc = [simd.splat(0.0); 2];
    for (c, cell) in panel.chunks_exact(F::CELL_BYTES).enumerate() {
        // SAFETY: `cell` is a whole cell, and `c` a block of the row.
        unsafe {
            let x = &*x.add(c * stride);
            request_ahead(simd, cell.as_ptr(), 0, F::CELL_BYTES);
            for part in 0..PANEL / S::LANES {
                let cell = Cell::unpack::<F>(simd, cell.as_ptr(), part * S::LANES);
                [acc[part]] = cell.accumulate::<F, 1>(simd, [acc[part]], [x]);
            }
        }
    }
    for part in 0..PANEL / S::LANES {
        simd.store(&mut out[part * S::LANES..], acc[part]);
    }
}

/// # Safety
/// `panel` is whole cells of `F`, and block `b` of row `t` is readable at `x + b * stride + t`.
#[inline(always)]
unsafe fn many_rows<S: Simd, F: Format>(
    simd: S,
    panel: &[u8],
    x: &Rows,
    out: &mut [f32],
    width: usize,
) {
    let mut sums = Sums([[0.0; PANEL]; TILE]);
    let acc = &mut sums.0[..x.rows];
    for (c, cell) in panel.chunks_exact(F::CELL_BYTES).enumerate() {
        // SAFETY: `cell` is a whole cell, and `c` a block of each row; a vector of lanes at
        // `part * L` is within the 16 of a row of `acc`.
        unsafe {
            let x = std::slice::from_raw_parts(x.x.add(c * x.stride), x.rows);
            request_ahead(simd, cell.as_ptr(), 0, F::CELL_BYTES);
            for part in 0..PANEL / S::LANES {
                let row = part * S::LANES;
                let cell = Cell::unpack::<F>(simd, cell.as_ptr(), row);
                let mut t = 0;
                while t + ROWS <= x.len() {
                    cell.accumulate_rows::<F, ROWS>(simd, &x[t..], &mut acc[t..], row);
                    t += ROWS;
                }
                while t < x.len() {
                    cell.accumulate_rows::<F, 1>(simd, &x[t..], &mut acc[t..], row);
                    t += 1;
                }
            }
        }
    }
    for (t, acc) in acc.iter().enumerate() {
        out[t * width..][..PANEL].copy_from_slice(acc);
    }
}

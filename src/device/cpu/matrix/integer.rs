//! Quantised weights times int8 activations: one kernel body for every block type and row count.
//!
//! Per 32 columns: unpack eight quads of 8 or 16 weight rows once, then for each activation row
//! `acc += (scale_w * scale_x) * dot + shift_w * sum_x`, where `dot` is exact in integers and `acc`
//! is one f32 lane per weight row (Q6_K: `scale_w * (scale_x * dot - 32 sum_x)` for each half).
//! Nothing is summed across lanes. A decode step keeps `acc` in registers; more rows keep it in the
//! first-level cache; the operations are the same.
//!
//! Cost with AVX2, per 8 weight rows and 32 columns of four-bit weights: 12 instructions to unpack,
//! then 8 broadcasts, 8 `vpmaddubsw` and some 13 others per activation row. With VNNI the 8 dots
//! take their broadcasts along and serve 16 rows. Read next: `formats`.

#![expect(clippy::needless_range_loop, reason = "`part` counts sums and weight rows alike")]

use super::activations::{Block8, TILE};
use super::formats::{Format, GroupScales};
use super::layout::PANEL;
use crate::device::cpu::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// The products of some panels with some rows of one tile.
pub(super) struct IntegerStrip<'a, F> {
    /// Whole panels of the format, one after another.
    pub panels: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// Blocks `[block][row of the tile]`, beginning at the first row wanted.
    pub x: &'a [Block8],
    /// Rows of the tile: from one block of a row to its next.
    pub stride: usize,
    /// Rows wanted.
    pub rows: usize,
    /// `[rows][panels * 16]`, overwritten.
    pub out: &'a mut [f32],
    pub format: PhantomData<F>,
}

impl<F: Format> Kernel for IntegerStrip<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cells = self.panel_bytes / F::CELL_BYTES;
        let blocks = cells * F::GROUPS;
        assert!(self.rows >= 1 && self.rows <= self.stride && self.panel_bytes > 0);
        assert!(self.x.len() >= (blocks - 1) * self.stride + self.rows, "blocks of the tile");
        assert!(self.panels.len().is_multiple_of(self.panel_bytes));
        assert!(self.panel_bytes.is_multiple_of(F::CELL_BYTES));
        let width = self.panels.len() / self.panel_bytes * PANEL;
        assert_eq!(self.out.len(), self.rows * width, "rows of the strip");
        for (p, panel) in self.panels.chunks_exact(self.panel_bytes).enumerate() {
            let out = &mut self.out[p * PANEL..];
            // SAFETY: the sizes were checked: the panel is whole cells of `F`; row `t < rows` of
            // block `b` is block `b * stride + t` of `x` and within it.
            unsafe {
                if self.rows == 1 {
                    one_row::<S, F>(simd, panel, self.x.as_ptr(), self.stride, out);
                } else {
                    let x = Rows { x: self.x.as_ptr(), stride: self.stride, rows: self.rows };
                    many_rows::<S, F>(simd, panel, &x, out, width);
                }
            }
        }
    }
}

/// Activation rows of a tile.
struct Rows {
    x: *const Block8,
    stride: usize,
    rows: usize,
}

/// The sums of one weight row of every activation row; aligned so that no vector of lanes lies
/// across two cache lines.
#[repr(align(64))]
struct Sums([[f32; PANEL]; TILE]);

/// `acc` plus what 32 columns contribute: the one place where the arithmetic is written down.
///
/// # Safety
/// `x` points to a block.
#[inline(always)]
unsafe fn accumulate<S: Simd, F: Format>(
    simd: S,
    acc: S::F32,
    w: [S::Bytes; 8],
    scales: &GroupScales<S>,
    x: *const Block8,
) -> S::F32 {
    // SAFETY: by the contract; quantisation never yields -128.
    let (x, dots) = unsafe { (&*x, F::dots(simd, w, (*x).q.as_ptr())) };
    let scale_x = simd.splat(x.scale);
    let mut acc = acc;
    if F::HALVED {
        for (half, scale) in [scales.scale, scales.shift].into_iter().enumerate() {
            let centre = simd.splat(x.centre_halves[half]);
            acc = simd.fma(scale, simd.fma(simd.to_f32(dots[half]), scale_x, centre), acc);
        }
    } else {
        acc = simd.fma(simd.mul(scales.scale, scale_x), simd.to_f32(dots[0]), acc);
        if F::shifted::<S>() {
            acc = simd.fma(scales.shift, simd.splat(x.sum), acc);
        }
    }
    acc
}

/// # Safety
/// `panel` is whole cells of `F`, and block `b` of the row is readable at `x + b * stride`.
#[inline(always)]
unsafe fn one_row<S: Simd, F: Format>(
    simd: S,
    panel: &[u8],
    x: *const Block8,
    stride: usize,
    out: &mut [f32],
) {
    // At most two vectors make a panel.
    let mut acc = [simd.splat(0.0); 2];
    for (c, cell) in panel.chunks_exact(F::CELL_BYTES).enumerate() {
        // SAFETY: `cell` is a whole cell; `c * GROUPS + group` is a block of the row.
        unsafe {
            let header = F::header(cell.as_ptr());
            for group in 0..F::GROUPS {
                let x = x.add((c * F::GROUPS + group) * stride);
                for part in 0..PANEL / S::LANES {
                    let row = part * S::LANES;
                    let w = F::quads(simd, cell.as_ptr(), group, row);
                    let scales = F::scales(simd, cell.as_ptr(), &header, group, row);
                    acc[part] = accumulate::<S, F>(simd, acc[part], w, &scales, x);
                }
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
        // SAFETY: `cell` is a whole cell; `c * GROUPS + group` is a block of each row; a vector of
        // lanes at `part * L` is within the 16 of a row of `acc`.
        unsafe {
            let header = F::header(cell.as_ptr());
            for group in 0..F::GROUPS {
                let x = x.x.add((c * F::GROUPS + group) * x.stride);
                for part in 0..PANEL / S::LANES {
                    let row = part * S::LANES;
                    let w = F::quads(simd, cell.as_ptr(), group, row);
                    let scales = F::scales(simd, cell.as_ptr(), &header, group, row);
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let acc = acc.as_mut_ptr().add(row);
                        let sum = simd.load_ptr(acc);
                        let sum = accumulate::<S, F>(simd, sum, w, &scales, x.add(t));
                        simd.store_ptr(acc, sum);
                    }
                }
            }
        }
    }
    for (t, acc) in acc.iter().enumerate() {
        out[t * width..][..PANEL].copy_from_slice(acc);
    }
}

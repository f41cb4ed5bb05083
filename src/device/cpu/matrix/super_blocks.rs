//! K-quants times int8 activations in blocks of 256: one kernel body for every type and row count.
//!
//! Per 256 columns and activation row the dot, inner scales included, is exact in integers; then
//! `acc += (d * scale_x) * dot`, and with minimums `acc += (d_min * scale_x) * offset`, one f32
//! lane per weight row. Nothing is summed across lanes. A decode step keeps the sums in registers;
//! more rows keep them in the first-level cache and pass over a cell group by group, so that 32
//! columns are unpacked once for all rows; the operations are the same.
//!
//! Cost with AVX2, per 8 weight rows, 32 columns of Q4_K and activation row: 8 broadcasts, 8
//! `vpmaddubsw`, 7 additions, one `vpmaddwd` that takes the scale along, one addition. With VNNI 8
//! `vpdpbusd` and one multiplication serve 16 rows. Read next: `super_formats`.

#![expect(
    clippy::needless_range_loop,
    reason = "`part` counts sums and weight rows alike, `r` several arrays"
)]

use super::activations::TILE;
use super::formats::halves;
use super::integer::{ROWS, Strip, request_ahead};
use super::layout::{BLOCK, HALVES, PANEL, SUPER_BLOCK};
use super::quantise::Block256;
use super::super_formats::SuperFormat;
use crate::device::cpu::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// Groups of 32 columns in a cell.
const GROUPS: usize = SUPER_BLOCK / BLOCK;

/// The products of some panels of a K-quant with some rows of one tile.
pub(super) struct SuperStrip<'a, F> {
    pub strip: Strip<'a, Block256>,
    pub format: PhantomData<F>,
}

impl<F: SuperFormat> Kernel for SuperStrip<'_, F> {
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
                    let (x, stride) = (strip.x.as_ptr(), strip.stride);
                    many_rows::<S, F>(simd, panel, (x, stride, strip.rows), out, width);
                }
            }
        }
    }
}

/// What the rows of one vector of a cell share, beside the quants.
struct Cell<S: Simd, F: SuperFormat> {
    scale: S::F32,
    /// Unused where the type has none.
    minimum: S::F32,
    pairs: F::Pairs<S>,
}

impl<S: Simd, F: SuperFormat> Cell<S, F> {
    /// # Safety
    /// As the methods of [`SuperFormat`].
    #[inline(always)]
    unsafe fn unpack(simd: S, cell: *const u8, header: &F::Header, row: usize) -> Self {
        // SAFETY: the contract is the same; minimums have a scale after `d`.
        unsafe {
            let scale = F::scale(simd, cell, row);
            let minimum = if F::MINIMUM { halves(simd, cell.add(HALVES), row) } else { scale };
            Self { scale, minimum, pairs: F::pairs(simd, cell, header, row) }
        }
    }

    /// `acc` plus what the cell contributes, given the dot of its quants.
    #[inline(always)]
    fn finish(&self, simd: S, acc: S::F32, dot: S::I32, x: &Block256) -> S::F32 {
        let offset = F::offset(simd, self.pairs, x);
        let scale = simd.mul(self.scale, simd.splat(x.scale));
        if !F::MINIMUM {
            return simd.fma(scale, simd.to_f32(simd.add_i32(dot, offset)), acc);
        }
        let minimum = simd.mul(self.minimum, simd.splat(x.scale));
        let acc = simd.fma(minimum, simd.to_f32(offset), acc);
        simd.fma(scale, simd.to_f32(dot), acc)
    }
}

/// # Safety
/// `panel` is whole cells of `F`, and block `b` of the row is readable at `x + b * stride`.
#[inline(always)]
unsafe fn one_row<S: Simd, F: SuperFormat>(
    simd: S,
    panel: &[u8],
    x: *const Block256,
    stride: usize,
    out: &mut [f32],
) {
    // At most two vectors make a panel.
    let mut acc = [simd.splat(0.0); 2];
    for (c, cell) in panel.chunks_exact(F::CELL_BYTES).enumerate() {
        let cell = cell.as_ptr();
        // SAFETY: `cell` is a whole cell, and `c` a block of the row.
        unsafe {
            let x = &*x.add(c * stride);
            let header = F::header(cell);
            for part in 0..PANEL / S::LANES {
                let row = part * S::LANES;
                let mut dot = simd.splat_i32(0);
                for group in 0..GROUPS {
                    if part == 0 {
                        request_ahead(
                            simd,
                            cell,
                            group * F::CELL_BYTES / GROUPS,
                            F::CELL_BYTES / GROUPS,
                        );
                    }
                    let w = F::quads(simd, cell, group, row);
                    let scales = F::scales(simd, cell, &header, group, row);
                    let q = x.q.as_ptr().add(group * BLOCK);
                    [dot] = F::dot(simd, [dot], w, [q], scales);
                }
                let shared = Cell::<S, F>::unpack(simd, cell, &header, row);
                acc[part] = shared.finish(simd, acc[part], dot, x);
            }
        }
    }
    for part in 0..PANEL / S::LANES {
        simd.store(&mut out[part * S::LANES..], acc[part]);
    }
}

/// Adds the dots of a group with the first `R` rows of `x` to lanes `row..` of their `dots`, which
/// group 0 overwrites.
///
/// # Safety
/// `x` and `dots` have `R` rows, and a vector of lanes at `row` is within a row of `dots`.
#[inline(always)]
unsafe fn dot_rows<S: Simd, F: SuperFormat, const R: usize>(
    simd: S,
    w: [S::Bytes; 8],
    scales: [S::I32; 2],
    x: &[Block256],
    group: usize,
    dots: &mut [[i32; PANEL]],
    row: usize,
) {
    let mut q = [std::ptr::null(); R];
    let mut sums = [simd.splat_i32(0); R];
    // SAFETY: by the contract of this function.
    unsafe {
        for r in 0..R {
            q[r] = x.get_unchecked(r).q.as_ptr().add(group * BLOCK);
            if group > 0 {
                sums[r] = simd.load_i32_ptr(dots.get_unchecked(r).as_ptr().add(row));
            }
        }
        let sums = F::dot(simd, sums, w, q, scales);
        for r in 0..R {
            simd.store_i32_ptr(dots.get_unchecked_mut(r).as_mut_ptr().add(row), sums[r]);
        }
    }
}

/// The sums of one vector of weight rows of every activation row; aligned so that no vector of
/// lanes lies across two cache lines.
#[repr(align(64))]
struct Sums<T>([[T; PANEL]; TILE]);

/// # Safety
/// `panel` is whole cells of `F`, and block `b` of row `t < rows` is readable at
/// `x + b * stride + t`, with `x`, `stride` and `rows` in this order.
#[inline(always)]
unsafe fn many_rows<S: Simd, F: SuperFormat>(
    simd: S,
    panel: &[u8],
    (x, stride, rows): (*const Block256, usize, usize),
    out: &mut [f32],
    width: usize,
) {
    let mut sums = Sums([[0.0_f32; PANEL]; TILE]);
    let mut dots = Sums([[0_i32; PANEL]; TILE]);
    let (sums, dots) = (&mut sums.0[..rows], &mut dots.0[..rows]);
    for (c, cell) in panel.chunks_exact(F::CELL_BYTES).enumerate() {
        let cell = cell.as_ptr();
        // SAFETY: `cell` is a whole cell, and `c` a block of each row; a vector of lanes at
        // `part * L` is within the 16 of a row of `sums` and `dots`.
        unsafe {
            let x = std::slice::from_raw_parts(x.add(c * stride), rows);
            let header = F::header(cell);
            for part in 0..PANEL / S::LANES {
                let row = part * S::LANES;
                for group in 0..GROUPS {
                    if part == 0 {
                        request_ahead(
                            simd,
                            cell,
                            group * F::CELL_BYTES / GROUPS,
                            F::CELL_BYTES / GROUPS,
                        );
                    }
                    let w = F::quads(simd, cell, group, row);
                    let scales = F::scales(simd, cell, &header, group, row);
                    let mut t = 0;
                    while t + ROWS <= rows {
                        dot_rows::<S, F, ROWS>(
                            simd,
                            w,
                            scales,
                            &x[t..],
                            group,
                            &mut dots[t..],
                            row,
                        );
                        t += ROWS;
                    }
                    while t < rows {
                        dot_rows::<S, F, 1>(simd, w, scales, &x[t..], group, &mut dots[t..], row);
                        t += 1;
                    }
                }
                let shared = Cell::<S, F>::unpack(simd, cell, &header, row);
                for ((sum, dot), x) in sums.iter_mut().zip(dots.iter()).zip(x) {
                    let sum = sum.as_mut_ptr().add(row);
                    let dot = simd.load_i32_ptr(dot.as_ptr().add(row));
                    simd.store_ptr(sum, shared.finish(simd, simd.load_ptr(sum), dot, x));
                }
            }
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        out[t * width..][..PANEL].copy_from_slice(sums);
    }
}

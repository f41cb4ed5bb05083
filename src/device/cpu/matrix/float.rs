//! Plain weights (F32, F16, BF16) times f32 activations.
//!
//! A lane is one weight row. Columns are summed in blocks of 32: a chain of 32 fused
//! multiplications and additions from zero, then one addition to the total. Blocks are independent
//! until that addition, so a decode step runs several at once to hide the latency of the chain, and
//! more rows run side by side instead; each (row, feature) sees the same operations either way.
//! Error: with `u = 2^-24`, at most `(32 + K/32) u Σ|w x|`. Read next: `plain`.

#![expect(clippy::needless_range_loop, reason = "indices count chains and addresses alike")]

use super::layout::{BLOCK, PANEL};
use super::plain::PlainFormat;
use crate::device::cpu::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// The products of some panels with some rows.
pub(super) struct FloatStrip<'a, F> {
    /// Whole panels of the format, one after another.
    pub panels: &'a [u8],
    /// Bytes of one panel.
    pub panel_bytes: usize,
    /// `[rows][columns padded to blocks]`.
    pub x: &'a [f32],
    /// Rows wanted.
    pub rows: usize,
    /// `[rows][panels * 16]`, overwritten.
    pub out: &'a mut [f32],
    pub format: PhantomData<F>,
}

impl<F: PlainFormat> Kernel for FloatStrip<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cells = self.panel_bytes / F::CELL_BYTES;
        assert!(self.panel_bytes > 0 && self.panel_bytes.is_multiple_of(F::CELL_BYTES));
        assert!(self.panels.len().is_multiple_of(self.panel_bytes));
        assert_eq!(self.x.len(), self.rows * cells * BLOCK, "columns of the rows");
        let width = self.panels.len() / self.panel_bytes * PANEL;
        assert_eq!(self.out.len(), self.rows * width, "rows of the strip");
        for (p, panel) in self.panels.chunks_exact(self.panel_bytes).enumerate() {
            let out = &mut self.out[p * PANEL..];
            let work = Panel { panel, cells, x: self.x, out, width, format: PhantomData::<F> };
            // SAFETY: the sizes were checked: `cells` cells, and as many blocks in every row.
            unsafe {
                if S::LANES == 8 {
                    work.multiply::<S, 2, 4>(simd, self.rows);
                } else {
                    work.multiply::<S, 1, 8>(simd, self.rows);
                }
            }
        }
    }
}

/// One panel and the rows it is multiplied with.
struct Panel<'a, F> {
    panel: &'a [u8],
    cells: usize,
    x: &'a [f32],
    out: &'a mut [f32],
    width: usize,
    format: PhantomData<F>,
}

impl<F: PlainFormat> Panel<'_, F> {
    /// `P` vectors make a panel, and `P * N` is eight: chains enough to hide their latency.
    ///
    /// # Safety
    /// The panel has `cells` cells and `x` has `rows` rows of as many blocks.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const P: usize, const N: usize>(mut self, simd: S, rows: usize) {
        for t in 0..rows {
            self.out[t * self.width..][..PANEL].fill(0.0);
        }
        // SAFETY: every group of rows and cells below is within what the contract gives.
        unsafe {
            if rows == 1 {
                let together = self.cells / N * N;
                for c in (0..together).step_by(N) {
                    self.chains::<S, P, 1, N>(simd, c, 0);
                }
                for c in together..self.cells {
                    self.chains::<S, P, 1, 1>(simd, c, 0);
                }
                return;
            }
            for c in 0..self.cells {
                let mut t = 0;
                while t + N <= rows {
                    self.chains::<S, P, N, 1>(simd, c, t);
                    t += N;
                }
                while t + 2 <= rows {
                    self.chains::<S, P, 2, 1>(simd, c, t);
                    t += 2;
                }
                if t < rows {
                    self.chains::<S, P, 1, 1>(simd, c, t);
                }
            }
        }
    }

    /// Adds blocks `c..c + B` of rows `t..t + R` to `out`.
    ///
    /// # Safety
    /// These cells and rows exist.
    #[inline(always)]
    unsafe fn chains<S: Simd, const P: usize, const R: usize, const B: usize>(
        &mut self,
        simd: S,
        c: usize,
        t: usize,
    ) {
        let stride = self.cells * BLOCK;
        let mut chain = [[[simd.splat(0.0); P]; R]; B];
        // SAFETY: `c + B <= cells` and `t + R <= rows` by the contract.
        unsafe {
            let cells = self.panel.as_ptr().add(c * F::CELL_BYTES);
            let x = self.x.as_ptr().add(t * stride + c * BLOCK);
            for pair in 0..BLOCK / 2 {
                for b in 0..B {
                    for p in 0..P {
                        let cell = cells.add(b * F::CELL_BYTES);
                        let w = F::pair(simd, cell, pair, p * S::LANES);
                        for r in 0..R {
                            let x = x.add(r * stride + b * BLOCK + 2 * pair);
                            let sum = simd.fma(w[0], simd.splat(*x), chain[b][r][p]);
                            chain[b][r][p] = simd.fma(w[1], simd.splat(*x.add(1)), sum);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                let out = &mut self.out[(t + r) * self.width + p * S::LANES..];
                let mut sum = simd.load(out);
                for chain in &chain {
                    sum = simd.add(sum, chain[r][p]);
                }
                simd.store(out, sum);
            }
        }
    }
}

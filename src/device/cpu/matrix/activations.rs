//! Input rows, prepared once for every matrix that reads them.
//!
//! The f32 rows are always kept (plain weights read them); [`Need::INT8`] adds int8 blocks of 32
//! columns with a scale each, whatever the block type of the weights: finer than the blocks of 256
//! other engines use under K-quants, and no dearer, since the scale enters one multiplication per
//! block either way. Rounding is to nearest: an element is off by at most half a scale, `max|x| /
//! 254` of its block.
//!
//! Invariant: what a row becomes depends on that row only. Read next: `integer`.

use super::layout::BLOCK;
use crate::device::cpu::simd::{Kernel, Simd, SimdLevel};
use crate::device::cpu::threads::Threads;
use std::ops::Range;

/// Rows that share one unpacking of the weights. Thirty-two make unpacking a few percent of the
/// work, and 32 rows of a usual width still fit the second-level cache.
pub(super) const TILE: usize = 32;

/// Forms of activations that are wanted; combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need(u8);

impl Need {
    /// f32 rows: plain weights.
    pub const FLOAT: Self = Self(1);
    /// int8 blocks: quantised weights.
    pub const INT8: Self = Self(2);

    fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Need {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// 32 columns of one row: `x ≈ scale * q`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(super) struct Block8 {
    /// In `-127..=127`.
    pub q: [i8; BLOCK],
    /// Largest magnitude over 127; NaN if an element was not finite.
    pub scale: f32,
    /// `scale` times the sum of all `q`: what a weight's minimum or offset is multiplied with.
    pub sum: f32,
    /// -32 times the same for the first 16 `q`, and for the last: what centres the quants of Q6_K.
    pub centre_halves: [f32; 2],
}

impl Block8 {
    const ZERO: Self = Self { q: [0; BLOCK], scale: 0.0, sum: 0.0, centre_halves: [0.0; 2] };
}

/// Input rows `[T, K]` in the forms products read. Reuse it: once grown it does not allocate.
#[derive(Debug)]
pub struct Activations {
    rows: usize,
    cols: usize,
    has: Need,
    /// `[T, K]`, `K` padded with zeros to whole blocks.
    floats: Vec<f32>,
    /// `[tile][block][row of the tile]`.
    blocks: Vec<Block8>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::new()
    }
}

impl Activations {
    /// No rows yet.
    #[must_use]
    pub fn new() -> Self {
        Self { rows: 0, cols: 0, has: Need::FLOAT, floats: Vec::new(), blocks: Vec::new() }
    }

    /// Takes `x: [rows, cols]` in the forms of `need`.
    ///
    /// # Panics
    /// If `x` has another size.
    pub fn prepare(
        &mut self,
        threads: &Threads,
        simd: SimdLevel,
        x: &[f32],
        rows: usize,
        cols: usize,
        need: Need,
    ) {
        assert_eq!(x.len(), rows * cols, "{rows} rows of {cols} columns");
        self.prepare_with(threads, simd, rows, cols, need, &|t, row| {
            row.copy_from_slice(&x[t * cols..][..cols]);
        });
    }

    /// As [`Activations::prepare`], with row `t` written by `fill(t, row)` on some thread: the
    /// place to fuse a norm or a gather. `row` holds anything before.
    pub fn prepare_with(
        &mut self,
        threads: &Threads,
        simd: SimdLevel,
        rows: usize,
        cols: usize,
        need: Need,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let blocks = cols.div_ceil(BLOCK);
        (self.rows, self.cols, self.has) = (rows, cols, need | Need::FLOAT);
        let quantise = need.includes(Need::INT8);
        let grow = |now: usize, wanted: usize| wanted.max(now);
        self.floats.resize(grow(self.floats.len(), rows * blocks * BLOCK), 0.0);
        if quantise {
            self.blocks.resize(grow(self.blocks.len(), rows * blocks), Block8::ZERO);
        }
        let target = Target {
            floats: self.floats.as_mut_ptr(),
            blocks: self.blocks.as_mut_ptr(),
            rows,
            cols,
        };
        // One row is too little to share.
        threads.run_split(rows, threads.count() * 4, &|range| {
            for t in range {
                // SAFETY: `floats` has `rows` padded rows and, if wanted, `blocks` has their
                // blocks; both stay borrowed here, and each row is in one range only.
                let floats = unsafe { target.row(t) };
                let (row, padding) = floats.split_at_mut(cols);
                fill(t, row);
                padding.fill(0.0);
                if quantise {
                    // SAFETY: as above; the pointer is to this row's first block.
                    let (to, stride) = unsafe { target.first_block(t) };
                    simd.dispatch(Quantise { x: floats, to, stride });
                }
            }
        });
    }

    /// Rows, `T`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, `K`.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `t` as it was filled, `[K]`.
    #[must_use]
    pub fn row(&self, t: usize) -> &[f32] {
        &self.padded_rows(t..t + 1)[..self.cols]
    }

    pub(super) fn has(&self, need: Need) -> bool {
        self.has.includes(need)
    }

    /// Consecutive rows with their padding.
    pub(super) fn padded_rows(&self, rows: Range<usize>) -> &[f32] {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let padded = self.cols.div_ceil(BLOCK) * BLOCK;
        &self.floats[rows.start * padded..rows.end * padded]
    }

    /// The blocks of the tile of row `t`, `[block][row]`, and how many rows it has.
    pub(super) fn tile_of(&self, t: usize) -> (&[Block8], usize) {
        assert!(t < self.rows && self.has(Need::INT8), "row {t} of {}", self.rows);
        let blocks = self.cols.div_ceil(BLOCK);
        let (start, rows) = tile_rows(t, self.rows);
        (&self.blocks[start * blocks..][..rows * blocks], rows)
    }
}

/// First row and number of rows of the tile that holds row `t`.
pub(super) fn tile_rows(t: usize, rows: usize) -> (usize, usize) {
    let start = t / TILE * TILE;
    (start, TILE.min(rows - start))
}

/// Where rows are written, by several threads at once.
struct Target {
    floats: *mut f32,
    blocks: *mut Block8,
    rows: usize,
    cols: usize,
}

// SAFETY: the methods hand out disjoint parts for distinct rows.
unsafe impl Sync for Target {}

impl Target {
    /// The padded row `t`.
    ///
    /// # Safety
    /// `t < rows`; the buffer holds all padded rows, outlives the result, and nobody else uses
    /// row `t` meanwhile.
    #[expect(clippy::mut_from_ref, reason = "a part of a buffer shared by rows")]
    unsafe fn row(&self, t: usize) -> &mut [f32] {
        let padded = self.cols.div_ceil(BLOCK) * BLOCK;
        // SAFETY: by the contract of this function.
        unsafe { std::slice::from_raw_parts_mut(self.floats.add(t * padded), padded) }
    }

    /// The first block of row `t`, and how many blocks further the next one is.
    ///
    /// # Safety
    /// `t < rows`; the buffer holds the blocks of all rows.
    unsafe fn first_block(&self, t: usize) -> (*mut Block8, usize) {
        let (start, rows) = tile_rows(t, self.rows);
        // SAFETY: by the contract of this function: the first block of the tile is the `start *
        // blocks`-th, and block 0 of its rows comes first.
        let at = unsafe { self.blocks.add(start * self.cols.div_ceil(BLOCK) + (t - start)) };
        (at, rows)
    }
}

/// Quantises one padded row into blocks `stride` apart.
struct Quantise<'a> {
    x: &'a [f32],
    /// Valid for writes of a block at every multiple of `stride` below the row's blocks.
    to: *mut Block8,
    stride: usize,
}

/// Below this magnitude a block counts as zero: its reciprocal would overflow.
const TINY: f32 = 1e-30;

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (blocks, _) = self.x.as_chunks::<BLOCK>();
        for (b, x) in blocks.iter().enumerate() {
            let block = quantise(simd, x);
            // SAFETY: by the contract of the field.
            unsafe { self.to.add(b * self.stride).write(block) };
        }
    }
}

#[inline(always)]
fn quantise<S: Simd>(simd: S, x: &[f32; BLOCK]) -> Block8 {
    let zero = simd.splat(0.0);
    let (mut largest, mut poison) = (zero, zero);
    for i in (0..BLOCK).step_by(S::LANES) {
        let v = simd.load(&x[i..]);
        largest = simd.max(simd.abs(v), largest);
        // Zero, unless an element is a NaN or an infinity.
        poison = simd.fma(v, zero, poison);
    }
    let largest = simd.max_lane(largest);
    let mut block = Block8::ZERO;
    if simd.sum(poison) != 0.0 || !largest.is_finite() {
        (block.scale, block.sum, block.centre_halves) = (f32::NAN, f32::NAN, [f32::NAN; 2]);
        return block;
    }
    if largest < TINY {
        return block;
    }
    let inverse = simd.splat(127.0 / largest);
    let mut sums = [0; 2];
    for i in (0..BLOCK).step_by(S::LANES) {
        let q = simd.round_to_i32(simd.mul(simd.load(&x[i..]), inverse));
        // SAFETY: `i + L <= 32`; lanes are within 127 of zero because `|x| <= largest`.
        unsafe { simd.store_i8_ptr(block.q.as_mut_ptr().add(i), q) };
        sums[i / (BLOCK / 2)] += simd.sum_i32(q);
    }
    block.scale = largest / 127.0;
    block.sum = block.scale * (sums[0] + sums[1]) as f32;
    block.centre_halves = sums.map(|sum| block.scale * (-32 * sum) as f32);
    block
}

//! Input rows, prepared once for every matrix that reads them.
//!
//! The f32 rows are always kept (plain weights read them). [`Need::INT8_32`] adds int8 blocks of 32
//! columns, [`Need::INT8_256`] blocks of 256, by the rules in `quantise`: a file may mix matrices
//! of both kinds over the same rows. An element is off by at most half a scale, `max|x| / 254` of
//! its block, and with blocks of 32 by the rounding of the scale to f16.
//!
//! Invariant: what a row becomes depends on that row only. Read next: `quantise`.

use super::layout::{BLOCK, SUPER_BLOCK};
use super::quantise::{Block, Block32, Block256, Quantise};
use crate::device::cpu::simd::SimdLevel;
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
    /// int8 blocks of 32 columns: weights in blocks of 32.
    pub const INT8_32: Self = Self(2);
    /// int8 blocks of 256 columns: K-quants.
    pub const INT8_256: Self = Self(4);

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

/// Input rows `[T, K]` in the forms products read. Reuse it: once grown it does not allocate.
#[derive(Debug)]
pub struct Activations {
    rows: usize,
    cols: usize,
    has: Need,
    /// `[T, K]`, `K` padded with zeros to whole blocks.
    floats: Vec<f32>,
    /// `[tile][block][row of the tile]`.
    blocks: Vec<Block32>,
    /// As `blocks`.
    super_blocks: Vec<Block256>,
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
        Self {
            rows: 0,
            cols: 0,
            has: Need::FLOAT,
            floats: Vec::new(),
            blocks: Vec::new(),
            super_blocks: Vec::new(),
        }
    }

    /// Takes `x: [rows, cols]` in the forms of `need`.
    ///
    /// # Panics
    /// If `x` has another size, or blocks of 256 are wanted of columns that are none.
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
        let super_blocks = cols / SUPER_BLOCK;
        (self.rows, self.cols, self.has) = (rows, cols, need | Need::FLOAT);
        let (small, large) = (need.includes(Need::INT8_32), need.includes(Need::INT8_256));
        assert!(!large || cols == super_blocks * SUPER_BLOCK, "{cols} columns in blocks of 256");
        let floats = Rows::grow(&mut self.floats, rows, blocks * BLOCK, 0.0);
        let in_small = small.then(|| Rows::grow(&mut self.blocks, rows, blocks, Block32::ZERO));
        let in_large =
            large.then(|| Rows::grow(&mut self.super_blocks, rows, super_blocks, Block256::ZERO));
        // One row is too little to share.
        threads.run_split(rows, threads.count() * 4, &|range| {
            for t in range {
                // SAFETY: the rows of all three stay borrowed here, `t` is one of them, and it is
                // in one range only.
                unsafe {
                    let floats = floats.row(t);
                    let (row, padding) = floats.split_at_mut(cols);
                    fill(t, row);
                    padding.fill(0.0);
                    if let Some(blocks) = &in_small {
                        blocks.quantise(simd, t, floats);
                    }
                    if let Some(blocks) = &in_large {
                        blocks.quantise(simd, t, floats);
                    }
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

    /// The blocks of 32 of the tile of row `t`, `[block][row]`, and how many rows it has.
    pub(super) fn tile_of(&self, t: usize) -> (&[Block32], usize) {
        assert!(t < self.rows && self.has(Need::INT8_32), "row {t} of {}", self.rows);
        tile_blocks(&self.blocks, t, self.rows, self.cols.div_ceil(BLOCK))
    }

    /// As [`Activations::tile_of`] with blocks of 256.
    pub(super) fn super_tile_of(&self, t: usize) -> (&[Block256], usize) {
        assert!(t < self.rows && self.has(Need::INT8_256), "row {t} of {}", self.rows);
        tile_blocks(&self.super_blocks, t, self.rows, self.cols / SUPER_BLOCK)
    }
}

/// The blocks of the tile of row `t` of `rows` with `per_row` blocks each, and its rows.
fn tile_blocks<B>(blocks: &[B], t: usize, rows: usize, per_row: usize) -> (&[B], usize) {
    let (start, in_tile) = tile_rows(t, rows);
    (&blocks[start * per_row..][..in_tile * per_row], in_tile)
}

/// First row and number of rows of the tile that holds row `t`.
pub(super) fn tile_rows(t: usize, rows: usize) -> (usize, usize) {
    let start = t / TILE * TILE;
    (start, TILE.min(rows - start))
}

/// Where rows of `T` are written, by several threads at once.
struct Rows<T> {
    start: *mut T,
    rows: usize,
    per_row: usize,
}

// SAFETY: the methods hand out or write disjoint parts for distinct rows.
unsafe impl<T: Send> Sync for Rows<T> {}

impl<T: Copy> Rows<T> {
    /// The rows at the beginning of `buffer`, which never shrinks.
    fn grow(buffer: &mut Vec<T>, rows: usize, per_row: usize, value: T) -> Self {
        buffer.resize(buffer.len().max(rows * per_row), value);
        Self { start: buffer.as_mut_ptr(), rows, per_row }
    }

    /// Row `t`, rows one after another.
    ///
    /// # Safety
    /// `t < rows`; the buffer outlives the result, and nobody else uses row `t` meanwhile.
    #[expect(clippy::mut_from_ref, reason = "a part of a buffer shared by rows")]
    unsafe fn row(&self, t: usize) -> &mut [T] {
        // SAFETY: by the contract of this function.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(t * self.per_row), self.per_row) }
    }
}

impl<B: Block> Rows<B> {
    /// Writes row `t`, rows interleaved by tiles, from `x`.
    ///
    /// # Safety
    /// `t < rows`; the buffer is alive, and nobody else uses row `t` meanwhile.
    unsafe fn quantise(&self, simd: SimdLevel, t: usize, x: &[f32]) {
        assert!(x.len() / B::COLS <= self.per_row, "blocks of a row");
        let (start, stride) = tile_rows(t, self.rows);
        // SAFETY: by the contract: the first block of the tile is the `start * per_row`-th, and
        // block 0 of its rows comes first; block `b` is `b * stride` further.
        let to = unsafe { self.start.add(start * self.per_row + (t - start)) };
        simd.dispatch(Quantise { x, to, stride });
    }
}

//! What the kernels that multiply by a weight matrix share: the matrix on the device, and tiles of
//! tokens.
//!
//! Each such operation is four kernels that differ in the tokens of a tile only and give the same
//! bits; [`TokenTile::for_rows`] picks one. Invariant: the numbers here equal those of
//! `kernels/common/{weights,staging}.cuh`; a test reads them from the compiled kernels.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::Address;
use super::super::pack::Packing;
use bytemuck::{Pod, Zeroable};

/// A packed matrix in device memory, `Matrix` of `weights.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Matrix {
    /// The first panel; a multiple of 16.
    pub(super) data: Address,
    rows: i32,
    columns: i32,
    format: i32,
    panel_bytes: u32,
}

impl Matrix {
    /// The matrix packed as `packing` says at `data`.
    ///
    /// # Panics
    /// If a size is beyond what the kernels count with (2³¹ rows, columns or bytes of a panel).
    pub(crate) fn new(data: Address, packing: &Packing) -> Self {
        let count = |n: usize| i32::try_from(n).expect("sizes of a matrix fit 31 bits");
        Self {
            data,
            rows: count(packing.rows),
            columns: count(packing.cols),
            format: packing.format as i32,
            panel_bytes: count(packing.panel_bytes()).unsigned_abs(),
        }
    }

    /// `N`.
    pub(crate) fn rows(&self) -> usize {
        self.rows.unsigned_abs() as usize
    }

    /// `K`.
    pub(crate) fn columns(&self) -> usize {
        self.columns.unsigned_abs() as usize
    }

    /// Panels of 16 rows.
    pub(crate) fn panels(&self) -> usize {
        self.rows().div_ceil(super::super::pack::PANEL_ROWS)
    }
}

/// Rows that are ready for a matrix behind a norm, `PreparedRows` of `prepared.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PreparedRows {
    /// bf16 `[T, C]`: `x g`.
    pub(crate) scaled: Address,
    /// f32 `[T, ceil(C / 16)]`: sums of squares of `x`.
    pub(crate) squares: Address,
}

/// Columns whose squares are one sum.
const SQUARE_COLUMNS: usize = 16;

impl PreparedRows {
    /// Bytes of [`Self::scaled`] and [`Self::squares`] for `rows` rows of `columns`.
    pub(crate) fn bytes(rows: usize, columns: usize) -> [usize; 2] {
        [rows * columns * 2, rows * columns.div_ceil(SQUARE_COLUMNS) * 4]
    }
}

/// What a kernel that writes hidden states leaves beside them, `Preparation` of `prepared.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Preparation {
    /// f32 `[C]`, of the norm that comes next.
    pub(crate) norm: Address,
    /// Where it goes.
    pub(crate) rows: PreparedRows,
}

/// Where CTAs that split K leave their sums, `SplitSums` of `linear.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SplitSums {
    /// [`SplitSums::bytes`] of scratch.
    pub(crate) sums: Address,
    /// [`SplitSums::arrivals_bytes`], zeros.
    pub(crate) arrivals: Address,
}

impl SplitSums {
    /// Tiles that may be split on a GPU of `sms` SMs: there are two CTAs for each at least.
    fn tiles(sms: usize) -> usize {
        sms / 2
    }

    /// Bytes of scratch for the sums.
    pub(crate) fn bytes(sms: usize) -> usize {
        let tile = TokenTile::N64;
        let features = tile.panels(Width::Narrow) * super::super::pack::PANEL_ROWS;
        Self::tiles(sms) * SLICES * features * tile.tokens() * 4
    }

    /// Bytes of the counters.
    pub(crate) fn arrivals_bytes(sms: usize) -> usize {
        Self::tiles(sms).max(1) * 4
    }
}

/// CTAs that share the slices of K of each of `tiles` tiles: as many as the SMs have room for.
fn parts(tile: TokenTile, tiles: usize, sms: usize) -> usize {
    let may_split = tile.warp_panels() > 1;
    [4, 2].into_iter().find(|parts| may_split && tiles * parts <= sms).unwrap_or(1)
}

/// Tokens of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenTile {
    /// Decode.
    N8,
    /// A short verify.
    N16,
    /// A verify.
    N32,
    /// Scoring, prefill.
    N64,
}

/// How a kernel cuts its features: `NarrowTile` or `WideTile` of `staging.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// One panel a CTA up to 16 tokens, then four, then eight.
    Narrow,
    /// Four panels, of 64 tokens eight.
    Wide,
}

/// Threads of a CTA.
const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Slices of K, each summed by one warp.
const SLICES: usize = 8;
/// Partial sums of 16 features and 8 tokens in shared memory.
const PARTIAL_BYTES: usize = 8 * 16 * 4;

impl TokenTile {
    /// Every tile, in the order of an operation's entries.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [Self::N8, Self::N16, Self::N32, Self::N64];

    /// The tile for a pass of `rows` rows.
    pub(crate) fn for_rows(rows: usize) -> Self {
        match rows {
            0..=8 => Self::N8,
            9..=16 => Self::N16,
            17..=32 => Self::N32,
            _ => Self::N64,
        }
    }

    /// How many tokens.
    pub(crate) fn tokens(self) -> usize {
        8 << self as usize
    }

    /// Warps that share a panel, each with its slices of K.
    fn slice_warps(self, width: Width) -> usize {
        match (width, self) {
            (Width::Narrow, Self::N8 | Self::N16) => 8,
            _ => 2,
        }
    }

    /// Panels that a warp multiplies side by side.
    fn warp_panels(self) -> usize {
        if self == Self::N64 { 2 } else { 1 }
    }

    /// CTAs of an SM, for which the kernels' registers are bounded.
    fn ctas_of_sm(self) -> usize {
        match self {
            Self::N8 => 3,
            Self::N16 | Self::N32 => 2,
            Self::N64 => 1,
        }
    }

    /// Panels of a CTA.
    pub(crate) fn panels(self, width: Width) -> usize {
        WARPS / self.slice_warps(width) * self.warp_panels()
    }

    /// Dynamic shared memory of a CTA: staged tokens twice, partial sums, scales of the norm.
    pub(crate) fn shared_bytes(self, width: Width) -> u32 {
        let (tokens, slice_warps) = (self.tokens(), self.slice_warps(width));
        let warp_panels = self.warp_panels();
        let chunk_steps = if slice_warps == 8 { 4 } else { 16 * 8 / tokens };
        // A step of an odd number of tokens, 64 bytes each.
        let staged = 2 * slice_warps * chunk_steps * (tokens | 1) * 64;
        let partials = WARPS * warp_panels * tokens / 8 * PARTIAL_BYTES;
        (staged + partials + tokens * 4) as u32
    }
}

/// An operation with one kernel for each [`TokenTile`]; `KERNEL` is what their names begin with.
pub(super) trait Tiled: KernelParams {
    /// Names of the kernels, in the order of [`TokenTile`].
    const ENTRIES: [&'static str; 4];
    /// How the kernels cut their features.
    const WIDTH: Width;
    /// Whether a CTA may have several groups of features one after another: then no more CTAs are
    /// launched than run at the same time, and none begins in the middle.
    const DEALT: bool = false;
}

/// Launches the kernel for `rows` rows, with `groups(panels of a CTA)` CTAs along y, on a GPU of
/// `sms` SMs.
pub(super) fn launch_tiled<P: Tiled>(
    rows: usize,
    groups: impl Fn(usize) -> usize,
    sms: usize,
    params: &P,
) -> Launch {
    let tile = TokenTile::for_rows(rows);
    let x = rows.div_ceil(tile.tokens());
    let mut y = groups(tile.panels(P::WIDTH));
    if P::DEALT {
        let rounds = y.div_ceil((sms * tile.ctas_of_sm()).div_ceil(x));
        y = y.div_ceil(rounds);
    }
    let grid = [x, y, parts(tile, x * y, sms)];
    let grid = grid.map(|n| u32::try_from(n).expect("a grid fits 32 bits"));
    assert!(grid[1] < 1 << 16, "{}: {} CTAs along y", P::KERNEL, grid[1]);
    let mut launch = Launch::new(grid, THREADS, tile.shared_bytes(P::WIDTH), params);
    launch.kernel = P::ENTRIES[tile as usize];
    launch
}

/// The list of a parameter struct's size and offsets that the kernel's file exports.
macro_rules! layout_of {
    ($params:ty: $($field:ident),+) => {
        impl $params {
            /// Size, then offsets of the fields in order.
            pub(crate) const fn layout() -> &'static [u32] {
                &[
                    size_of::<Self>() as u32,
                    $(std::mem::offset_of!(Self, $field) as u32),+
                ]
            }
        }
    };
}
pub(super) use layout_of;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_count_has_a_tile_that_is_not_twice_too_large() {
        for rows in 1..=300 {
            let tile = TokenTile::for_rows(rows);
            assert!(rows > 64 || tile.tokens() >= rows);
            assert!(tile == TokenTile::N8 || rows > tile.tokens() / 2);
        }
    }

    #[test]
    fn the_ctas_their_registers_allow_fit_an_sm_of_every_supported_gpu() {
        for tile in TokenTile::ALL {
            for width in [Width::Narrow, Width::Wide] {
                // The head's registers are bounded for two.
                let ctas = tile.ctas_of_sm().min(2) as u32;
                // An A100 has 164 KiB an SM, of which each CTA costs 1 KiB more than it asks for.
                let bytes = ctas * (tile.shared_bytes(width) + 1024);
                assert!(bytes <= 164 * 1024, "{tile:?} {width:?}");
                // An RTX 3090 or 4090 gives a CTA 99 KiB at most.
                assert!(tile.shared_bytes(width) <= 99 * 1024, "{tile:?} {width:?}");
            }
        }
    }

    #[test]
    fn k_is_split_where_tiles_of_64_tokens_leave_sms_idle_and_there_is_memory_for_the_sums() {
        for tiles in 1..300 {
            assert_eq!(parts(TokenTile::N32, tiles, 132), 1);
            let parts = parts(TokenTile::N64, tiles, 132);
            assert!(parts == 4 || 2 * tiles * parts > 132, "{tiles} tiles in {parts} parts");
            assert!(parts == 1 || tiles * parts <= 132 && tiles <= SplitSums::tiles(132));
        }
    }
}

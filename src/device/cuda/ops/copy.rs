//! Launches of `kernels/copy.cu` (copy-on-write of pages) and `kernels/non_finite.cu` (the error
//! path).

use super::super::launch::{KernelParams, Launch};
use super::super::layout::Address;
use crate::device::{PageCopy, Shape};
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// Threads of a copying CTA.
const COPY_THREADS: u32 = 128;
/// CTAs that share the planes of one copy, at most.
const COPY_CTAS_MAX: usize = 256;
/// Threads of a CTA that looks for non-finite numbers.
const FIND_THREADS: u32 = 256;
/// Its CTAs, at most.
const FIND_CTAS_MAX: usize = 1024;
/// What `first` holds before and after a launch that finds nothing.
pub(crate) const ALL_FINITE: i32 = i32::MAX;

/// One copy as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CopyEntry {
    from: i32,
    to: i32,
    tokens: i32,
    reserved: i32,
}

impl From<&PageCopy> for CopyEntry {
    fn from(copy: &PageCopy) -> Self {
        Self {
            from: copy.from.0 as i32,
            to: copy.to.0 as i32,
            tokens: copy.tokens as i32,
            reserved: 0,
        }
    }
}

/// What `copy.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CopyRowsParams {
    count: Address,
    copies: Address,
    pool: Address,
    page_bytes: i64,
    planes: i32,
    plane_bytes: i32,
    row_bytes: i32,
    reserved: i32,
}

impl CopyRowsParams {
    /// Sizes and offsets, as `forerun_copy_rows_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, count) as u32,
            offset_of!(Self, copies) as u32,
            offset_of!(Self, pool) as u32,
            offset_of!(Self, page_bytes) as u32,
            offset_of!(Self, planes) as u32,
            offset_of!(Self, plane_bytes) as u32,
            offset_of!(Self, row_bytes) as u32,
            offset_of!(Self, reserved) as u32,
            size_of::<CopyEntry>() as u32,
            offset_of!(CopyEntry, from) as u32,
            offset_of!(CopyEntry, to) as u32,
            offset_of!(CopyEntry, tokens) as u32,
            offset_of!(CopyEntry, reserved) as u32,
        ]
    }
}

impl KernelParams for CopyRowsParams {
    const KERNEL: &'static str = "forerun_copy_rows";
}

/// Performs the copies of a staged list of [`CopyEntry`]s, `*count` of them; the grid may be
/// larger.
///
/// `pool` is the first page, a multiple of 16; rows are a multiple of 8 elements
/// ([`super::attention::AttentionOp::new`] refuses others).
#[must_use]
pub(crate) fn launch_copy_rows(
    shape: &Shape,
    count: Address,
    copies: Address,
    pool: Address,
    copies_max: u32,
) -> Launch {
    let planes = shape.layers * 2 * shape.kv_heads;
    let row_bytes = 2 * shape.head_dim;
    let params = CopyRowsParams {
        count,
        copies,
        pool,
        page_bytes: shape.page_bytes as i64,
        planes: planes as i32,
        plane_bytes: (shape.page_tokens * row_bytes) as i32,
        row_bytes: row_bytes as i32,
        reserved: 0,
    };
    let grid = [copies_max, planes.min(COPY_CTAS_MAX) as u32, 1];
    Launch::new(grid, COPY_THREADS, 0, &params)
}

/// What `non_finite.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FirstNonFiniteParams {
    buffer: Address,
    first: Address,
    rows: i32,
    width: i32,
    f32: i32,
    reserved: i32,
}

impl FirstNonFiniteParams {
    /// Size and offsets, as `forerun_first_non_finite_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, buffer) as u32,
            offset_of!(Self, first) as u32,
            offset_of!(Self, rows) as u32,
            offset_of!(Self, width) as u32,
            offset_of!(Self, f32) as u32,
            offset_of!(Self, reserved) as u32,
        ]
    }
}

impl KernelParams for FirstNonFiniteParams {
    const KERNEL: &'static str = "forerun_first_non_finite";
}

/// Lowers `*first`, which must hold [`ALL_FINITE`], to the first of `rows` rows of `width` elements
/// that holds a NaN or an infinity. Elements are f32 or else bf16.
#[must_use]
pub(crate) fn launch_first_non_finite(
    buffer: Address,
    first: Address,
    rows: usize,
    width: usize,
    is_f32: bool,
) -> Launch {
    let params = FirstNonFiniteParams {
        buffer,
        first,
        rows: rows as i32,
        width: width as i32,
        f32: i32::from(is_f32),
        reserved: 0,
    };
    let ctas = rows.clamp(1, FIND_CTAS_MAX) as u32;
    Launch::new([ctas, 1, 1], FIND_THREADS, 0, &params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PageId;

    #[test]
    fn a_copy_covers_every_plane_of_its_page() {
        let shape = Shape {
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 1,
            vocab: 1,
            rms_eps: 1e-6,
            layers: 3,
            page_tokens: 16,
            page_bytes: 8192,
        };
        let launch = launch_copy_rows(&shape, Address(16), Address(32), Address(64), 5);
        assert_eq!((launch.kernel, launch.grid), ("forerun_copy_rows", [5, 12, 1]));
        let bytes: &[u8] = bytemuck::cast_slice(launch.params());
        let params: CopyRowsParams =
            bytemuck::pod_read_unaligned(&bytes[..size_of::<CopyRowsParams>()]);
        assert_eq!((params.planes, params.plane_bytes, params.row_bytes), (12, 512, 32));
        assert_eq!(params.page_bytes, 8192);
        let entry = CopyEntry::from(&PageCopy { from: PageId(3), to: PageId(1), tokens: 7 });
        assert_eq!(entry, CopyEntry { from: 3, to: 1, tokens: 7, reserved: 0 });
    }

    #[test]
    fn an_empty_buffer_still_makes_a_legal_grid() {
        let launch = launch_first_non_finite(Address(0), Address(4), 0, 8, true);
        assert_eq!(launch.grid, [1, 1, 1]);
        let launch = launch_first_non_finite(Address(0), Address(4), 5000, 8, false);
        assert_eq!((launch.grid, launch.threads), ([1024, 1, 1], 256));
    }
}

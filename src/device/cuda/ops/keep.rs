//! Launches of `kernels/keep.cu`: the rows that the last layer goes on with, moved to the front.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::layout_of;
use bytemuck::{Pod, Zeroable};

/// What the kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct KeepParams {
    /// Of the rows that are kept.
    pub(crate) batch: Batch,
    /// i32, one a row: where it was.
    pub(crate) kept: Address,
    /// bf16 `[T, H D]`.
    pub(crate) q: Address,
    /// bf16 `[T, C]`.
    pub(crate) hidden: Address,
    /// `H D`.
    pub(crate) q_columns: i32,
    /// `C`.
    pub(crate) columns: i32,
}

layout_of!(KeepParams: batch, kept, q, hidden, q_columns, columns);

impl KernelParams for KeepParams {
    const KERNEL: &'static str = "forerun_keep";
}

/// Threads of a CTA, one a column.
const THREADS: u32 = 256;

/// Moves all columns.
pub(crate) fn keep(params: &KeepParams) -> Launch {
    let columns = (params.q_columns + params.columns).unsigned_abs();
    Launch::new([columns.div_ceil(THREADS), 1, 1], THREADS, 0, params)
}

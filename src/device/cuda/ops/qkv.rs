//! Launches of `kernels/qkv.cu`: norm, then queries, keys and values in f32.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, Tiled, Width, launch_tiled, layout_of};
use bytemuck::{Pod, Zeroable};

/// What the kernels take; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QkvParams {
    pub(crate) batch: Batch,
    /// `[H D, C]`.
    pub(crate) q: Matrix,
    /// `[G D, C]`.
    pub(crate) k: Matrix,
    /// `[G D, C]`.
    pub(crate) v: Matrix,
    /// f32 `[H D]`, or address 0.
    pub(crate) q_bias: Address,
    /// f32 `[G D]`, or address 0.
    pub(crate) k_bias: Address,
    /// f32 `[G D]`, or address 0.
    pub(crate) v_bias: Address,
    /// f32 `[C]`.
    pub(crate) norm: Address,
    /// bf16 `[T, C]`.
    pub(crate) hidden: Address,
    /// f32 `[T, (H + 2 G) D]`, [`sums_bytes`] of scratch that `rope_append` reads.
    pub(crate) y: Address,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

layout_of!(QkvParams: batch, q, k, v, q_bias, k_bias, v_bias, norm, hidden, y, eps, reserved);

impl KernelParams for QkvParams {
    const KERNEL: &'static str = "forerun_qkv";
}

impl Tiled for QkvParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_qkv_n8", "forerun_qkv_n16", "forerun_qkv_n32", "forerun_qkv_n64"];
    const WIDTH: Width = Width::Narrow;
}

/// Bytes of scratch for the sums of a pass of at most `rows` rows.
pub(crate) fn sums_bytes(rows: usize, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    rows * (heads + 2 * kv_heads) * head_dim * 4
}

/// The launch for a pass of at most `rows` rows.
///
/// # Panics
/// If the matrices have different columns.
pub(crate) fn qkv(rows: usize, params: &QkvParams) -> Launch {
    let matrices = [&params.q, &params.k, &params.v];
    assert!(matrices.iter().all(|m| m.columns() == params.q.columns()), "columns of q, k, v");
    let groups = |panels: usize| matrices.iter().map(|m| m.panels().div_ceil(panels)).sum();
    launch_tiled(rows, groups, params)
}

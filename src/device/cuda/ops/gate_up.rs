//! Launches of `kernels/gate_up.cu`: norm, gate and up projections, SiLU and product.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, PreparedRows, SplitSums, Tiled, Width, launch_tiled, layout_of};
use bytemuck::{Pod, Zeroable};

/// What the kernels take; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GateUpParams {
    pub(crate) batch: Batch,
    /// `[2 F', C]`, packed as [`Source::Pairs`](super::super::pack::Source), F' = F up to a
    /// multiple of 8.
    pub(crate) pairs: Matrix,
    /// `[T, C]`.
    pub(crate) rows: PreparedRows,
    /// bf16 `[T, F]`.
    pub(crate) act: Address,
    pub(crate) split: SplitSums,
    pub(crate) eps: f32,
    /// `F`.
    pub(crate) features: i32,
}

layout_of!(GateUpParams: batch, pairs, rows, act, split, eps, features);

impl KernelParams for GateUpParams {
    const KERNEL: &'static str = "forerun_gate_up";
}

impl Tiled for GateUpParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_gate_up_n8", "forerun_gate_up_n16", "forerun_gate_up_n32", "forerun_gate_up_n64"];
    const WIDTH: Width = Width::Narrow;
    const DEALT: bool = true;
}

/// The launch for a pass of at most `rows` rows on a GPU of `sms` SMs.
pub(crate) fn gate_up(rows: usize, sms: usize, params: &GateUpParams) -> Launch {
    launch_tiled(rows, |panels| params.pairs.panels().div_ceil(panels), sms, params)
}

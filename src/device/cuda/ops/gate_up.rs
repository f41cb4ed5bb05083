//! Launches of `kernels/gate_up.cu`: norm, gate and up projections, SiLU and product.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, Tiled, Width, launch_tiled, layout_of};
use bytemuck::{Pod, Zeroable};

/// What the kernels take; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GateUpParams {
    pub(crate) batch: Batch,
    /// `[F, C]`.
    pub(crate) gate: Matrix,
    /// `[F, C]`; its format may differ from the gate's.
    pub(crate) up: Matrix,
    /// f32 `[C]`.
    pub(crate) norm: Address,
    /// bf16 `[T, C]`.
    pub(crate) hidden: Address,
    /// bf16 `[T, F]`.
    pub(crate) act: Address,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

layout_of!(GateUpParams: batch, gate, up, norm, hidden, act, eps, reserved);

impl KernelParams for GateUpParams {
    const KERNEL: &'static str = "forerun_gate_up";
}

impl Tiled for GateUpParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_gate_up_n8", "forerun_gate_up_n16", "forerun_gate_up_n32", "forerun_gate_up_n64"];
    const WIDTH: Width = Width::Wide;
}

/// The launch for a pass of at most `rows` rows.
///
/// # Panics
/// If gate and up differ in size.
pub(crate) fn gate_up(rows: usize, params: &GateUpParams) -> Launch {
    let size = |m: &Matrix| (m.rows(), m.columns());
    assert_eq!(size(&params.gate), size(&params.up), "sizes of gate and up");
    // Half of a CTA's panels are the gate's, half of them the same features of up.
    launch_tiled(rows, |panels| params.gate.panels().div_ceil(panels / 2), params)
}

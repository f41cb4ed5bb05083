//! Launches of `kernels/project.cu`: a matrix product added to the hidden states.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, Tiled, Width, launch_tiled, layout_of};
use bytemuck::{Pod, Zeroable};

/// What the kernels take; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ProjectParams {
    pub(crate) batch: Batch,
    /// `[C, K]`.
    pub(crate) weights: Matrix,
    /// f32 `[C]`, or address 0.
    pub(crate) bias: Address,
    /// bf16 `[T, K]`.
    pub(crate) x: Address,
    /// bf16 `[T, C]`, added to.
    pub(crate) hidden: Address,
}

layout_of!(ProjectParams: batch, weights, bias, x, hidden);

impl KernelParams for ProjectParams {
    const KERNEL: &'static str = "forerun_project";
}

impl Tiled for ProjectParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_project_n8", "forerun_project_n16", "forerun_project_n32", "forerun_project_n64"];
    const WIDTH: Width = Width::Narrow;
}

/// The launch for a pass of at most `rows` rows.
pub(crate) fn project(rows: usize, params: &ProjectParams) -> Launch {
    launch_tiled(rows, |panels| params.weights.panels().div_ceil(panels), params)
}

//! Launches of `kernels/project.cu`: a matrix product added to the hidden states.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, Preparation, SplitSums, Tiled, Width, launch_tiled, layout_of};
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
    /// What the norm behind the new rows needs of them.
    pub(crate) next: Preparation,
    pub(crate) split: SplitSums,
}

layout_of!(ProjectParams: batch, weights, bias, x, hidden, next, split);

impl KernelParams for ProjectParams {
    const KERNEL: &'static str = "forerun_project";
}

impl Tiled for ProjectParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_project_n8", "forerun_project_n16", "forerun_project_n32", "forerun_project_n64"];
    const WIDTH: Width = Width::Narrow;
}

/// The launch for a pass of at most `rows` rows on a GPU of `sms` SMs.
pub(crate) fn project(rows: usize, sms: usize, params: &ProjectParams) -> Launch {
    launch_tiled(rows, |panels| params.weights.panels().div_ceil(panels), sms, params)
}

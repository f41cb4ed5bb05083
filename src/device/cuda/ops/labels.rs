//! Launches of `kernels/labels.cu`: probabilities over small label sets, all requests at once.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Batch, ResultsView};
use super::matrix::{Matrix, PreparedRows, TokenTile, Width, layout_of};
use bytemuck::{Pod, Zeroable};

/// Labels a head may have; staging refuses more.
pub(crate) const LABELS_MAX: usize = 32;

/// What the kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LabelsParams {
    pub(crate) batch: Batch,
    pub(crate) results: ResultsView,
    /// `[V, C]`.
    pub(crate) weights: Matrix,
    /// `[T, C]`.
    pub(crate) rows: PreparedRows,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

layout_of!(LabelsParams: batch, results, weights, rows, eps, reserved);

impl KernelParams for LabelsParams {
    const KERNEL: &'static str = "forerun_labels";
}

/// Threads of a CTA.
const THREADS: u32 = 256;

/// The launch for at most `heads` label heads.
pub(crate) fn labels(heads: usize, params: &LabelsParams) -> Launch {
    let shared = TokenTile::N8.shared_bytes(Width::Narrow);
    Launch::new([heads as u32, 1, 1], THREADS, shared, params)
}

//! Launches of `kernels/head.cu`: the vocabulary head for the rows that want it, and what finishes
//! its arg max and log-probabilities. Labels have their own kernel.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch, ResultsView};
use super::matrix::{Matrix, PreparedRows, Tiled, Width, launch_tiled, layout_of};
use crate::config::FIRST_IDS_STEP;
use bytemuck::{Pod, Zeroable};

/// What the kernels take; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct HeadParams {
    pub(crate) batch: Batch,
    /// `[V, C]`.
    pub(crate) weights: Matrix,
    /// `[T, C]`.
    pub(crate) rows: PreparedRows,
    /// f32 `[full rows, V]`; address 0 where no head is full.
    pub(crate) logits: Address,
    /// [`summaries_bytes`] of scratch.
    pub(crate) summaries: Address,
    /// [`targets_bytes`] of scratch.
    pub(crate) targets: Address,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

layout_of!(
    HeadParams: batch, weights, rows, logits, summaries, targets, eps, reserved
);

impl KernelParams for HeadParams {
    const KERNEL: &'static str = "forerun_head";
}

impl Tiled for HeadParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_head_n8", "forerun_head_n16", "forerun_head_n32", "forerun_head_n64"];
    const WIDTH: Width = Width::Wide;
}

/// What the finishing kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct HeadFinishParams {
    batch: Batch,
    results: ResultsView,
    summaries: Address,
    targets: Address,
    summaries_per_head: i32,
    reserved: i32,
}

layout_of!(
    HeadFinishParams: batch, results, summaries, targets, summaries_per_head, reserved
);

impl KernelParams for HeadFinishParams {
    const KERNEL: &'static str = "forerun_head_finish";
}

/// Threads of a finishing CTA.
const FINISH_THREADS: u32 = 256;
/// Logits that a CTA reduces to one summary.
const FEATURES: usize = 256;
const _: () = assert!(FIRST_IDS_STEP.is_multiple_of(FEATURES), "the first ids are whole CTAs");
/// Bytes of a summary.
const SUMMARY_BYTES: usize = 16;

/// Bytes of scratch for the summaries of at most `heads` heads.
pub(crate) fn summaries_bytes(heads: usize, vocab: usize) -> usize {
    heads * vocab.div_ceil(FEATURES) * SUMMARY_BYTES
}

/// Bytes of scratch for the logits that at most `heads` heads ask the log-probability of.
pub(crate) fn targets_bytes(heads: usize) -> usize {
    heads * 4
}

/// The two launches for at most `heads` vocabulary heads, of which none looks at more than the
/// first `ids`, in order.
pub(crate) fn head(
    (heads, ids): (usize, usize),
    params: &HeadParams,
    results: ResultsView,
) -> [Launch; 2] {
    let summaries_per_head = ids.div_ceil(FEATURES);
    let finish = HeadFinishParams {
        batch: params.batch,
        results,
        summaries: params.summaries,
        targets: params.targets,
        summaries_per_head: summaries_per_head as i32,
        reserved: 0,
    };
    [
        launch_tiled(heads, |_| summaries_per_head, 0, params),
        Launch::new([heads as u32, 1, 1], FINISH_THREADS, 0, &finish),
    ]
}

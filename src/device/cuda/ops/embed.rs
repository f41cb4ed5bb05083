//! Launches of `kernels/embed.cu`: embedding rows to hidden states.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, Preparation, layout_of};
use bytemuck::{Pod, Zeroable};

/// What the kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct EmbedParams {
    pub(crate) batch: Batch,
    /// `[V, C]`.
    pub(crate) table: Matrix,
    /// i32 `[T]`: tokens of the rows that have [`super::feed::FED_TOKEN`] in the batch.
    pub(crate) fed: Address,
    /// bf16 `[T, C]`.
    pub(crate) hidden: Address,
    /// What the first norm needs of the rows.
    pub(crate) next: Preparation,
}

layout_of!(EmbedParams: batch, table, fed, hidden, next);

impl KernelParams for EmbedParams {
    const KERNEL: &'static str = "forerun_embed";
}

/// Threads of a CTA.
const THREADS: u32 = 128;

/// The launch for a pass of at most `rows` rows.
pub(crate) fn embed(rows: usize, params: &EmbedParams) -> Launch {
    Launch::new([rows as u32, 1, 1], THREADS, 0, params)
}

//! Launches of `kernels/accept.cu`: how much of a drafted window survives.
//!
//! Verification on the base's stream is [`super::sample::launch_sample`] over the `K + 1` full rows
//! of every window, which leaves each row's [`super::sample::Cut`] and the token that follows a
//! whole window, then [`launch_accept`]. The draft's samples and cuts are those its
//! tokens were drawn with. Read next: [`crate::sample::accept_chain`], the rule.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::Address;
use super::sample::SampleSource;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// Threads of an acceptance CTA.
const THREADS: u32 = 512;

/// One drafted window. Both models number tokens alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Chain {
    /// Tokens of the window, `K`.
    pub(crate) drafted: i32,
    /// The first of them in [`AcceptBuffers::tokens`].
    pub(crate) first_token: i32,
    /// The first of `K + 1` base samples; sample `i` is keyed by the position of drafted token
    /// `i`.
    pub(crate) first_base: i32,
    /// The first of `K` draft samples; not read where the base is greedy.
    pub(crate) first_draft: i32,
}

/// What is left of a window; [`crate::sample::Accepted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AcceptOut {
    /// Drafted tokens that stay.
    pub(crate) prefix: i32,
    /// The base model's token after them.
    pub(crate) next: i32,
}

/// What one acceptance reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AcceptBuffers {
    /// One number: how many chains there are.
    pub(crate) count: Address,
    /// [`Chain`]s.
    pub(crate) chains: Address,
    /// Drafted ids.
    pub(crate) tokens: Address,
    /// The base's samples and logits.
    pub(crate) base: SampleSource,
    /// The draft's.
    pub(crate) draft: SampleSource,
    /// One a base sample.
    pub(crate) base_cuts: Address,
    /// One a draft sample.
    pub(crate) draft_cuts: Address,
    /// The scratch memory of the base's sampling, as it left it.
    pub(crate) base_scratch: Address,
    /// What the base's samples drew.
    pub(crate) base_results: Address,
    /// [`AcceptOut`]s, one a chain.
    pub(crate) results: Address,
}

impl AcceptBuffers {
    /// Sizes and offsets, as `forerun_accept_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, count) as u32,
            offset_of!(Self, chains) as u32,
            offset_of!(Self, tokens) as u32,
            offset_of!(Self, base) as u32,
            offset_of!(Self, draft) as u32,
            offset_of!(Self, base_cuts) as u32,
            offset_of!(Self, draft_cuts) as u32,
            offset_of!(Self, base_scratch) as u32,
            offset_of!(Self, base_results) as u32,
            offset_of!(Self, results) as u32,
            size_of::<Chain>() as u32,
            offset_of!(Chain, drafted) as u32,
            offset_of!(Chain, first_token) as u32,
            offset_of!(Chain, first_base) as u32,
            offset_of!(Chain, first_draft) as u32,
            size_of::<AcceptOut>() as u32,
            offset_of!(AcceptOut, prefix) as u32,
            offset_of!(AcceptOut, next) as u32,
        ]
    }
}

impl KernelParams for AcceptBuffers {
    const KERNEL: &'static str = "forerun_accept";
}

/// Accepts up to `chains` windows; the grid may be larger than the staged count.
#[must_use]
pub(crate) fn launch_accept(buffers: &AcceptBuffers, chains: u32) -> Launch {
    Launch::new([chains, 1, 1], THREADS, 0, buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_a_cta_of_its_own() {
        let launch = launch_accept(&AcceptBuffers::zeroed(), 6);
        assert_eq!(
            (launch.kernel, launch.grid, launch.threads),
            ("forerun_accept", [6, 1, 1], 512)
        );
    }
}

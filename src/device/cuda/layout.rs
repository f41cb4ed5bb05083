//! The Rust side of `kernels/common/batch.cuh`: the same fields in the same order.
//!
//! Invariant: sizes and offsets equal the CUDA side's; a test reads them from the compiled kernels.

use bytemuck::{Pod, Zeroable};

/// A device address. Never followed on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// The address `bytes` further on.
    #[must_use]
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Consecutive rows that share their page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Group {
    pub(crate) row_begin: i32,
    pub(crate) rows: i32,
    pub(crate) prefix_pages: i32,
    pub(crate) prefix_len: i32,
    pub(crate) own_pages: i32,
    pub(crate) own_len: i32,
    /// First entry of the masks, or -1: causal.
    pub(crate) mask: i32,
    pub(crate) reserved: i32,
}

/// One tile of attention: some rows of a group against one split of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AttentionWork {
    pub(crate) group: i32,
    pub(crate) first_row: i32,
    pub(crate) rows: i32,
    pub(crate) first_key: i32,
    pub(crate) keys: i32,
    pub(crate) split: i32,
    pub(crate) reserved: [i32; 2],
}

/// A head over the whole vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct VocabHead {
    pub(crate) row: i32,
    /// 0 argmax, 1 log-probability, 2 full.
    pub(crate) kind: i32,
    pub(crate) argument: i32,
    /// `V`, or the first so many that it looks at.
    pub(crate) ids: i32,
    pub(crate) result: i32,
}

/// A head over a few labels, at most 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LabelHead {
    pub(crate) row: i32,
    pub(crate) first_label: i32,
    pub(crate) labels: i32,
    pub(crate) result: i32,
}

/// How many of each there are; `kCounts` numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) rows: i32,
    pub(crate) attention_work: i32,
    pub(crate) vocab_heads: i32,
    pub(crate) label_heads: i32,
    pub(crate) samples: i32,
    pub(crate) fed: i32,
    pub(crate) reserved: [i32; 2],
}

/// Pointers to the staged blob; the same for every pass of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Batch {
    pub(crate) counts: Address,
    pub(crate) tokens: Address,
    pub(crate) positions: Address,
    pub(crate) slots: Address,
    pub(crate) groups: Address,
    pub(crate) pages: Address,
    pub(crate) masks: Address,
    pub(crate) work: Address,
    pub(crate) row_partials: Address,
    pub(crate) vocab_heads: Address,
    pub(crate) label_heads: Address,
    pub(crate) labels: Address,
    pub(crate) samples: Address,
}

/// What one head left.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct HeadOut {
    pub(crate) value: f32,
    pub(crate) id: i32,
    pub(crate) non_finite: i32,
    pub(crate) reserved: i32,
}

/// What one draw left.
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SampleOut {
    pub(crate) id: i32,
    pub(crate) logprob: f32,
    pub(crate) entropy_nats: f32,
    pub(crate) top1_prob: f32,
}

/// Pointers to where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ResultsView {
    pub(crate) heads: Address,
    pub(crate) probabilities: Address,
    pub(crate) samples: Address,
}

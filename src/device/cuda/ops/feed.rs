//! Launches of `kernels/feed.cu`: tokens of one pass into rows of the next.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch, ResultsView};
use crate::device::{Drawn, FedRow};
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// In a staged batch: the row's token is where [`feed`] left it.
pub(crate) const FED_TOKEN: i32 = -1;

/// A row whose token the pass before drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Fed {
    row: i32,
    /// Index of the head, or `!index` of the sample.
    drawn: i32,
}

impl From<&FedRow> for Fed {
    fn from(fed: &FedRow) -> Self {
        let drawn = match fed.drawn {
            Drawn::Head(index) => index as i32,
            Drawn::Sample(index) => !(index as i32),
        };
        Self { row: fed.row as i32, drawn }
    }
}

/// What the kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FeedParams {
    batch: Batch,
    fed: Address,
    tokens: Address,
    heads: Address,
    samples: Address,
    vocab: i32,
    reserved: i32,
}

impl FeedParams {
    /// Sizes and offsets, as `forerun_feed_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, batch) as u32,
            offset_of!(Self, fed) as u32,
            offset_of!(Self, tokens) as u32,
            offset_of!(Self, heads) as u32,
            offset_of!(Self, samples) as u32,
            offset_of!(Self, vocab) as u32,
            offset_of!(Self, reserved) as u32,
            size_of::<Fed>() as u32,
            offset_of!(Fed, row) as u32,
            offset_of!(Fed, drawn) as u32,
        ]
    }
}

impl KernelParams for FeedParams {
    const KERNEL: &'static str = "forerun_feed";
}

/// Threads of a CTA.
const THREADS: u32 = 256;

/// Leaves at `tokens`, one `i32` a row of the batch, the tokens of at most `rows` rows of `batch`
/// from the results of the pass before; `fed` is the list of rows.
pub(crate) fn feed(
    rows: usize,
    batch: Batch,
    [fed, tokens]: [Address; 2],
    before: &ResultsView,
    vocab: usize,
) -> Launch {
    let params = FeedParams {
        batch,
        fed,
        tokens,
        heads: before.heads,
        samples: before.samples,
        vocab: vocab as i32,
        reserved: 0,
    };
    Launch::new([(rows as u32).div_ceil(THREADS), 1, 1], THREADS, 0, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_samples_of_the_same_index_differ() {
        let fed = |drawn| Fed::from(&FedRow { row: 3, drawn }).drawn;
        assert_eq!(
            [fed(Drawn::Head(0)), fed(Drawn::Sample(0)), fed(Drawn::Sample(2))],
            [0, -1, -3]
        );
    }
}

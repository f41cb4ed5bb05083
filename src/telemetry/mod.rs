//! Names of measurements, so that a report, a trace and a metric agree on spelling; and the trace.

mod trace;

pub use trace::{Trace, Track};

/// Where the time of a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Reading the prompt, on either model.
    Prompt,
    /// The draft writes a step.
    Draft,
    /// The base scores a step.
    Score,
    /// The base writes a step, its own or instead of a rejected one.
    Rewrite,
    /// The answer after the thinking.
    Answer,
    /// Everything outside a forward pass.
    Host,
}

impl Phase {
    /// All phases, in the order reports print them.
    pub const ALL: [Self; 6] =
        [Self::Prompt, Self::Draft, Self::Score, Self::Rewrite, Self::Answer, Self::Host];

    /// The name used as a key in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Draft => "draft",
            Self::Score => "score",
            Self::Rewrite => "rewrite",
            Self::Answer => "answer",
            Self::Host => "host",
        }
    }
}

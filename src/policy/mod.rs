//! What a request does next: state machines over a small set of commands.
//!
//! A [`Policy`] never touches a device, a clock or a string. It is given what its last command
//! produced and answers with the next. Everything it may ask for is in [`command`]; everything it
//! decides is told to the outside as a [`Note`].
//!
//! Invariant: from any sequence of outcomes a policy keeps its caps and ends, with exactly one
//! [`Command::Finish`]. Read next: [`stepwise`], which is `base`, `draft` and `specreason` in one;
//! [`lookahead`], which has the base write every step too; [`continuation`] is one model writing
//! on, without steps.

pub mod command;
pub mod continuation;
mod course;
pub mod gates;
pub mod lookahead;
pub mod speculation;
pub mod steps;
pub mod stepwise;

pub use command::{
    Command, Decode, FinishWhy, Outcome, Score, ScorePlace, ScoreSpan, StopCause, Until, Want,
};
pub use continuation::Continuation;
pub use gates::Gates;
pub use lookahead::{Comparison, Lookahead};
pub use speculation::{DraftVocab, Proposer, Speculation, WindowSize};
pub use steps::{AnswerBy, Close, Judge, Reasoning, StepwiseSettings};
pub use stepwise::Stepwise;

use crate::ids::{BranchId, Role, TokenId};
use serde::{Deserialize, Serialize};

/// Who put a token into the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Sampled from the draft.
    Draft,
    /// Sampled from the base.
    Base,
    /// Appended by a policy; not counted against budgets.
    Injected,
}

impl From<Role> for Origin {
    fn from(role: Role) -> Self {
        match role {
            Role::Draft => Self::Draft,
            Role::Base => Self::Base,
        }
    }
}

/// What a policy may see of the generated tails, in the base's numbering.
pub trait Tails {
    /// The ids of `branch` after the prompt.
    ///
    /// # Panics
    /// If the branch does not exist: policies only name branches they were given.
    fn ids(&self, branch: BranchId) -> &[TokenId];
}

/// A decision worth showing. Ranges are tail indices.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Note {
    /// A model starts to write step `index`.
    StepBegan {
        /// Step number, from 0.
        index: u32,
        /// Who writes.
        writer: Role,
    },
    /// The draft hesitated over the first token of the step: the base writes it.
    StepGated {
        /// Step number.
        index: u32,
        /// Nats of the draft's first token.
        entropy: f32,
    },
    /// The base scored the drafted step, or compared it with its own.
    StepScored {
        /// Step number.
        index: u32,
        /// The read-out's value; none where nothing had to be asked: both models wrote the same
        /// tokens, or one of them no whole step.
        score: Option<f32>,
        /// Whether the drafted step is kept: the score reached the threshold.
        accepted: bool,
        /// Tokens of the drafted step; dropped when it was rejected.
        drafted: u32,
        /// Tokens of later steps that were drafted meanwhile; dropped too when this one was
        /// rejected.
        ahead: u32,
        /// The base's log-probability of each drafted token, when asked for.
        logprobs: Vec<f32>,
    },
    /// The step is part of the reply for good.
    StepKept {
        /// Step number.
        index: u32,
        /// First tail index.
        start: u32,
        /// Tail index after the last token.
        end: u32,
        /// Who wrote it.
        writer: Role,
    },
    /// Thinking ended and the answer begins at this tail index.
    AnswerBegan {
        /// Tail index.
        at: u32,
        /// Who writes the answer.
        writer: Role,
        /// Why the thinking ended.
        why: ThinkingEnd,
    },
}

/// Why thinking ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingEnd {
    /// A model wrote the close marker.
    Closed,
    /// A model ended its turn inside its thinking; the marker was injected.
    EndOfTurn,
    /// The token budget was used up; the marker was injected.
    Budget,
    /// Two kept steps in a row were the same; the marker was injected.
    Repeated,
}

/// A policy's answer: commands in order, and what was decided.
#[derive(Debug, Default)]
pub struct Turn {
    /// Executed in order; at most one in flight per branch and model.
    pub commands: Vec<Command>,
    /// For traces, streams and reports.
    pub notes: Vec<Note>,
}

/// A request's state machine.
pub trait Policy: Send {
    /// Takes what a command produced and says what comes next. The first call brings
    /// [`Outcome::Started`].
    fn next(&mut self, tails: &dyn Tails, outcome: Outcome) -> Turn;

    /// The tail index of the root's first token that nobody hears of yet: the end of the first step
    /// that is not decided. The largest number where nothing waits.
    fn undecided_from(&self) -> u32 {
        u32::MAX
    }
}

/// The policies a request can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// The base model alone.
    Base,
    /// The draft model alone.
    Draft,
    /// SpecReason: the draft writes, the base scores and rewrites.
    #[default]
    SpecReason,
    /// The base alone, verifying proposed tokens several at a time: what it says is what
    /// [`Self::Base`] says.
    #[serde(rename = "spec-decode")]
    SpecDecode,
    /// [`Self::SpecReason`], with tokens proposed to the base wherever it writes.
    #[serde(rename = "specreason+decode")]
    SpecReasonDecode,
    /// Both models write every step; the draft's is kept where it says what the base's own says.
    Lookahead,
}

impl PolicyKind {
    /// Every policy, in the order reports print them.
    pub const ALL: [Self; 6] = [
        Self::Base,
        Self::Draft,
        Self::SpecDecode,
        Self::SpecReason,
        Self::SpecReasonDecode,
        Self::Lookahead,
    ];

    /// The name users type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Draft => "draft",
            Self::SpecReason => "specreason",
            Self::SpecDecode => "spec-decode",
            Self::SpecReasonDecode => "specreason+decode",
            Self::Lookahead => "lookahead",
        }
    }

    /// Whether `role` writes steps or scores them.
    #[must_use]
    pub fn uses(self, role: Role) -> bool {
        match self {
            Self::Base | Self::SpecDecode => role == Role::Base,
            Self::Draft => role == Role::Draft,
            Self::SpecReason | Self::SpecReasonDecode | Self::Lookahead => true,
        }
    }

    /// Whether the base decides on what the draft writes.
    #[must_use]
    pub fn judges(self) -> bool {
        matches!(self, Self::SpecReason | Self::SpecReasonDecode | Self::Lookahead)
    }

    /// Whether tokens are proposed to the base where it writes.
    #[must_use]
    pub fn speculates(self) -> bool {
        matches!(self, Self::SpecDecode | Self::SpecReasonDecode)
    }
}

impl std::fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for PolicyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.into_iter().map(Self::name).collect();
            format!("unknown policy {name:?}; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests;

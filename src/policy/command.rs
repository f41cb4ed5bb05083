//! The command set: what a policy may ask of the engine, and what comes back.
//!
//! Positions are tail indices: 0 is the first token after the prompt. Ids are in the base's
//! numbering. Before a model acts the engine brings its KV up to date by itself, so no policy has
//! to remember what a model has seen.

use super::speculation::Speculation;
use crate::ids::{BranchId, Role, TokenId};
use crate::sample::SamplingParams;
use crate::telemetry::Phase;
use std::ops::Range;
use std::sync::Arc;

/// When a [`Decode`] ends. Data, never a closure. The token that completes a condition is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Until {
    /// Any of these ids.
    pub ids: Vec<TokenId>,
    /// Any of these strings, which may span tokens or end inside one.
    pub strings: Vec<String>,
    /// The first of [`Self::strings`] counts only from the so many-th token on.
    pub first_string_from: u32,
    /// The end of a sentence.
    pub sentence_end: bool,
    /// A token drawn from a distribution whose entropy, in nats, exceeds this.
    pub entropy_above: Option<f32>,
    /// The first token, drawn from a distribution whose entropy, in nats, exceeds this.
    pub first_entropy_above: Option<f32>,
    /// A token drawn from a distribution whose entropy, in nats, is below this.
    pub entropy_below: Option<f32>,
    /// This many tokens; at least 1.
    pub limit: u32,
}

/// Per-token measurements a [`Decode`] should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Want {
    /// Entropy of the raw distribution, in nats.
    pub entropy: bool,
    /// Probability of its most likely token.
    pub top1: bool,
    /// Log-probability of the drawn token.
    pub logprob: bool,
    /// The likeliest tokens of the raw distribution, this many, told with the token itself.
    pub alternatives: u32,
}

impl Want {
    /// Whether anything is wanted.
    #[must_use]
    pub fn any(self) -> bool {
        self.entropy || self.top1 || self.logprob || self.alternatives > 0
    }
}

/// A model continues.
#[derive(Debug, Clone)]
pub struct Decode {
    /// Where.
    pub branch: BranchId,
    /// Which model.
    pub role: Role,
    /// When it ends.
    pub until: Until,
    /// How tokens are drawn.
    pub sampling: Arc<SamplingParams>,
    /// What to measure.
    pub want: Want,
    /// What the time counts as.
    pub phase: Phase,
    /// Who proposes tokens that the model verifies several at a time. No token depends on it.
    pub speculation: Option<Speculation>,
    /// Tokens somebody else wrote here already: the first that are proposed.
    pub first_window: Vec<TokenId>,
    /// Whose random numbers its tokens are drawn with: those of its own branch, or of the one whose
    /// place this branch may take.
    pub draws_as: BranchId,
}

/// What a [`Score`] returns of the tokens the model had not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScoreSpan {
    /// Nothing.
    #[default]
    None,
    /// The log-probabilities of all tokens up to the last place, from the same pass.
    LogProbs {
        /// First tail index wanted.
        from: u32,
    },
}

/// A place of the tail at which labels are read.
#[derive(Debug, Clone)]
pub struct ScorePlace {
    /// Tail tokens the suffix comes after; the tail may be longer.
    pub end: u32,
    /// Scratch tokens; they leave no trace in the KV.
    pub suffix: Arc<[TokenId]>,
}

/// A model prefills what it has not seen and a scratch suffix after each of some places, and labels
/// are read at the end of each suffix. A suffix sees the tail before its place and nothing of the
/// others, so a place reads the same whether it is scored alone or with others.
#[derive(Debug, Clone)]
pub struct Score {
    /// Where.
    pub branch: BranchId,
    /// Which model.
    pub role: Role,
    /// In the order of the tail; at least one.
    pub places: Vec<ScorePlace>,
    /// The label set.
    pub labels: Arc<[TokenId]>,
    /// What to return of the tail.
    pub span: ScoreSpan,
}

/// What a policy asks for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Command {
    /// See [`Decode`].
    Decode(Decode),
    /// See [`Score`].
    Score(Score),
    /// Log-probabilities of a span of the tail under a model.
    Span {
        /// Where.
        branch: BranchId,
        /// Under which model.
        role: Role,
        /// Tail indices.
        range: Range<u32>,
    },
    /// Append tokens nobody sampled.
    Inject {
        /// Where.
        branch: BranchId,
        /// What.
        ids: Vec<TokenId>,
    },
    /// Forget the tail beyond `len`.
    Rollback {
        /// Where.
        branch: BranchId,
        /// Tail tokens that stay.
        len: u32,
    },
    /// `n` new branches that share everything `branch` holds, copy-on-write.
    Fork {
        /// Which.
        branch: BranchId,
        /// How many.
        n: u32,
    },
    /// This branch is the reply: it takes the root's place, and every other one is dropped, with
    /// what is in flight on it.
    Keep {
        /// Which.
        branch: BranchId,
    },
    /// Forget a branch, with what is in flight on it.
    Drop {
        /// Which.
        branch: BranchId,
    },
    /// Run code in the sandbox.
    Tool {
        /// The code.
        code: String,
    },
    /// Done.
    Finish {
        /// Why.
        why: FinishWhy,
    },
}

/// Why a [`Decode`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// One of [`Until::ids`].
    Id(TokenId),
    /// The string with this index in [`Until::strings`].
    String(usize),
    /// The end of a sentence.
    SentenceEnd,
    /// An entropy bound.
    Entropy,
    /// [`Until::limit`].
    Limit,
    /// The context of one of the models is full.
    Context,
}

/// Why a request is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishWhy {
    /// A model ended its turn.
    Stop,
    /// A budget or the context was used up.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a command produced.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// The request begins; the root branch is empty.
    Started,
    /// From [`Command::Decode`].
    Decoded {
        /// Where.
        branch: BranchId,
        /// Who wrote.
        role: Role,
        /// The new tail indices.
        range: Range<u32>,
        /// Why it ended.
        stop: StopCause,
        /// One entry per token when anything was wanted.
        stats: Vec<TokenStats>,
    },
    /// From [`Command::Score`]: one for each of its places, in their order.
    Scored {
        /// Where.
        branch: BranchId,
        /// Who scored.
        role: Role,
        /// One probability per label, summing to 1.
        probs: Vec<f32>,
        /// Log-probabilities as [`ScoreSpan`] asked: from its beginning, or from the place before,
        /// up to this one.
        logprobs: Vec<f32>,
    },
    /// From [`Command::Span`].
    Spanned {
        /// Where.
        branch: BranchId,
        /// Under which model.
        role: Role,
        /// One per token of the range.
        logprobs: Vec<f32>,
    },
    /// From [`Command::Inject`], [`Command::Rollback`], [`Command::Keep`] and [`Command::Drop`].
    Done {
        /// Where.
        branch: BranchId,
    },
    /// From [`Command::Fork`].
    Forked {
        /// The new branches.
        branches: Vec<BranchId>,
    },
    /// From [`Command::Tool`].
    ToolReturned {
        /// Its output.
        text: String,
    },
    /// The command in flight on this branch and model was cancelled.
    Cancelled {
        /// Where.
        branch: BranchId,
        /// Whose command.
        role: Role,
    },
}

/// Measurements of one drawn token; absent unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenStats {
    /// Nats.
    pub entropy: Option<f32>,
    /// Of the most likely token.
    pub top1: Option<f32>,
    /// Nats.
    pub logprob: Option<f32>,
}

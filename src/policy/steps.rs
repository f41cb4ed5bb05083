//! What stepped replies are made of: the settings of the machines that write them.
//!
//! [`super::stepwise`] and [`super::lookahead`] read the same ones, so that what one of them calls
//! a step, a budget or an end the other does too. Read next: `course`.

use super::{Gates, Speculation, Want};
use crate::ids::{Role, TokenId};
use crate::sample::{Readout, SamplingParams};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who writes the answer after the thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerBy {
    /// The base model.
    #[default]
    Base,
    /// The draft model.
    Draft,
    /// Whoever wrote the last step.
    Last,
}

impl std::str::FromStr for AnswerBy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "base" => Ok(Self::Base),
            "draft" => Ok(Self::Draft),
            "last" => Ok(Self::Last),
            _ => Err(format!("{name:?} is none of base, draft, last")),
        }
    }
}

/// What ends the thinking.
#[derive(Debug, Clone, PartialEq)]
pub enum Close {
    /// One token.
    Id(TokenId),
    /// A text of several tokens.
    Text(String),
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reasoning {
    /// It thinks up to a close marker, then answers.
    Tags {
        /// The marker.
        close: Close,
        /// What is injected to force it.
        close_ids: Vec<TokenId>,
    },
    /// The whole reply is stepped; there is no answer phase.
    None,
}

/// How the base scores a step.
#[derive(Debug, Clone)]
pub struct Judge {
    /// The scratch suffix after a step that ends with its delimiter.
    pub suffix: Arc<[TokenId]>,
    /// The same after a step that ends otherwise: it begins with the delimiter.
    pub suffix_after_open_step: Arc<[TokenId]>,
    /// The same after a step that ends the turn.
    pub suffix_after_turn: Arc<[TokenId]>,
    /// The ten digits, in order.
    pub labels: Arc<[TokenId]>,
    /// How the probabilities become a score.
    pub readout: Readout,
    /// Accept from here on.
    pub threshold: f32,
    /// For [`Readout::Prob`]: the probability that has to be reached.
    pub cutoff: f32,
    /// Whether to return the base's log-probability of every drafted token.
    pub step_logprobs: bool,
}

/// All settings of the machine. Ids are in the base's numbering.
#[derive(Debug, Clone)]
pub struct StepwiseSettings {
    /// Who writes steps first.
    pub writer: Role,
    /// Steps the base writes unasked before the draft's turn comes.
    pub first_n: u32,
    /// Scores the draft's steps; without one they are kept as they are.
    pub judge: Option<Judge>,
    /// What ends a step.
    pub delimiter: String,
    /// Tokens one step may have.
    pub step_tokens_max: u32,
    /// Sampled tokens that may be kept before the answer.
    pub token_budget: u32,
    /// Tokens of the answer.
    pub answer_tokens_max: u32,
    /// Sampled tokens that may be kept in all, thinking and answer together.
    pub tokens_max: u32,
    /// Stop when two kept steps in a row are the same.
    pub stop_on_repeat: bool,
    /// Thinking or not.
    pub reasoning: Reasoning,
    /// Who answers.
    pub answer_by: AnswerBy,
    /// Ids that end the turn.
    pub end_of_turn: Vec<TokenId>,
    /// How tokens are drawn, by either model.
    pub sampling: Arc<SamplingParams>,
    /// What to measure where the base writes.
    pub base_want: Want,
    /// Steps the draft may write beyond the first that is not decided.
    pub draft_ahead: u32,
    /// Drafted steps the base scores in one pass, at most; at least 1.
    pub score_batch: u32,
    /// Who proposes tokens wherever the base writes.
    pub speculation: Option<Speculation>,
    /// Propose a rejected step to the base, token by token, when it rewrites it.
    pub salvage: bool,
    /// When the draft does not write, and when the base is not asked.
    pub gates: Gates,
    /// Phrases of hesitation: a step with one of them is scored, however sure the draft was.
    pub hesitations: Vec<Vec<TokenId>>,
}

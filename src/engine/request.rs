//! What goes into the engine and what comes out: requests, events, replies.
//!
//! Read next: [`super::Engine::submit`].

use crate::config;
use crate::error::RequestError;
use crate::ids::{RequestId, TokenId};
use crate::policy::{
    AnswerBy, DraftVocab, FinishWhy, Gates, Note, Origin, PolicyKind, Proposer, Speculation,
    WindowSize,
};
use crate::sample::{Grammar, Readout, SamplingOverrides};
use crate::telemetry::Phase;
use crate::text::Message;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::judge::JudgeText;

/// One question.
#[derive(Debug, Clone)]
pub struct Request {
    /// The conversation; the pair's instruction is appended to the last user message.
    pub messages: Vec<Message>,
    /// Who does what.
    pub policy: PolicyKind,
    /// Overrides of the model's sampling defaults.
    pub sampling: SamplingOverrides,
    /// Overrides of the pair's settings.
    pub options: PolicyOptions,
    /// Asks for the base's log-probability of every token, whoever wrote it, and of this many of
    /// the likeliest beside it. The base has to read all of the reply: it answers.
    pub logprobs: Option<u32>,
    /// What the reply has to follow, from its beginning or from the end of its thinking on.
    pub grammar: Option<Grammar>,
    /// More variables of both models' chat templates, such as `tools`.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// Its turn among others.
    pub urgency: Urgency,
}

/// Whose turn it is when not everybody can be worked on, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Urgency {
    /// The lower runs first; a request takes the place of another only if its number is lower.
    pub priority: i32,
    /// From submission on; a request that is not done by then ends with
    /// [`RequestError::TimedOut`].
    pub timeout: Option<Duration>,
}

impl Request {
    /// A request with one user message and the pair's settings.
    #[must_use]
    pub fn ask(question: &str) -> Self {
        Self {
            messages: vec![Message::new("user", question)],
            policy: PolicyKind::default(),
            sampling: SamplingOverrides::default(),
            options: PolicyOptions::default(),
            logprobs: None,
            grammar: None,
            variables: serde_json::Map::new(),
            urgency: Urgency::default(),
        }
    }
}

/// Overrides of a pair's settings; `None` keeps the pair's own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyOptions {
    /// Accept a step from this score on.
    pub threshold: Option<f32>,
    /// How the ten probabilities become a score.
    pub readout: Option<Readout>,
    /// For the read-out `prob`: the probability that has to be reached.
    pub cutoff: Option<f32>,
    /// The judge's words and layout.
    pub judge: Option<JudgeText>,
    /// Steps the base writes before the draft's turn comes.
    pub first_n: Option<u32>,
    /// Tokens one step may have.
    pub step_tokens_max: Option<u32>,
    /// Sampled thinking tokens that may be kept.
    pub token_budget: Option<u32>,
    /// Sampled tokens the reply may keep in all, answer included.
    pub tokens_max: Option<u32>,
    /// What ends a step.
    pub step_delimiter: Option<String>,
    /// Who writes the answer.
    pub answer_by: Option<AnswerBy>,
    /// Stop when two steps in a row are the same.
    pub stop_on_repeat: Option<bool>,
    /// Record the base's log-probability of every drafted token.
    pub step_logprobs: bool,
    /// Who proposes tokens to the base, under a policy that speculates.
    pub proposer: Option<Proposer>,
    /// How many tokens are proposed at a time.
    pub window: Option<WindowSize>,
    /// How many in one place: with more than one they make a tree.
    pub branches: Option<u32>,
    /// Of which ids, where the draft proposes.
    pub draft_vocab: Option<DraftVocab>,
    /// Propose a rejected step to the base when it rewrites it.
    pub salvage: bool,
    /// When the draft does not write, and when the base is not asked.
    pub gates: Gates,
}

/// What an engine says about one request, in order. The last event is [`Event::Finished`] or
/// [`Event::Failed`], and there is exactly one of these.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The request has a place; settings as they will be used.
    Started(Settings),
    /// Tokens were appended.
    Tokens {
        /// Tail index of the first.
        at: u32,
        /// Base numbering.
        ids: Vec<TokenId>,
        /// Their text; characters that are not complete yet come with a later event.
        text: String,
        /// Who wrote them.
        origin: Origin,
        /// One per id, where they were asked for and the model that reports them drew the tokens;
        /// else empty.
        logprobs: Vec<TokenLogprob>,
    },
    /// What the base makes of tokens it did not draw itself.
    Logprobs {
        /// Tail index of the first.
        at: u32,
        /// One per token.
        logprobs: Vec<TokenLogprob>,
    },
    /// Everything from this tail index on was forgotten.
    RolledBack {
        /// Tail index.
        to: u32,
    },
    /// The policy decided something.
    Note(Note),
    /// The request is done.
    Finished(Box<Reply>),
    /// The request ended with an error.
    Failed(RequestError),
}

/// How likely a drawn token was under its model's raw distribution, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Of the token drawn.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first, in the numbering of the model that wrote.
    pub alternatives: Vec<(TokenId, f32)>,
}

/// The settings a request runs with, after every default and clamp.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The pair.
    pub pair: String,
    /// The policy.
    pub policy: PolicyKind,
    /// The device.
    pub device: String,
    /// Accept from here on.
    pub threshold: f32,
    /// Read-out.
    pub score: Readout,
    /// Judge layout: `turn` or `prefix`.
    pub judge: String,
    /// Tokens scored after each step.
    pub judge_suffix_tokens: usize,
    /// Steps by the base first.
    pub first_n: u32,
    /// Sampled thinking tokens that may be kept.
    pub token_budget: u32,
    /// What the user or the pair asked for, when the context forced a smaller budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget_asked: Option<u32>,
    /// Tokens of one step.
    pub step_tokens_max: u32,
    /// Who answers.
    pub answer_by: AnswerBy,
    /// Who proposes tokens to the base, and how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// Whether rejected steps are proposed to the base.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub salvage: bool,
    /// When the draft does not write, and when the base is not asked.
    #[serde(skip_serializing_if = "is_off")]
    pub gates: Gates,
    /// Context of both models.
    pub max_model_len: u32,
    /// Sampling.
    pub temperature: f32,
    /// Sampling.
    pub top_k: u32,
    /// Sampling.
    pub top_p: f32,
    /// Sampling.
    pub min_p: f32,
    /// Sampling.
    pub seed: u64,
}

fn is_off(gates: &Gates) -> bool {
    !gates.any()
}

/// One kept step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Its text, delimiter included.
    pub text: String,
    /// Who wrote it; a forced end of thinking is injected.
    pub origin: Origin,
    /// The score of the draft's version; `null` where nothing was scored.
    pub score: Option<f32>,
    /// Tokens kept.
    pub tokens: u32,
    /// Tokens the draft wrote for it, kept or not.
    pub drafted: u32,
    /// Wall time, all phases.
    pub ms: f64,
    /// The base's log-probabilities of the drafted tokens, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<f32>,
}

/// Where tokens came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TokenCounts {
    /// Prompt tokens of the base.
    pub prompt_base: u32,
    /// Prompt tokens of the draft.
    pub prompt_draft: u32,
    /// Of the base's prompt, what lay in the prefix cache.
    pub cached_base: u32,
    /// Of the draft's prompt, what lay in the prefix cache.
    pub cached_draft: u32,
    /// Kept, sampled from the draft.
    pub draft: u32,
    /// Kept, sampled from the base.
    pub base: u32,
    /// Kept, injected.
    pub injected: u32,
    /// Of steps the draft wrote, those thrown away.
    pub wasted: u32,
    /// Proposed to the base one by one.
    pub proposed: u32,
    /// Of these, what the base drew too.
    pub matched: u32,
    /// Of rejected steps, what the base wrote again as it stood.
    pub salvaged: u32,
}

/// Time and work of one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PhaseCost {
    /// Wall time.
    pub ms: f64,
    /// Rows that went through a model.
    pub rows: u32,
    /// Passes this request took part in.
    pub passes: u32,
}

/// The result of a request.
#[derive(Debug, Clone, Serialize)]
pub struct Reply {
    /// The request.
    #[serde(skip)]
    pub id: RequestId,
    /// Everything generated, without the end of the turn.
    pub text: String,
    /// What follows the thinking; all of `text` where the pair does not think.
    pub final_text: String,
    /// The answer found in the text, if any.
    pub answer: Option<String>,
    /// Why it ended.
    pub finish: FinishWhy,
    /// Kept steps.
    pub steps: Vec<StepReport>,
    /// Steps scored and accepted.
    pub accepted: u32,
    /// Steps scored and rewritten by the base.
    pub rewritten: u32,
    /// Steps the draft began and left to the base.
    pub gated: u32,
    /// Generated ids, base numbering.
    pub ids: Vec<TokenId>,
    /// Tokens by origin.
    pub tokens: TokenCounts,
    /// Cost by phase, in the order of [`Phase::ALL`].
    #[serde(skip)]
    pub cost: [PhaseCost; 6],
    /// Wall time from submission to end.
    #[serde(skip)]
    pub total_ms: f64,
    /// Settings used.
    pub settings: Settings,
}

impl Reply {
    /// Cost of one phase.
    #[must_use]
    pub fn phase(&self, phase: Phase) -> PhaseCost {
        self.cost[phase as usize]
    }

    /// The share of scored steps that were accepted.
    #[must_use]
    pub fn acceptance(&self) -> Option<f64> {
        let scored = self.accepted + self.rewritten;
        (scored > 0).then(|| f64::from(self.accepted) / f64::from(scored))
    }

    /// An estimate of what the base alone would have needed for the same kept tokens, from this
    /// run's own base decoding: `None` where the base decoded nothing, or several tokens a pass.
    #[must_use]
    pub fn base_only_ms_estimate(&self) -> Option<f64> {
        let (rewrite, answer) = (self.phase(Phase::Rewrite), self.phase(Phase::Answer));
        let by_base = self.settings.answer_by != AnswerBy::Draft;
        let answer = if by_base { answer } else { PhaseCost::default() };
        let passes = rewrite.passes + answer.passes;
        let kept = self.tokens.draft + self.tokens.base;
        let per_token = (rewrite.ms + answer.ms) / f64::from(passes);
        let one_by_one = self.tokens.proposed + self.tokens.salvaged == 0
            && self.settings.policy != PolicyKind::Lookahead;
        (passes > 0 && one_by_one)
            .then(|| self.phase(Phase::Prompt).ms + per_token * f64::from(kept))
    }
}

/// What a calibration chose for a pair; requests and flags that say otherwise win.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// The pair it was chosen for.
    pub pair: String,
    /// Who does what.
    pub policy: PolicyKind,
    /// Its knobs.
    pub options: PolicyOptions,
}

impl PolicyOptions {
    /// What this layer states, else what the layer below states.
    #[must_use]
    pub fn or(&self, below: &Self) -> Self {
        let (a, b) = (self.clone(), below.clone());
        Self {
            threshold: a.threshold.or(b.threshold),
            readout: a.readout.or(b.readout),
            cutoff: a.cutoff.or(b.cutoff),
            judge: a.judge.or(b.judge),
            first_n: a.first_n.or(b.first_n),
            step_tokens_max: a.step_tokens_max.or(b.step_tokens_max),
            token_budget: a.token_budget.or(b.token_budget),
            tokens_max: a.tokens_max.or(b.tokens_max),
            step_delimiter: a.step_delimiter.or(b.step_delimiter),
            answer_by: a.answer_by.or(b.answer_by),
            stop_on_repeat: a.stop_on_repeat.or(b.stop_on_repeat),
            step_logprobs: a.step_logprobs || b.step_logprobs,
            proposer: a.proposer.or(b.proposer),
            window: a.window.or(b.window),
            branches: a.branches.or(b.branches),
            draft_vocab: a.draft_vocab.or(b.draft_vocab),
            salvage: a.salvage || b.salvage,
            gates: Gates {
                entropy_max: a.gates.entropy_max.or(b.gates.entropy_max),
                confidence_min: a.gates.confidence_min.or(b.gates.confidence_min),
                merge_tokens: a.gates.merge_tokens.or(b.gates.merge_tokens),
            },
        }
    }

    /// Checks ranges that do not depend on the pair.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] naming the first bad field.
    pub fn validate(&self) -> Result<(), RequestError> {
        let positive = |field, value: Option<u32>, max: u32| match value {
            Some(v) if v == 0 || v > max => Err(RequestError::Invalid {
                field,
                reason: format!("expected 1 to {max}, got {v}"),
            }),
            _ => Ok(()),
        };
        positive("token budget", self.token_budget, 1 << 24)?;
        positive("max tokens", self.tokens_max, u32::MAX)?;
        positive("branches", self.branches, config::BRANCHES_MAX)?;
        positive("step tokens", self.step_tokens_max, config::TOKEN_BUDGET)?;
        let finite = |field, value: Option<f32>| match value {
            Some(v) if !v.is_finite() => {
                Err(RequestError::Invalid { field, reason: format!("expected a number, got {v}") })
            }
            _ => Ok(()),
        };
        finite("threshold", self.threshold)?;
        finite("cutoff", self.cutoff)?;
        finite("gate entropy", self.gates.entropy_max)?;
        finite("gate confidence", self.gates.confidence_min)?;
        if self.step_delimiter.as_deref() == Some("") {
            let reason = "expected at least one character".into();
            return Err(RequestError::Invalid { field: "step delimiter", reason });
        }
        Ok(())
    }
}

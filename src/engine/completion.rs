//! One model continues a prompt: what a plain completion asks for, beside the questions of
//! [`super::Request`].
//!
//! The prompt is taken as it is given: nothing of the pair is added, neither its instruction nor an
//! opened thinking. Invariant: the ids fed are those of [`super::Engine::prompt_ids`]. Read next:
//! [`crate::policy::Continuation`], the policy that runs it.

use super::guard::Guard;
use super::live::Submission;
use super::prepare::Prepared;
use super::request::{Event, Settings, Urgency};
use crate::error::{RequestError, TextError};
use crate::ids::{BranchId, RequestId, Role, TokenId};
use crate::policy::{AnswerBy, Continuation, Decode, Gates, PolicyKind, Until, Want};
use crate::sample::{Grammar, SamplingOverrides};
use crate::telemetry::Phase;
use crate::text::{Message, RenderOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What a model reads before it writes.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A conversation, rendered by the model's own chat template.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Flags and variables of the template.
        options: RenderOptions,
    },
    /// Text, tokenised as it is: a token that begins a text has to be written out.
    Text(String),
    /// Ids in the model's own numbering.
    Ids(Vec<TokenId>),
}

/// One model continues a prompt.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Which model.
    pub role: Role,
    /// What it reads.
    pub prompt: Prompt,
    /// Overrides of the pair's and the model's sampling defaults.
    pub sampling: SamplingOverrides,
    /// Strings that end it; the token that completes one is kept.
    pub stop: Vec<String>,
    /// Tokens it may write; by default as many as the context has room for, which is the limit in
    /// any case.
    pub tokens_max: Option<u32>,
    /// Goes on after the end of its turn.
    pub ignore_end_of_turn: bool,
    /// Asks for the log-probability of every token and of this many of the likeliest beside it.
    pub logprobs: Option<u32>,
    /// What it has to follow, from its beginning or from the end of its thinking on.
    pub grammar: Option<Grammar>,
    /// Its turn among others.
    pub urgency: Urgency,
}

impl Completion {
    /// A completion with every default.
    #[must_use]
    pub fn new(role: Role, prompt: Prompt) -> Self {
        Self {
            role,
            prompt,
            sampling: SamplingOverrides::default(),
            stop: vec![],
            tokens_max: None,
            ignore_end_of_turn: false,
            logprobs: None,
            grammar: None,
            urgency: Urgency::default(),
        }
    }
}

impl Prepared {
    /// See [`super::Engine::prompt_ids`].
    pub(super) fn prompt_ids(
        &self,
        role: Role,
        prompt: &Prompt,
    ) -> Result<Vec<TokenId>, RequestError> {
        let text = self.text(role)?;
        let ids = match prompt {
            Prompt::Chat { messages, options } => {
                let template = text.template.as_ref().ok_or_else(|| {
                    TextError::Template(format!("the {role} model has none; send a plain prompt"))
                })?;
                text.tokenizer.encode(&template.render(messages, options)?)?
            }
            Prompt::Text(prompt) => text.tokenizer.encode(prompt)?,
            Prompt::Ids(ids) => ids.clone(),
        };
        let invalid = |reason| Err(RequestError::Invalid { field: "prompt", reason });
        if ids.is_empty() {
            return invalid("expected at least one token, got none".into());
        }
        let vocabulary = text.tokenizer.vocab_len();
        match ids.iter().find(|id| id.index() >= vocabulary) {
            Some(id) => {
                invalid(format!("token {id} is outside the vocabulary of {vocabulary} tokens"))
            }
            None => Ok(ids),
        }
    }

    /// Checks a completion against the model and the context and builds its policy.
    pub(super) fn completion(
        &self,
        completion: &Completion,
        id: RequestId,
        events: Sender<Event>,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Submission, RequestError> {
        let submitted = Instant::now();
        let role = completion.role;
        if completion.tokens_max == Some(0) {
            let reason = "expected at least 1, got 0".into();
            return Err(RequestError::Invalid { field: "max tokens", reason });
        }
        let sampling = self.sampling(&completion.sampling, role)?;
        let prompt = self.prompt_ids(role, &completion.prompt)?;
        let context = self.max_model_len;
        let room = (context as usize).saturating_sub(prompt.len());
        if room == 0 {
            return Err(RequestError::PromptTooLong { prompt: prompt.len(), role, context });
        }
        let tail_max = completion.tokens_max.map_or(room, |limit| room.min(limit as usize));
        let kind = if role == Role::Base { PolicyKind::Base } else { PolicyKind::Draft };
        let pair = &self.pair.settings;
        let settings = Settings {
            pair: self.pair.name.clone(),
            policy: kind,
            device: self.device.into(),
            threshold: pair.threshold,
            score: pair.readout,
            judge: "none".into(),
            judge_suffix_tokens: 0,
            first_n: 0,
            token_budget: tail_max as u32,
            token_budget_asked: completion.tokens_max.filter(|asked| *asked as usize > tail_max),
            step_tokens_max: tail_max as u32,
            answer_by: if role == Role::Base { AnswerBy::Base } else { AnswerBy::Draft },
            speculation: None,
            salvage: false,
            gates: Gates::default(),
            max_model_len: context,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
        };
        let ends = &self.base().roles.end_of_turn;
        let policy = Continuation::new(Decode {
            branch: BranchId::ROOT,
            role,
            until: Until {
                ids: if completion.ignore_end_of_turn { vec![] } else { ends.clone() },
                strings: completion.stop.clone(),
                limit: tail_max as u32,
                ..Until::default()
            },
            sampling: Arc::new(sampling),
            want: Want {
                logprob: completion.logprobs.is_some(),
                alternatives: completion.logprobs.unwrap_or(0),
                ..Want::default()
            },
            phase: Phase::Answer,
            speculation: None,
            first_window: vec![],
            draws_as: BranchId::ROOT,
        });
        let thinks = self.opens_thinking(role, &prompt);
        let guard = completion.grammar.clone().map(|grammar| Guard::new(grammar, thinks));
        let mut prompts = [vec![], vec![]];
        prompts[role.index()] = prompt;
        Ok(Submission {
            id,
            prompts,
            policy: Box::new(policy),
            tail_max,
            draft_tail_max: 0,
            urgency: completion.urgency,
            logprobs: None,
            guard,
            settings,
            events,
            cancelled,
            submitted,
        })
    }
}

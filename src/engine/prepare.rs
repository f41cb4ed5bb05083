//! From a request to what the engine's thread works on: prompts, ids, a policy.
//!
//! Runs on the caller's thread; the engine's thread never renders or tokenises. Each model gets its
//! own rendering of the conversation through its own template; the tail they share is in the base's
//! numbering. Invariant: what is submitted fits the context of every model its policy uses.

use super::guard::Guard;
use super::judge::{self, JudgeContext, JudgeIds, JudgeText};
use super::live::Submission;
use super::pair::{Pair, Thinking};
use super::request::{Event, PolicyOptions, Request, Settings};
use crate::config;
use crate::error::{RequestError, TextError};
use crate::ids::{RequestId, Role, TokenId};
use crate::model::checkpoint::GenerationDefaults;
use crate::policy::{
    AnswerBy, Close, Comparison, Gates, Judge, Lookahead, Policy, PolicyKind, Proposer, Reasoning,
    Speculation, Stepwise, StepwiseSettings, Want,
};
use crate::sample::{SamplingOverrides, SamplingParams};
use crate::text::{
    ChatTemplate, ReasoningState, ReasoningTags, ReasoningTracker, RenderOptions, SpecialRoles,
    Tokenizer,
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// The text side of one model.
pub(super) struct ModelText {
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) roles: SpecialRoles,
    pub(super) defaults: GenerationDefaults,
}

/// Everything a submission is made from; shared by all callers.
pub(super) struct Prepared {
    pub(super) pair: Pair,
    pub(super) texts: [Option<ModelText>; 2],
    pub(super) max_model_len: u32,
    pub(super) device: &'static str,
    /// Steps the draft may write beyond the first that is not decided.
    pub(super) draft_ahead: u32,
    /// The same under the policy `lookahead`.
    pub(super) lookahead_steps: u32,
    /// Drafted steps the base scores in one pass, at most.
    pub(super) score_batch: u32,
    /// Built when the first reply has to follow a schema.
    #[cfg(feature = "grammar")]
    pub(super) grammars: std::sync::OnceLock<Result<crate::text::Grammars, String>>,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl Prepared {
    /// The tokenizer whose numbering tails use.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.base().tokenizer
    }

    pub(super) fn base(&self) -> &ModelText {
        self.texts[Role::Base.index()].as_ref().expect("an engine always has a base")
    }

    /// See [`super::Engine::opens_thinking`].
    pub(super) fn opens_thinking(&self, role: Role, prompt: &[TokenId]) -> bool {
        self.texts[role.index()].as_ref().is_some_and(|text| {
            let tags = ReasoningTags::think(&text.roles);
            let tracker = ReasoningTracker::after_prompt(&tags, &text.tokenizer, prompt);
            tracker.state() == ReasoningState::Thinking
        })
    }

    /// See [`super::Engine::json_grammar`].
    #[cfg(feature = "grammar")]
    pub(super) fn json_grammar(
        &self,
        schema: &serde_json::Value,
    ) -> Result<crate::sample::Grammar, TextError> {
        let base = self.base();
        let build = || crate::text::Grammars::new(&base.tokenizer, &base.roles.end_of_turn);
        match self.grammars.get_or_init(|| build().map_err(|error| error.to_string())) {
            Ok(grammars) => grammars.json(schema),
            Err(error) => Err(TextError::Grammar(error.clone())),
        }
    }

    /// See [`super::Engine::domain_notice`].
    pub(super) fn domain_notice(&self, question: &str) -> Option<String> {
        let domain = self.pair.settings.domain?;
        // The pair's vocabulary was made from its own problems: words from elsewhere fall apart
        // into short pieces. None of its 200 development problems needs more than 2.28 tokens a
        // word; half of GSM8K needs more than 2.6. Some foreign questions still pass.
        let letters = |c: char| if c.is_alphabetic() { c } else { ' ' };
        let words: String = question.chars().map(letters).collect();
        let words: Vec<&str> = words.split_whitespace().collect();
        let tokens = self.tokenizer().encode(&words.join(" ")).ok()?.len() as f64;
        let per_word = tokens / words.len().max(1) as f64;
        let has_number = question.chars().any(|c| c.is_ascii_digit());
        (per_word > 2.3 || !has_number).then(|| {
            format!("the pair {} only knows {domain}; expect nonsense here", self.pair.name)
        })
    }

    /// See [`super::Engine::render`].
    pub(super) fn render(
        &self,
        request: &Request,
        role: Role,
    ) -> Result<Vec<TokenId>, RequestError> {
        let judge = self.judge_text(request);
        self.prompt(request, role, &judge)
    }

    /// What a request states over what a calibration chose.
    fn options(&self, request: &Request) -> PolicyOptions {
        let tuned = self.pair.settings.tuned.as_ref().map(|tuned| &tuned.options);
        tuned.map_or_else(|| request.options.clone(), |tuned| request.options.or(tuned))
    }

    fn judge_text(&self, request: &Request) -> JudgeText {
        let judge = self.options(request).judge;
        judge.unwrap_or_else(|| self.pair.settings.judge_of(request.policy))
    }

    pub(super) fn text(&self, role: Role) -> Result<&ModelText, RequestError> {
        self.texts[role.index()].as_ref().ok_or_else(|| RequestError::Invalid {
            field: "model",
            reason: format!("it needs the {role} model, and this engine was started without one"),
        })
    }

    fn prompt(
        &self,
        request: &Request,
        role: Role,
        judge: &JudgeText,
    ) -> Result<Vec<TokenId>, RequestError> {
        let text = self.text(role)?;
        let template = text.template.as_ref().ok_or_else(|| {
            TextError::Template(format!("the {role} model has none, and this engine needs one"))
        })?;
        let mut messages = request.messages.clone();
        let last = messages.iter_mut().rev().find(|m| m.role == "user");
        let last = last.ok_or_else(|| RequestError::Invalid {
            field: "messages",
            reason: "expected at least one user message".into(),
        })?;
        if last.content.trim().is_empty() {
            let reason = "the last user message is empty".into();
            return Err(RequestError::Invalid { field: "messages", reason });
        }
        last.content.push_str(self.pair.settings.instruction.as_deref().unwrap_or_default());
        if let (Role::Base, Some(rubric)) = (role, judge.rubric()) {
            last.content.push_str("\n\n");
            last.content.push_str(rubric);
        }
        let variables = request.variables.clone();
        let options = RenderOptions { variables, ..RenderOptions::default() };
        let mut rendered = template.render(&messages, &options)?;
        // Where the template leaves it to the model, the engine opens the thinking for it.
        let thinks = self.pair.settings.thinking == Thinking::Tags;
        if thinks && !rendered.trim_end().ends_with(OPEN) {
            rendered.push_str(OPEN);
            rendered.push('\n');
        }
        Ok(text.tokenizer.encode(&rendered)?)
    }

    /// Tokenises the judge a request asks for.
    pub(super) fn judge_ids(
        &self,
        text: &JudgeText,
        delimiter: &str,
    ) -> Result<JudgeIds, TextError> {
        judge::tokenize(text, &self.judge_context(delimiter)?)
    }

    fn judge_context<'a>(&'a self, delimiter: &'a str) -> Result<JudgeContext<'a>, TextError> {
        let base = self.base();
        let template = base.template.as_ref().ok_or_else(|| {
            TextError::Template("the base model has none, and the judge needs one".into())
        })?;
        let thinks = self.pair.settings.thinking == Thinking::Tags;
        Ok(JudgeContext {
            tokenizer: &base.tokenizer,
            template,
            end_of_turn: &base.roles.end_of_turn,
            think: if thinks { OPEN } else { "" },
            delimiter,
        })
    }

    /// How the base compares two versions of a step, where the policy asks for it.
    ///
    /// # Errors
    /// When the judge cannot be used, or the request asks for what only a base that reads every
    /// drafted step can tell.
    fn comparison(
        &self,
        request: &Request,
        options: &PolicyOptions,
        delimiter: &str,
    ) -> Result<Option<Comparison>, RequestError> {
        if request.policy != PolicyKind::Lookahead {
            return Ok(None);
        }
        let asks_for =
            [("logprobs", request.logprobs.is_some()), ("step logprobs", options.step_logprobs)];
        if let Some((field, _)) = asks_for.into_iter().find(|(_, asks)| *asks) {
            let reason = "they are the base's, which does not read all of a reply under the policy \
                lookahead, where it writes its own steps; use specreason or base";
            return Err(RequestError::Invalid { field, reason: reason.into() });
        }
        let text = self.judge_text(request);
        let ids = judge::tokenize_comparison(&text, &self.judge_context(delimiter)?)?;
        let pair = &self.pair.settings;
        let step_tokens_max = options.step_tokens_max.unwrap_or(config::STEP_TOKENS_MAX);
        Ok(Some(Comparison {
            before: ids.before,
            after: ids.after,
            tokens_max: step_tokens_max.min(config::COMPARE_TOKENS_MAX),
            labels: ids.labels,
            readout: options.readout.unwrap_or(pair.readout),
            threshold: options.threshold.unwrap_or(pair.threshold),
            cutoff: options.cutoff.unwrap_or(0.5),
        }))
    }

    fn reasoning(&self) -> Result<Reasoning, TextError> {
        if self.pair.settings.thinking == Thinking::None {
            return Ok(Reasoning::None);
        }
        let base = self.base();
        Ok(match base.roles.close_think {
            Some(id) => Reasoning::Tags { close: Close::Id(id), close_ids: vec![id] },
            None => Reasoning::Tags {
                close: Close::Text(CLOSE.into()),
                close_ids: base.tokenizer.encode(CLOSE)?,
            },
        })
    }

    /// Checks a request against the pair and the context and builds its policy.
    pub(super) fn submission(
        &self,
        request: &Request,
        id: RequestId,
        events: Sender<Event>,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Submission, RequestError> {
        let submitted = Instant::now();
        request.options.validate()?;
        let pair = &self.pair.settings;
        let (kind, options) = (request.policy, &self.options(request));
        let sampling = self.sampling(&request.sampling, Role::Base)?;
        let judge_text = self.judge_text(request);
        let delimiter = options.step_delimiter.clone();
        let delimiter = delimiter.unwrap_or_else(|| config::STEP_DELIMITER.into());
        let answer_by = options.answer_by.unwrap_or(match kind {
            PolicyKind::Draft => AnswerBy::Draft,
            _ => AnswerBy::Base,
        });
        let judged = kind.judges();
        if request.logprobs.is_some() && (kind == PolicyKind::Draft || answer_by != AnswerBy::Base)
        {
            let reason = "they are the base's, which does not read all of this reply; \
                let it answer, or ask the draft alone";
            return Err(RequestError::Invalid { field: "logprobs", reason: reason.into() });
        }
        let speculation = self.speculation(kind, options)?;
        // The host draws such tokens, or tells them, one by one.
        let one_by_one = request.logprobs.is_some() || request.grammar.is_some();
        let speculation = speculation.filter(|_| !one_by_one);
        let comparison = self.comparison(request, options, &delimiter)?;
        let scored = judged && comparison.is_none();
        let salvage = options.salvage && scored && !one_by_one;
        let ids = scored.then(|| self.judge_ids(&judge_text, &delimiter)).transpose()?;
        let reasoning = self.reasoning()?;
        let thinks = self.pair.settings.thinking == Thinking::Tags;
        let close = match &reasoning {
            Reasoning::Tags { close_ids, .. } => close_ids.len(),
            Reasoning::None => 0,
        };
        let compared = comparison.as_ref().map_or(0, |c| c.before.len() + c.after.len());
        let suffix_tokens = ids.as_ref().map_or(compared, |ids| ids.suffix.len());
        let scratch = match (&ids, &comparison) {
            (Some(ids), _) => ids.after_open_step.len(),
            (None, Some(c)) => compared + c.tokens_max as usize,
            (None, None) => 0,
        };
        let mut prompts = [vec![], vec![]];
        let mut tail_max = usize::MAX;
        let proposes = speculation.is_some_and(|s| s.by == Proposer::Draft);
        for role in Role::ALL {
            if !uses(kind, answer_by, role) {
                // A draft that only proposes sets no limits: where it has no room, nobody does.
                if role == Role::Draft && proposes {
                    prompts[role.index()] = self.prompt(request, role, &judge_text)?;
                }
                continue;
            }
            let prompt = self.prompt(request, role, &judge_text)?;
            let suffix = if role == Role::Base { scratch } else { 0 };
            let context = self.max_model_len;
            let room = (context as usize).checked_sub(prompt.len() + suffix + close);
            tail_max = match room {
                Some(room) if room > close => tail_max.min(room),
                _ => {
                    let prompt = prompt.len() + suffix + close;
                    return Err(RequestError::PromptTooLong { prompt, role, context });
                }
            };
            prompts[role.index()] = prompt;
        }
        let draft_tail_max =
            (self.max_model_len as usize).saturating_sub(prompts[Role::Draft.index()].len());
        let asked = options.token_budget.unwrap_or(config::TOKEN_BUDGET);
        let token_budget = asked.min(tail_max as u32);
        let settings = Settings {
            pair: self.pair.name.clone(),
            policy: kind,
            device: self.device.into(),
            threshold: options.threshold.unwrap_or(pair.threshold),
            score: options.readout.unwrap_or(pair.readout),
            judge: judge_text.layout().into(),
            judge_suffix_tokens: suffix_tokens,
            first_n: options.first_n.unwrap_or(0),
            token_budget,
            token_budget_asked: (token_budget < asked).then_some(asked),
            step_tokens_max: options.step_tokens_max.unwrap_or(config::STEP_TOKENS_MAX),
            answer_by,
            speculation,
            salvage,
            gates: if scored { options.gates } else { Gates::default() },
            max_model_len: self.max_model_len,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
        };
        let steps = StepwiseSettings {
            writer: if kind.uses(Role::Draft) { Role::Draft } else { Role::Base },
            first_n: if judged { settings.first_n } else { 0 },
            judge: ids.map(|ids| Judge {
                suffix: ids.suffix,
                suffix_after_open_step: ids.after_open_step,
                suffix_after_turn: ids.after_turn,
                labels: ids.labels,
                readout: settings.score,
                threshold: settings.threshold,
                cutoff: options.cutoff.unwrap_or(0.5),
                step_logprobs: options.step_logprobs,
            }),
            delimiter,
            step_tokens_max: settings.step_tokens_max,
            token_budget,
            answer_tokens_max: config::ANSWER_TOKENS_MAX,
            tokens_max: options.tokens_max.unwrap_or(u32::MAX),
            stop_on_repeat: options.stop_on_repeat.unwrap_or(true),
            reasoning,
            answer_by,
            end_of_turn: self.base().roles.end_of_turn.clone(),
            sampling: Arc::new(sampling),
            base_want: Want {
                logprob: request.logprobs.is_some(),
                alternatives: request.logprobs.unwrap_or(0),
                ..Want::default()
            },
            draft_ahead: match comparison {
                Some(_) => self.lookahead_steps,
                None => self.draft_ahead,
            },
            score_batch: self.score_batch,
            speculation,
            salvage,
            gates: settings.gates,
            hesitations: self.hesitations(options)?,
        };
        let policy: Box<dyn Policy> = match comparison {
            Some(comparison) => Box::new(Lookahead::new(steps, comparison)),
            None => Box::new(Stepwise::new(steps)),
        };
        Ok(Submission {
            id,
            prompts,
            policy,
            tail_max,
            draft_tail_max,
            urgency: request.urgency,
            logprobs: request.logprobs,
            guard: request.grammar.clone().map(|grammar| Guard::new(grammar, thinks)),
            settings,
            events,
            cancelled,
            submitted,
        })
    }

    /// How tokens are proposed to the base: as asked, else by the draft where there is one.
    fn speculation(
        &self,
        kind: PolicyKind,
        options: &PolicyOptions,
    ) -> Result<Option<Speculation>, RequestError> {
        let by_default = match self.texts[Role::Draft.index()] {
            Some(_) => Proposer::Draft,
            None => Proposer::Ngram,
        };
        let by = options.proposer.unwrap_or(by_default);
        if kind.speculates() && by == Proposer::Draft {
            self.text(Role::Draft)?;
        }
        let window = options.window.unwrap_or_default();
        let branches = options.branches.unwrap_or(1);
        let vocab = options.draft_vocab.unwrap_or_default();
        Ok(kind.speculates().then_some(Speculation { by, window, branches, vocab }))
    }

    /// Phrases of hesitation as the base's ids, with and without what may stand before them.
    fn hesitations(&self, options: &PolicyOptions) -> Result<Vec<Vec<TokenId>>, TextError> {
        if options.gates.confidence_min.is_none() {
            return Ok(vec![]);
        }
        let spellings = |phrase: &&str| {
            let (first, rest) = phrase.split_at(1);
            let upper = first.to_uppercase() + rest;
            [(*phrase).to_owned(), format!(" {phrase}"), format!(" {upper}"), upper]
        };
        let all = config::HESITATIONS.iter().flat_map(spellings);
        all.map(|text| self.tokenizer().encode(&text)).collect()
    }

    /// What a request states over what the pair, the model `role` and the engine say.
    pub(super) fn sampling(
        &self,
        request: &SamplingOverrides,
        role: Role,
    ) -> Result<SamplingParams, RequestError> {
        let text = self.text(role)?;
        let defaults = &text.defaults;
        let model = SamplingOverrides {
            temperature: match defaults.do_sample {
                Some(false) => Some(0.0),
                _ => defaults.temperature,
            },
            top_k: defaults.top_k,
            top_p: defaults.top_p,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
            ..Default::default()
        };
        let stated = request.or(&self.pair.settings.sampling);
        let params = SamplingParams::with_defaults(&stated, &model);
        params.validate()?;
        params.validate_for(text.tokenizer.vocab_len())?;
        Ok(params)
    }
}

/// Whether a request with this policy runs `role`.
fn uses(kind: PolicyKind, answer_by: AnswerBy, role: Role) -> bool {
    kind.uses(role)
        || match answer_by {
            AnswerBy::Base => role == Role::Base && kind == PolicyKind::Draft,
            AnswerBy::Draft => role == Role::Draft,
            AnswerBy::Last => false,
        }
}

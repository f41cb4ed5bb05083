//! `base`, `draft` and `specreason`: one state machine, three settings.
//!
//! SpecReason (arXiv 2504.07891 §4.1): the draft writes a step, the base scores it, the step is
//! kept or rewritten by the base. `draft` is the same machine without a judge; `base` is the same
//! machine with every step written by the base. So the degenerate settings agree by construction:
//! what a threshold of 0 accepts is what `draft` writes.
//!
//! While a step is scored the draft may write the one after it (`draft_ahead`): its tokens are
//! those it would write later, so no reply depends on it; a rejected step takes them with it.
//! A step ends with the token that completes the delimiter, with the close marker, with the end of
//! the turn, or at a cap. Invariant: every kept step holds at least one sampled token, so the
//! machine ends within its budgets. Read next: `tests.rs`, which drives it with hostile outcomes.

use super::command::TokenStats;
use super::gates::{self, Gates};
use super::{
    Command, Decode, FinishWhy, Note, Outcome, Policy, Score, ScoreSpan, Speculation, StopCause,
    Tails, ThinkingEnd, Turn, Until, Want,
};
use crate::ids::{BranchId, Role, TokenId};
use crate::sample::{self, Readout, SamplingParams};
use crate::telemetry::Phase;
use serde::{Deserialize, Serialize};
use std::ops::Range;
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
    /// Draft the next step while one is scored.
    pub draft_ahead: bool,
    /// Who proposes tokens wherever the base writes.
    pub speculation: Option<Speculation>,
    /// Propose a rejected step to the base, token by token, when it rewrites it.
    pub salvage: bool,
    /// When the draft does not write, and when the base is not asked.
    pub gates: Gates,
    /// Phrases of hesitation: a step with one of them is scored, however sure the draft was.
    pub hesitations: Vec<Vec<TokenId>>,
}

fn for_base<T: Default>(writer: Role, value: T) -> T {
    if writer == Role::Base { value } else { T::default() }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Delimiter,
    Closed,
    Turn,
    Cap,
    Context,
}

/// A written step: its tail range, how it ended, and how many of its tokens were sampled.
#[derive(Debug)]
struct Written {
    range: Range<u32>,
    end: End,
    sampled: u32,
}

/// The step after the one being scored.
#[derive(Debug)]
enum Ahead {
    /// Not begun.
    None,
    /// The draft writes it.
    Writing,
    /// The draft has written it.
    Written { range: Range<u32>, stop: StopCause, stats: Vec<TokenStats> },
}

#[derive(Debug)]
enum State {
    Writing { writer: Role },
    Scoring { step: Written, ahead: Ahead },
    Answering,
    Finished,
}

/// The machine. See the module.
pub struct Stepwise {
    settings: StepwiseSettings,
    state: State,
    /// Number of the step being written.
    step: u32,
    /// Where it starts.
    step_start: u32,
    /// Where the last kept step starts.
    last_step: Option<Range<u32>>,
    /// Sampled tokens kept so far.
    kept: u32,
}

const BRANCH: BranchId = BranchId::ROOT;

impl Stepwise {
    /// A machine at its start.
    #[must_use]
    pub fn new(settings: StepwiseSettings) -> Self {
        let state = State::Finished;
        Self { settings, state, step: 0, step_start: 0, last_step: None, kept: 0 }
    }

    fn begin_step(&mut self, turn: &mut Turn) {
        let by_base = self.settings.writer == Role::Base || self.step < self.settings.first_n;
        let writer = if by_base { Role::Base } else { Role::Draft };
        turn.notes.push(Note::StepBegan { index: self.step, writer });
        self.write(writer, turn);
    }

    fn write(&mut self, writer: Role, turn: &mut Turn) {
        turn.commands.push(Command::Decode(self.decode_step(writer, self.kept)));
        self.state = State::Writing { writer };
    }

    /// Tokens that may still be sampled for steps after `kept`.
    fn left_for_steps(&self, kept: u32) -> u32 {
        self.settings.token_budget.min(self.settings.tokens_max).saturating_sub(kept)
    }

    /// A step by `writer`, `kept` tokens after the start.
    fn decode_step(&self, writer: Role, kept: u32) -> Decode {
        let s = &self.settings;
        let mut ids = s.end_of_turn.clone();
        let mut strings = vec![s.delimiter.clone()];
        match &s.reasoning {
            Reasoning::Tags { close: Close::Id(id), .. } => ids.push(*id),
            Reasoning::Tags { close: Close::Text(text), .. } => strings.push(text.clone()),
            Reasoning::None => {}
        }
        let limit = s.step_tokens_max.min(self.left_for_steps(kept)).max(1);
        let drafts = writer == Role::Draft && s.judge.is_some();
        let gates = if drafts { s.gates } else { Gates::default() };
        Decode {
            branch: BRANCH,
            role: writer,
            until: Until {
                ids,
                strings,
                limit,
                first_string_from: gates.merge_tokens.unwrap_or(0),
                first_entropy_above: gates.entropy_max,
                ..Until::default()
            },
            sampling: s.sampling.clone(),
            want: Want {
                entropy: gates.entropy_max.is_some(),
                top1: gates.confidence_min.is_some(),
                ..for_base(writer, s.base_want)
            },
            phase: if writer == Role::Draft { Phase::Draft } else { Phase::Rewrite },
            speculation: for_base(writer, s.speculation),
            first_window: vec![],
        }
    }

    /// Whether another step by the draft follows this one of its own, should it be accepted.
    fn draft_goes_on(&self, tails: &dyn Tails, step: &Written) -> bool {
        matches!(step.end, End::Delimiter | End::Cap)
            && self.left_for_steps(self.kept + step.sampled) > 0
            && !self.repeats(tails, self.step + 1, &step.range)
    }

    fn step_written(
        &mut self,
        tails: &dyn Tails,
        writer: Role,
        (range, stop, stats): (&Range<u32>, StopCause, &[TokenStats]),
        turn: &mut Turn,
    ) {
        if stop == StopCause::Entropy {
            let entropy = stats.last().and_then(|s| s.entropy).unwrap_or(f32::INFINITY);
            turn.notes.push(Note::StepGated { index: self.step, entropy });
            turn.commands.push(Command::Rollback { branch: BRANCH, len: self.step_start });
            return self.write(Role::Base, turn);
        }
        let sampled = range.end - range.start;
        let mut step = self.step_start..range.end;
        let mut end = self.how_it_ended(stop);
        if let (End::Turn, Reasoning::Tags { close_ids, .. }) = (end, &self.settings.reasoning) {
            // A turn that ends inside the thinking closes the thinking: the marker takes its place.
            turn.commands.push(Command::Rollback { branch: BRANCH, len: range.end - 1 });
            turn.commands.push(Command::Inject { branch: BRANCH, ids: close_ids.clone() });
            step.end = range.end - 1 + close_ids.len() as u32;
            end = End::Closed;
        }
        match &self.settings.judge {
            Some(judge)
                if writer == Role::Draft
                    && end != End::Context
                    && !self.goes_unscored(tails, &step, end, stats) =>
            {
                let suffix = match end {
                    End::Delimiter => &judge.suffix,
                    End::Turn => &judge.suffix_after_turn,
                    _ => &judge.suffix_after_open_step,
                };
                let span = if judge.step_logprobs {
                    ScoreSpan::LogProbs { from: step.start }
                } else {
                    ScoreSpan::None
                };
                turn.commands.push(Command::Score(Score {
                    branch: BRANCH,
                    role: Role::Base,
                    suffix: suffix.clone(),
                    labels: judge.labels.clone(),
                    span,
                }));
                let step = Written { range: step, end, sampled };
                let mut ahead = Ahead::None;
                if self.settings.draft_ahead && self.draft_goes_on(tails, &step) {
                    let next = self.decode_step(Role::Draft, self.kept + sampled);
                    turn.commands.push(Command::Decode(next));
                    ahead = Ahead::Writing;
                }
                self.state = State::Scoring { step, ahead };
            }
            _ => {
                let step = Written { range: step, end, sampled };
                self.keep_step(tails, writer, &step, Ahead::None, turn);
            }
        }
    }

    /// Whether a drafted step is kept without asking the base.
    fn goes_unscored(
        &self,
        tails: &dyn Tails,
        step: &Range<u32>,
        end: End,
        stats: &[TokenStats],
    ) -> bool {
        let ids = &tails.ids(BRANCH)[step.start as usize..];
        matches!(end, End::Delimiter | End::Cap)
            && self.settings.gates.is_sure(stats)
            && !gates::says_any(ids, &self.settings.hesitations)
            && !self.repeats(tails, u32::MAX, step)
    }

    fn how_it_ended(&self, stop: StopCause) -> End {
        match (stop, &self.settings.reasoning) {
            (StopCause::Id(id), Reasoning::Tags { close: Close::Id(close), .. })
                if id == *close && !self.settings.end_of_turn.contains(&id) =>
            {
                End::Closed
            }
            (StopCause::Id(_), _) => End::Turn,
            (StopCause::String(0), _) => End::Delimiter,
            (StopCause::String(_), _) => End::Closed,
            (StopCause::Context, _) => End::Context,
            _ => End::Cap,
        }
    }

    /// `ahead` is begun only if [`Self::draft_goes_on`], so the last arm is the one that finds it.
    fn keep_step(
        &mut self,
        tails: &dyn Tails,
        writer: Role,
        step: &Written,
        ahead: Ahead,
        turn: &mut Turn,
    ) {
        let Range { start, end } = step.range;
        self.kept += step.sampled;
        turn.notes.push(Note::StepKept { index: self.step, start, end, writer });
        self.step += 1;
        self.step_start = end;
        match step.end {
            End::Turn => self.finish(FinishWhy::Stop, turn),
            End::Context => self.finish(FinishWhy::Length, turn),
            _ if self.kept >= self.settings.tokens_max => self.finish(FinishWhy::Length, turn),
            End::Closed => self.answer(writer, ThinkingEnd::Closed, turn),
            End::Delimiter | End::Cap if self.kept >= self.settings.token_budget => {
                self.close(writer, ThinkingEnd::Budget, turn);
            }
            End::Delimiter | End::Cap if self.repeats(tails, self.step, &step.range) => {
                self.close(writer, ThinkingEnd::Repeated, turn);
            }
            End::Delimiter | End::Cap => {
                self.last_step = Some(step.range.clone());
                self.next_step(tails, ahead, turn);
            }
        }
    }

    fn next_step(&mut self, tails: &dyn Tails, ahead: Ahead, turn: &mut Turn) {
        if let Ahead::None = ahead {
            return self.begin_step(turn);
        }
        turn.notes.push(Note::StepBegan { index: self.step, writer: Role::Draft });
        self.state = State::Writing { writer: Role::Draft };
        if let Ahead::Written { range, stop, stats } = ahead {
            self.step_written(tails, Role::Draft, (&range, stop, &stats), turn);
        }
    }

    /// Whether the step that makes `steps` of them says what the one before it said.
    fn repeats(&self, tails: &dyn Tails, steps: u32, step: &Range<u32>) -> bool {
        let ids = tails.ids(BRANCH);
        let slice = |r: &Range<u32>| ids.get(r.start as usize..r.end as usize);
        // As in the authors' code only after more than two steps.
        self.settings.stop_on_repeat
            && steps > 2
            && self.last_step.as_ref().is_some_and(|last| slice(last) == slice(step))
    }

    /// Forces the end of the thinking.
    fn close(&mut self, writer: Role, why: ThinkingEnd, turn: &mut Turn) {
        match &self.settings.reasoning {
            Reasoning::None => {
                let why =
                    if why == ThinkingEnd::Repeated { FinishWhy::Stop } else { FinishWhy::Length };
                self.finish(why, turn);
            }
            Reasoning::Tags { close_ids, .. } => {
                turn.commands.push(Command::Inject { branch: BRANCH, ids: close_ids.clone() });
                self.step_start += close_ids.len() as u32;
                self.answer(writer, why, turn);
            }
        }
    }

    fn answer(&mut self, last_writer: Role, why: ThinkingEnd, turn: &mut Turn) {
        let left = self.settings.tokens_max.saturating_sub(self.kept);
        let writer = match self.settings.answer_by {
            AnswerBy::Base => Role::Base,
            AnswerBy::Draft => Role::Draft,
            AnswerBy::Last => last_writer,
        };
        turn.notes.push(Note::AnswerBegan { at: self.step_start, writer, why });
        turn.commands.push(Command::Decode(Decode {
            branch: BRANCH,
            role: writer,
            until: Until {
                ids: self.settings.end_of_turn.clone(),
                limit: self.settings.answer_tokens_max.min(left).max(1),
                ..Until::default()
            },
            sampling: self.settings.sampling.clone(),
            want: for_base(writer, self.settings.base_want),
            phase: Phase::Answer,
            speculation: for_base(writer, self.settings.speculation),
            first_window: vec![],
        }));
        self.state = State::Answering;
    }

    fn scored(&mut self, tails: &dyn Tails, probs: &[f32], logprobs: Vec<f32>, turn: &mut Turn) {
        let state = std::mem::replace(&mut self.state, State::Finished);
        let State::Scoring { step, ahead } = state else { return };
        let judge = self.settings.judge.as_ref().expect("only a judge leads to Scoring");
        let score = sample::score(judge.readout, probs, judge.threshold);
        let accepted = sample::accepts(judge.readout, score, judge.threshold, judge.cutoff);
        turn.notes.push(Note::StepScored {
            index: self.step,
            score,
            accepted,
            drafted: step.sampled,
            ahead: tails.ids(BRANCH).len() as u32 - step.range.end,
            logprobs,
        });
        if accepted {
            self.keep_step(tails, Role::Draft, &step, ahead, turn);
        } else {
            let mut decode = self.decode_step(Role::Base, self.kept);
            if self.settings.salvage {
                let Range { start, end } = step.range;
                decode.first_window = tails.ids(BRANCH)[start as usize..end as usize].to_vec();
            }
            turn.commands.push(Command::Rollback { branch: BRANCH, len: step.range.start });
            turn.commands.push(Command::Decode(decode));
            self.state = State::Writing { writer: Role::Base };
        }
    }

    fn written_ahead(&mut self, written: Ahead) {
        if let State::Scoring { ahead, .. } = &mut self.state {
            *ahead = written;
        }
    }

    fn finish(&mut self, why: FinishWhy, turn: &mut Turn) {
        turn.commands.push(Command::Finish { why });
        self.state = State::Finished;
    }
}

impl Policy for Stepwise {
    fn next(&mut self, tails: &dyn Tails, outcome: Outcome) -> Turn {
        let mut turn = Turn::default();
        match (outcome, &self.state) {
            (Outcome::Started, _) => self.begin_step(&mut turn),
            (Outcome::Decoded { range, stop, stats, .. }, State::Writing { writer }) => {
                let writer = *writer;
                self.step_written(tails, writer, (&range, stop, &stats), &mut turn);
            }
            (Outcome::Decoded { range, stop, stats, .. }, State::Scoring { .. }) => {
                self.written_ahead(Ahead::Written { range, stop, stats });
            }
            (Outcome::Scored { probs, logprobs, .. }, State::Scoring { .. }) => {
                self.scored(tails, &probs, logprobs, &mut turn);
            }
            (Outcome::Decoded { stop, .. }, State::Answering) => {
                let stopped = matches!(stop, StopCause::Id(_));
                let why = if stopped { FinishWhy::Stop } else { FinishWhy::Length };
                self.finish(why, &mut turn);
            }
            (Outcome::Cancelled { .. }, State::Finished) => {}
            // What the draft wrote ahead went with the step that was rejected.
            (Outcome::Cancelled { role: Role::Draft, .. }, State::Writing { writer })
                if *writer == Role::Base => {}
            (Outcome::Cancelled { .. }, _) => self.finish(FinishWhy::Cancelled, &mut turn),
            _ => {}
        }
        turn
    }
}

//! Where a stepped reply stands: the steps kept so far, and what may come after them.
//!
//! Budgets, the ends of steps, the forced end of the thinking and the answer are the same for every
//! machine that writes steps; they differ in who writes a step and in who decides on it. Invariant:
//! every kept step holds at least one sampled token, so a reply ends within its budgets. Read next:
//! [`super::stepwise`].

use super::steps::{AnswerBy, Close, Reasoning, StepwiseSettings};
use super::{Command, Decode, FinishWhy, Gates, Note, StopCause, ThinkingEnd, Turn, Until, Want};
use crate::ids::{BranchId, Role, TokenId};
use crate::telemetry::Phase;
use std::ops::Range;

/// The branch a reply is read from.
pub(super) const ROOT: BranchId = BranchId::ROOT;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the token that completes the delimiter.
    Delimiter,
    /// With the close marker.
    Closed,
    /// With the end of the turn.
    Turn,
    /// At a limit.
    Cap,
    /// At the end of the context.
    Context,
}

/// A written step: its tail range, how it ended, and how many of its tokens were sampled.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) range: Range<u32>,
    pub(super) end: End,
    pub(super) sampled: u32,
}

/// What follows a kept step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another step.
    Step,
    /// The answer; it is being written.
    Answer,
    /// Nothing.
    End,
}

/// The steps kept so far. See the module.
pub(super) struct Course {
    pub(super) settings: StepwiseSettings,
    /// Number of the step to be decided next.
    pub(super) step: u32,
    /// Where it starts.
    pub(super) start: u32,
    /// The step kept last, where another followed it.
    pub(super) last: Option<Range<u32>>,
    /// Sampled tokens kept so far.
    pub(super) kept: u32,
}

fn for_base<T: Default>(writer: Role, value: T) -> T {
    if writer == Role::Base { value } else { T::default() }
}

impl Course {
    /// Before the first step.
    pub(super) fn new(settings: StepwiseSettings) -> Self {
        Self { settings, step: 0, start: 0, last: None, kept: 0 }
    }

    /// Tokens that may still be sampled for steps after `kept`.
    pub(super) fn left(&self, kept: u32) -> u32 {
        self.settings.token_budget.min(self.settings.tokens_max).saturating_sub(kept)
    }

    /// A step by `writer` on `branch`, `kept` tokens after the start.
    pub(super) fn decode_step(&self, branch: BranchId, writer: Role, kept: u32) -> Decode {
        let s = &self.settings;
        let mut ids = s.end_of_turn.clone();
        let mut strings = vec![s.delimiter.clone()];
        match &s.reasoning {
            Reasoning::Tags { close: Close::Id(id), .. } => ids.push(*id),
            Reasoning::Tags { close: Close::Text(text), .. } => strings.push(text.clone()),
            Reasoning::None => {}
        }
        let limit = s.step_tokens_max.min(self.left(kept)).max(1);
        let drafts = writer == Role::Draft && s.judge.is_some();
        let gates = if drafts { s.gates } else { Gates::default() };
        Decode {
            branch,
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
            draws_as: ROOT,
        }
    }

    /// A step that was written from `start` on.
    pub(super) fn written(&self, start: u32, range: &Range<u32>, stop: StopCause) -> Written {
        let sampled = range.end - range.start;
        Written { range: start..range.end, end: self.how_it_ended(stop), sampled }
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

    /// Whether a step ends the turn inside the thinking.
    pub(super) fn ends_turn_inside(&self, step: &Written) -> bool {
        step.end == End::Turn && matches!(self.settings.reasoning, Reasoning::Tags { .. })
    }

    /// A turn that ends inside the thinking closes the thinking: the marker takes its place. The
    /// step is the last of the tail.
    pub(super) fn close_turn(&self, step: &mut Written, turn: &mut Turn) {
        let Reasoning::Tags { close_ids, .. } = &self.settings.reasoning else { return };
        if step.end != End::Turn {
            return;
        }
        let len = step.range.end - 1;
        turn.commands.push(Command::Rollback { branch: ROOT, len });
        turn.commands.push(Command::Inject { branch: ROOT, ids: close_ids.clone() });
        step.range.end = len + close_ids.len() as u32;
        step.end = End::Closed;
    }

    /// Whether the step of `tail` that makes `steps` of them says what `last`, the one before it,
    /// said.
    pub(super) fn repeats(
        &self,
        tail: &[TokenId],
        steps: u32,
        last: Option<&Range<u32>>,
        step: &Range<u32>,
    ) -> bool {
        let slice = |r: &Range<u32>| tail.get(r.start as usize..r.end as usize);
        // As in the authors' code only after more than two steps.
        self.settings.stop_on_repeat
            && steps > 2
            && last.is_some_and(|last| slice(last) == slice(step))
    }

    /// Keeps a step of `tail`, the next, for good and says what follows it.
    pub(super) fn keep(
        &mut self,
        tail: &[TokenId],
        writer: Role,
        step: &Written,
        turn: &mut Turn,
    ) -> Next {
        let Range { start, end } = step.range;
        self.kept += step.sampled;
        turn.notes.push(Note::StepKept { index: self.step, start, end, writer });
        self.step += 1;
        self.start = end;
        match step.end {
            End::Turn => Self::finish(FinishWhy::Stop, turn),
            End::Context => Self::finish(FinishWhy::Length, turn),
            _ if self.kept >= self.settings.tokens_max => Self::finish(FinishWhy::Length, turn),
            End::Closed => self.answer(writer, ThinkingEnd::Closed, turn),
            End::Delimiter | End::Cap if self.kept >= self.settings.token_budget => {
                self.close(writer, ThinkingEnd::Budget, turn)
            }
            End::Delimiter | End::Cap
                if self.repeats(tail, self.step, self.last.as_ref(), &step.range) =>
            {
                self.close(writer, ThinkingEnd::Repeated, turn)
            }
            End::Delimiter | End::Cap => {
                self.last = Some(step.range.clone());
                Next::Step
            }
        }
    }

    /// Forces the end of the thinking.
    fn close(&mut self, writer: Role, why: ThinkingEnd, turn: &mut Turn) -> Next {
        match &self.settings.reasoning {
            Reasoning::None => {
                let why =
                    if why == ThinkingEnd::Repeated { FinishWhy::Stop } else { FinishWhy::Length };
                Self::finish(why, turn)
            }
            Reasoning::Tags { close_ids, .. } => {
                turn.commands.push(Command::Inject { branch: ROOT, ids: close_ids.clone() });
                self.start += close_ids.len() as u32;
                self.answer(writer, why, turn)
            }
        }
    }

    fn answer(&mut self, last_writer: Role, why: ThinkingEnd, turn: &mut Turn) -> Next {
        let left = self.settings.tokens_max.saturating_sub(self.kept);
        let writer = match self.settings.answer_by {
            AnswerBy::Base => Role::Base,
            AnswerBy::Draft => Role::Draft,
            AnswerBy::Last => last_writer,
        };
        turn.notes.push(Note::AnswerBegan { at: self.start, writer, why });
        turn.commands.push(Command::Decode(Decode {
            branch: ROOT,
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
            draws_as: ROOT,
        }));
        Next::Answer
    }

    /// Ends the request with the answer that ended with `stop`.
    pub(super) fn answered(stop: StopCause, turn: &mut Turn) -> Next {
        let stopped = matches!(stop, StopCause::Id(_));
        Self::finish(if stopped { FinishWhy::Stop } else { FinishWhy::Length }, turn)
    }

    /// Ends the request.
    pub(super) fn finish(why: FinishWhy, turn: &mut Turn) -> Next {
        turn.commands.push(Command::Finish { why });
        Next::End
    }
}

//! `base`, `draft` and `specreason`: one state machine, three settings.
//!
//! SpecReason (arXiv 2504.07891 §4.1): the draft writes a step, the base scores it, the step is
//! kept or rewritten by the base. `draft` is the same machine without a judge; `base` is the same
//! machine with every step written by the base. So the degenerate settings agree by construction:
//! what a threshold of 0 accepts is what `draft` writes.
//!
//! While a step is scored the draft may go on to the steps after it (`draft_ahead`), and steps that
//! wait for the base are scored together: what it writes are the tokens it would write later, and a
//! score is the one the step would have alone, so no reply depends on either; a rejected step takes
//! those behind it with it. A step ends with the token that completes the delimiter, with the close
//! marker, with the end of the turn, or at a cap. Read next: `course`, what a kept step
//! leads to, and `tests.rs`, which drives the machine with hostile outcomes.

use super::command::{ScorePlace, TokenStats};
use super::course::{Course, End, Next, ROOT, Written};
use super::gates;
use super::steps::StepwiseSettings;
use super::{Command, FinishWhy, Note, Outcome, Policy, Score, ScoreSpan, StopCause, Tails, Turn};
use crate::ids::Role;
use crate::sample;
use std::collections::VecDeque;
use std::ops::Range;

/// What becomes of a drafted step when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// The base scores it.
    Scored,
    /// It is kept as it is.
    Kept,
    /// The base writes it: the draft hesitated over its first token by so many nats.
    Gated(f32),
}

/// A step the draft has written.
#[derive(Debug)]
struct Drafted {
    step: Written,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The draft writes steps.
    Drafting,
    /// The base writes a step.
    Rewriting,
    Answering,
    Finished,
}

/// The machine. See the module.
pub struct Stepwise {
    course: Course,
    state: State,
    /// Steps the draft has written and nobody has decided on, the oldest first.
    undecided: VecDeque<Drafted>,
    /// How many of the first of them the base is scoring.
    scoring: usize,
    /// Whether the draft is writing the step after them.
    drafting: bool,
}

impl Stepwise {
    /// A machine at its start.
    #[must_use]
    pub fn new(settings: StepwiseSettings) -> Self {
        let (course, undecided) = (Course::new(settings), VecDeque::new());
        Self { course, state: State::Finished, undecided, scoring: 0, drafting: false }
    }

    fn settings(&self) -> &StepwiseSettings {
        &self.course.settings
    }

    fn begin_step(&mut self, turn: &mut Turn) {
        let (index, settings) = (self.course.step, self.settings());
        let by_base = settings.writer == Role::Base || index < settings.first_n;
        let writer = if by_base { Role::Base } else { Role::Draft };
        turn.notes.push(Note::StepBegan { index, writer });
        match writer {
            Role::Base => self.rewrite(vec![], turn),
            Role::Draft => self.state = State::Drafting,
        }
    }

    /// Lets the base write the next step; whatever was drafted is gone.
    fn rewrite(&mut self, first_window: Vec<crate::ids::TokenId>, turn: &mut Turn) {
        let decode = self.course.decode_step(ROOT, Role::Base, self.course.kept);
        turn.commands.push(Command::Decode(super::Decode { first_window, ..decode }));
        self.undecided.clear();
        (self.scoring, self.drafting) = (0, false);
        self.state = State::Rewriting;
    }

    /// Decides what needs nobody, and gives whoever is free something to do.
    fn go_on(&mut self, tails: &dyn Tails, turn: &mut Turn) {
        while self.state == State::Drafting
            && self.scoring == 0
            && let Some(first) = self.undecided.front_mut()
        {
            match first.fate {
                Fate::Gated(entropy) => {
                    turn.notes.push(Note::StepGated { index: self.course.step, entropy });
                    turn.commands.push(Command::Rollback { branch: ROOT, len: self.course.start });
                    return self.rewrite(vec![], turn);
                }
                Fate::Kept => self.keep_first(tails, turn),
                Fate::Scored => {
                    self.course.close_turn(&mut first.step, turn);
                    self.score(turn);
                }
            }
        }
        if self.may_draft(tails) {
            let next = self.course.decode_step(ROOT, Role::Draft, self.kept_if_all_are());
            turn.commands.push(Command::Decode(next));
            self.drafting = true;
        }
    }

    /// Whether the draft may begin another step: nothing but a rejection can come between it and
    /// those before it.
    fn may_draft(&self, tails: &dyn Tails) -> bool {
        let undecided = &self.undecided;
        let goes_on = |last: &Drafted| {
            matches!(last.step.end, End::Delimiter | End::Cap)
                && !matches!(last.fate, Fate::Gated(_))
                && self.course.left(self.kept_if_all_are()) > 0
                && !self.repeats(tails, undecided.len() - 1)
        };
        self.state == State::Drafting
            && !self.drafting
            && undecided.len() <= self.settings().draft_ahead as usize
            && undecided.back().is_none_or(goes_on)
    }

    /// Sampled tokens kept, should all undecided steps be.
    fn kept_if_all_are(&self) -> u32 {
        self.course.kept + self.undecided.iter().map(|drafted| drafted.step.sampled).sum::<u32>()
    }

    /// The step before an undecided one.
    fn before(&self, index: usize) -> Option<&Range<u32>> {
        match index.checked_sub(1) {
            Some(before) => Some(&self.undecided[before].step.range),
            None => self.course.last.as_ref(),
        }
    }

    /// Whether an undecided step would end the thinking by saying what the one before it said.
    fn repeats(&self, tails: &dyn Tails, index: usize) -> bool {
        let (steps, step) = (self.course.step + 1 + index as u32, &self.undecided[index].step);
        self.course.repeats(tails.ids(ROOT), steps, self.before(index), &step.range)
    }

    fn drafted(
        &mut self,
        tails: &dyn Tails,
        (range, stop, stats): (&Range<u32>, StopCause, &[TokenStats]),
    ) {
        self.drafting = false;
        let start = self.undecided.back().map_or(self.course.start, |last| last.step.range.end);
        let step = self.course.written(start, range, stop);
        let fate = match stop {
            StopCause::Entropy => {
                Fate::Gated(stats.last().and_then(|s| s.entropy).unwrap_or(f32::INFINITY))
            }
            _ if self.settings().judge.is_none() || step.end == End::Context => Fate::Kept,
            _ if self.is_sure(tails, &step, stats) => Fate::Kept,
            _ => Fate::Scored,
        };
        self.undecided.push_back(Drafted { step, fate });
    }

    /// Whether a drafted step, the newest, is kept without asking the base.
    fn is_sure(&self, tails: &dyn Tails, step: &Written, stats: &[TokenStats]) -> bool {
        let tail = tails.ids(ROOT);
        let ids = &tail[step.range.start as usize..step.range.end as usize];
        matches!(step.end, End::Delimiter | End::Cap)
            && self.settings().gates.is_sure(stats)
            && !gates::says_any(ids, &self.settings().hesitations)
            && !self.course.repeats(tail, u32::MAX, self.before(self.undecided.len()), &step.range)
    }

    /// Has the base score the first undecided steps: as many as wait for nothing else.
    fn score(&mut self, turn: &mut Turn) {
        let judge = self.settings().judge.as_ref().expect("only a judge makes steps wait for it");
        let waits = |(index, drafted): &(usize, &Drafted)| {
            // What takes the place of the end of the turn is scored once the steps before are kept.
            let edited = self.course.ends_turn_inside(&drafted.step);
            *index == 0 || drafted.fate == Fate::Scored && !edited
        };
        let batch = self.undecided.iter().enumerate().take_while(waits);
        let place = |(_, drafted): (usize, &Drafted)| ScorePlace {
            end: drafted.step.range.end,
            suffix: match drafted.step.end {
                End::Delimiter => judge.suffix.clone(),
                End::Turn => judge.suffix_after_turn.clone(),
                _ => judge.suffix_after_open_step.clone(),
            },
        };
        let places: Vec<_> =
            batch.take(self.settings().score_batch.max(1) as usize).map(place).collect();
        let span = if judge.step_logprobs {
            ScoreSpan::LogProbs { from: self.course.start }
        } else {
            ScoreSpan::None
        };
        let labels = judge.labels.clone();
        self.scoring = places.len();
        turn.commands.push(Command::Score(Score {
            branch: ROOT,
            role: Role::Base,
            places,
            labels,
            span,
        }));
    }

    fn scored(&mut self, tails: &dyn Tails, probs: &[f32], logprobs: Vec<f32>, turn: &mut Turn) {
        let judge = self.settings().judge.as_ref().expect("only a judge scores");
        let score = sample::score(judge.readout, probs, judge.threshold);
        let accepted = sample::accepts(judge.readout, score, judge.threshold, judge.cutoff);
        let step = &self.undecided[0].step;
        turn.notes.push(Note::StepScored {
            index: self.course.step,
            score: Some(score),
            accepted,
            drafted: step.sampled,
            ahead: tails.ids(ROOT).len() as u32 - step.range.end,
            logprobs,
        });
        self.scoring -= 1;
        if accepted {
            return self.keep_first(tails, turn);
        }
        let Range { start, end } = step.range;
        let rejected = &tails.ids(ROOT)[start as usize..end as usize];
        let first_window = if self.settings().salvage { rejected.to_vec() } else { vec![] };
        turn.commands.push(Command::Rollback { branch: ROOT, len: start });
        self.rewrite(first_window, turn);
    }

    /// Keeps the first undecided step. Others stay only behind a step that another one follows.
    fn keep_first(&mut self, tails: &dyn Tails, turn: &mut Turn) {
        let Drafted { mut step, .. } = self.undecided.pop_front().expect("an undecided step");
        self.course.close_turn(&mut step, turn);
        self.keep(tails, Role::Draft, &step, turn);
    }

    fn keep(&mut self, tails: &dyn Tails, writer: Role, step: &Written, turn: &mut Turn) {
        match self.course.keep(tails.ids(ROOT), writer, step, turn) {
            Next::Step => self.begin_step(turn),
            Next::Answer => self.state = State::Answering,
            Next::End => self.state = State::Finished,
        }
    }
}

impl Policy for Stepwise {
    fn next(&mut self, tails: &dyn Tails, outcome: Outcome) -> Turn {
        let mut turn = Turn::default();
        match (outcome, self.state) {
            (Outcome::Started, _) => self.begin_step(&mut turn),
            (Outcome::Decoded { range, stop, stats, .. }, State::Drafting) => {
                self.drafted(tails, (&range, stop, &stats));
            }
            (Outcome::Decoded { range, stop, .. }, State::Rewriting) => {
                let mut step = self.course.written(self.course.start, &range, stop);
                self.course.close_turn(&mut step, &mut turn);
                self.keep(tails, Role::Base, &step, &mut turn);
            }
            (Outcome::Scored { probs, logprobs, .. }, State::Drafting) => {
                self.scored(tails, &probs, logprobs, &mut turn);
            }
            (Outcome::Decoded { stop, .. }, State::Answering) => {
                Course::answered(stop, &mut turn);
                self.state = State::Finished;
            }
            // What was in flight went with the step that was rejected.
            (Outcome::Cancelled { .. }, State::Rewriting | State::Finished) => {}
            (Outcome::Cancelled { .. }, _) => {
                Course::finish(FinishWhy::Cancelled, &mut turn);
                self.state = State::Finished;
            }
            _ => {}
        }
        self.go_on(tails, &mut turn);
        turn
    }

    fn undecided_from(&self) -> u32 {
        self.undecided.front().map_or(u32::MAX, |first| first.step.range.end)
    }
}

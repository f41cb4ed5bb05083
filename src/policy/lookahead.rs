//! `lookahead`: the base's own step is the reference, and the draft's is kept where it says the
//! same.
//!
//! In the manner of Lookahead Reasoning (arXiv 2506.19830): the draft writes steps one after
//! another; as soon as one is there the base writes its own version of the next one, so the
//! versions of several steps are written side by side, in the same passes, each on a branch of its
//! own. A drafted step is kept when the base, shown both, finds that they say the same; the first
//! that does not gives way to the base's own, and all that was written behind it is gone.
//! `src/ARCHITECTURE.md` says where this differs from the paper. Invariants: what is kept depends
//! on no timing and on no depth; where no step is found to say the same, the reply is `base`'s.
//! Read next: `course`.

use super::course::{Course, End, Next, ROOT, Written};
use super::steps::StepwiseSettings;
use super::{Command, FinishWhy, Note, Outcome, Policy, Score, ScorePlace, ScoreSpan, Tails, Turn};
use crate::ids::{BranchId, Role, TokenId};
use crate::sample::{self, Readout};
use std::collections::VecDeque;
use std::sync::Arc;

/// How the base compares a drafted step with its own, which it has just written.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Scratch tokens between its own step and the drafted one.
    pub before: Vec<TokenId>,
    /// Scratch tokens after the drafted one.
    pub after: Vec<TokenId>,
    /// Longer drafted steps are not compared.
    pub tokens_max: u32,
    /// The ten digits, in order: 0 says that they differ, 9 that they say the same.
    pub labels: Arc<[TokenId]>,
    /// How the probabilities become a score.
    pub readout: Readout,
    /// They say the same from here on.
    pub threshold: f32,
    /// For [`Readout::Prob`]: the probability that has to be reached.
    pub cutoff: f32,
}

/// What is known of a drafted step and the base's own.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// One of them is missing.
    Open,
    /// The base compares them.
    Asked,
    /// Whether they say the same, and the score if the base was asked.
    Known { same: bool, score: Option<f32> },
}

/// One step, in two versions.
#[derive(Debug)]
struct Versions {
    /// Where the base writes its own; known once the branch is made.
    branch: Option<BranchId>,
    /// The draft's, on the root.
    drafted: Option<Written>,
    own: Option<Written>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Both write steps.
    Both,
    /// The base writes a step that nobody drafts.
    Alone,
    Answering,
    Finished,
}

/// The machine. See the module.
pub struct Lookahead {
    course: Course,
    comparison: Comparison,
    state: State,
    /// The steps begun and not decided, in order. All but the last are drafted.
    steps: VecDeque<Versions>,
}

impl Lookahead {
    /// A machine at its start. It has no use for a judge of its own steps, nor for gates.
    #[must_use]
    pub fn new(settings: StepwiseSettings, comparison: Comparison) -> Self {
        let course = Course::new(settings);
        Self { course, comparison, state: State::Finished, steps: VecDeque::new() }
    }

    /// Tells of the step whose turn it is, and begins it where nobody has.
    fn begin_step(&mut self, turn: &mut Turn) {
        let index = self.course.step;
        let alone = index < self.course.settings.first_n;
        let writer = if alone { Role::Base } else { Role::Draft };
        turn.notes.push(Note::StepBegan { index, writer });
        if alone {
            let decode = self.course.decode_step(ROOT, Role::Base, self.course.kept);
            turn.commands.push(Command::Decode(decode));
            self.state = State::Alone;
        } else if self.steps.is_empty() {
            self.begin_versions(turn);
        }
    }

    /// Has both models begin the step at the tip of the root.
    fn begin_versions(&mut self, turn: &mut Turn) {
        self.state = State::Both;
        turn.commands.push(Command::Fork { branch: ROOT, n: 1 });
        let decode = self.course.decode_step(ROOT, Role::Draft, self.kept_before(self.steps.len()));
        turn.commands.push(Command::Decode(decode));
        let (branch, drafted, own) = (None, None, None);
        self.steps.push_back(Versions { branch, drafted, own, verdict: Verdict::Open });
    }

    /// Sampled tokens before a step, should all drafted ones before it be kept.
    fn kept_before(&self, index: usize) -> u32 {
        let drafted = self.steps.iter().take(index).filter_map(|step| step.drafted.as_ref());
        self.course.kept + drafted.map(|step| step.sampled).sum::<u32>()
    }

    fn index_of(&self, branch: BranchId) -> Option<usize> {
        self.steps.iter().position(|step| step.branch == Some(branch))
    }

    /// Where the step with this index starts, in either version.
    fn start_of(&self, index: usize) -> u32 {
        let before = index.checked_sub(1).and_then(|i| self.steps[i].drafted.as_ref());
        before.map_or(self.course.start, |before| before.range.end)
    }

    fn go_on(&mut self, tails: &dyn Tails, turn: &mut Turn) {
        if self.state != State::Both {
            return;
        }
        for index in 0..self.steps.len() {
            if self.steps[index].verdict == Verdict::Open {
                self.steps[index].verdict = self.compare(tails, index, turn);
            }
        }
        while let Some(Verdict::Known { same, score }) = self.steps.front().map(|s| s.verdict) {
            self.decide(tails, same, score, turn);
        }
        if self.may_draft(tails) {
            self.begin_versions(turn);
        }
    }

    /// What can be said of a step now.
    fn compare(&self, tails: &dyn Tails, index: usize, turn: &mut Turn) -> Verdict {
        let (c, versions) = (&self.comparison, &self.steps[index]);
        let both = versions.own.as_ref().zip(versions.drafted.as_ref());
        let Some(((own, drafted), branch)) = both.zip(versions.branch) else {
            return Verdict::Open;
        };
        let ids_of = |branch, step: &Written| {
            &tails.ids(branch)[step.range.start as usize..step.range.end as usize]
        };
        let ids = ids_of(ROOT, drafted);
        if ids == ids_of(branch, own) {
            return Verdict::Known { same: true, score: None };
        }
        // As in the authors' code: what does not end as a step should is never kept for another.
        let whole = own.end == End::Delimiter && drafted.end == End::Delimiter;
        if !whole || drafted.sampled > c.tokens_max {
            return Verdict::Known { same: false, score: None };
        }
        let suffix = [&c.before, ids, &c.after].concat().into();
        turn.commands.push(Command::Score(Score {
            branch,
            role: Role::Base,
            places: vec![ScorePlace { end: own.range.end, suffix }],
            labels: c.labels.clone(),
            span: ScoreSpan::None,
        }));
        Verdict::Asked
    }

    /// Keeps one version of the first step.
    fn decide(&mut self, tails: &dyn Tails, same: bool, score: Option<f32>, turn: &mut Turn) {
        let Versions { branch, drafted, own, .. } = self.steps.pop_front().expect("a first step");
        let (branch, (mut own, mut drafted)) =
            branch.zip(own.zip(drafted)).expect("both were compared");
        turn.notes.push(Note::StepScored {
            index: self.course.step,
            score,
            accepted: same,
            drafted: drafted.sampled,
            ahead: tails.ids(ROOT).len() as u32 - drafted.range.end,
            logprobs: vec![],
        });
        let next = if same {
            turn.commands.push(Command::Drop { branch });
            self.course.close_turn(&mut drafted, turn);
            self.course.keep(tails.ids(ROOT), Role::Draft, &drafted, turn)
        } else {
            turn.commands.push(Command::Keep { branch });
            self.steps.clear();
            self.course.close_turn(&mut own, turn);
            self.course.keep(tails.ids(branch), Role::Base, &own, turn)
        };
        self.follow(next, turn);
    }

    fn follow(&mut self, next: Next, turn: &mut Turn) {
        match next {
            Next::Step => self.begin_step(turn),
            Next::Answer => self.state = State::Answering,
            Next::End => self.state = State::Finished,
        }
    }

    /// Whether the draft may begin another step: nothing but a difference can come between it and
    /// those before it.
    fn may_draft(&self, tails: &dyn Tails) -> bool {
        let Some(last) = self.steps.back() else { return false };
        let Some(drafted) = &last.drafted else { return false };
        let index = self.steps.len() - 1;
        let before = match index.checked_sub(1) {
            Some(before) => self.steps[before].drafted.as_ref().map(|step| &step.range),
            None => self.course.last.as_ref(),
        };
        let differs = |step: &Versions| matches!(step.verdict, Verdict::Known { same: false, .. });
        let steps = self.course.step + 1 + index as u32;
        self.state == State::Both
            && self.steps.len() <= self.course.settings.draft_ahead as usize
            && drafted.end == End::Delimiter
            && !self.steps.iter().any(differs)
            && self.course.left(self.kept_before(index + 1)) > 0
            && !self.course.repeats(tails.ids(ROOT), steps, before, &drafted.range)
    }

    fn scored(&mut self, branch: BranchId, probs: &[f32]) {
        let Some(index) = self.index_of(branch) else { return };
        let c = &self.comparison;
        let score = sample::score(c.readout, probs, c.threshold);
        let same = sample::accepts(c.readout, score, c.threshold, c.cutoff);
        self.steps[index].verdict = Verdict::Known { same, score: Some(score) };
    }
}

impl Policy for Lookahead {
    fn next(&mut self, tails: &dyn Tails, outcome: Outcome) -> Turn {
        let mut turn = Turn::default();
        match (outcome, self.state) {
            (Outcome::Started, _) => self.begin_step(&mut turn),
            (Outcome::Forked { branches }, State::Both) => {
                let index = self.steps.len() - 1;
                let kept = self.kept_before(index);
                self.steps[index].branch = branches.first().copied();
                let own = branches.first().map(|b| self.course.decode_step(*b, Role::Base, kept));
                turn.commands.extend(own.map(Command::Decode));
            }
            (Outcome::Decoded { branch: ROOT, range, stop, .. }, State::Both) => {
                let index = self.steps.len() - 1;
                let step = self.course.written(self.start_of(index), &range, stop);
                self.steps[index].drafted = Some(step);
            }
            (Outcome::Decoded { branch, range, stop, .. }, State::Both) => {
                if let Some(index) = self.index_of(branch) {
                    let step = self.course.written(self.start_of(index), &range, stop);
                    self.steps[index].own = Some(step);
                }
            }
            (Outcome::Scored { branch, probs, .. }, State::Both) => self.scored(branch, &probs),
            (Outcome::Decoded { range, stop, .. }, State::Alone) => {
                let mut step = self.course.written(self.course.start, &range, stop);
                self.course.close_turn(&mut step, &mut turn);
                let next = self.course.keep(tails.ids(ROOT), Role::Base, &step, &mut turn);
                self.follow(next, &mut turn);
            }
            (Outcome::Decoded { stop, .. }, State::Answering) => {
                Course::answered(stop, &mut turn);
                self.state = State::Finished;
            }
            (Outcome::Cancelled { .. }, State::Finished) => {}
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
        let first = self.steps.front().and_then(|step| step.drafted.as_ref());
        first.map_or(u32::MAX, |step| step.range.end)
    }
}

#[cfg(test)]
mod tests;

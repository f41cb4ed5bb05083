//! What a reply will say of its request, collected along the way.
//!
//! Read next: [`super::reply`].

use super::live::{Live, Vocabulary};
use super::request::{Event, PhaseCost, StepReport};
use crate::ids::{BranchId, Role};
use crate::policy::Note;
use crate::policy::speculation::Agreement;

/// What the reply will say, collected along the way.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) steps: Vec<StepReport>,
    pub(super) accepted: u32,
    pub(super) rewritten: u32,
    pub(super) gated: u32,
    pub(super) wasted: u32,
    /// Tokens proposed to the base, and those of them it drew itself.
    pub(super) proposed: u32,
    pub(super) matched: u32,
    /// Tokens of rejected steps that the base wrote again.
    pub(super) salvaged: u32,
    /// Whether the window to be verified is a rejected step.
    pub(super) salvaging: bool,
    pub(super) agreement: Agreement,
    /// Prompt tokens first found in the prefix cache, by role.
    pub(super) cached: [Option<u32>; 2],
    /// Tail index behind the last step that was kept.
    pub(super) kept: u32,
    pub(super) cost: [PhaseCost; 6],
    /// Tail index where the answer begins.
    pub(super) answer_at: Option<u32>,
    step_ms: f64,
    step_drafted: u32,
    step_score: Option<f32>,
    step_logprobs: Vec<f32>,
}

impl Progress {
    pub(super) fn add_cost(&mut self, phase: crate::telemetry::Phase, ms: f64, rows: u32) {
        let cost = &mut self.cost[phase as usize];
        cost.ms += ms;
        cost.rows += rows;
        cost.passes += 1;
        self.step_ms += ms;
    }

    /// Counts a verified window.
    pub(super) fn count_window(&mut self, proposed: u32, matched: u32) {
        if std::mem::take(&mut self.salvaging) {
            self.salvaged += matched;
        } else {
            self.proposed += proposed;
            self.matched += matched;
            self.agreement.count(proposed, matched);
        }
    }
}

impl Live {
    /// Tells of a decision and remembers what the reply will say of it.
    pub(super) fn note(&mut self, note: Note, vocabulary: &Vocabulary) {
        match &note {
            Note::StepBegan { .. } => {
                self.report.step_ms = 0.0;
                self.report.step_drafted = 0;
                self.report.step_score = None;
            }
            Note::StepGated { .. } => {
                self.report.gated += 1;
                self.report.wasted += 1;
            }
            Note::StepScored { score, accepted, drafted, ahead, logprobs, .. } => {
                self.report.step_score = *score;
                self.report.step_drafted = *drafted;
                self.report.step_logprobs.clone_from(logprobs);
                if *accepted {
                    self.report.accepted += 1;
                } else {
                    self.report.rewritten += 1;
                    self.report.wasted += drafted + ahead;
                }
            }
            Note::StepKept { start, end, writer, .. } => {
                self.report.kept = *end;
                let ids = &self.branches[&BranchId::ROOT].ids[*start as usize..*end as usize];
                let tokens = end - start;
                let drafted = if self.report.step_score.is_none() && *writer == Role::Draft {
                    tokens
                } else {
                    self.report.step_drafted
                };
                self.report.steps.push(StepReport {
                    text: vocabulary.tokenizer.decode(ids),
                    origin: (*writer).into(),
                    score: self.report.step_score,
                    tokens,
                    drafted,
                    ms: self.report.step_ms,
                    logprobs: std::mem::take(&mut self.report.step_logprobs),
                });
            }
            Note::AnswerBegan { at, .. } => self.report.answer_at = Some(*at),
        }
        self.emit(Event::Note(note));
    }
}

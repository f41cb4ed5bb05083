//! What one task put into a pass, and where its results will lie.

use super::live::{Live, Task};
use crate::device::{HeadResult, Results};
use crate::ids::{BranchId, RequestId, Role};
use crate::telemetry::Phase;
use std::ops::Range;

/// What one task put into a batch.
pub(super) struct Slot {
    pub(super) request: RequestId,
    pub(super) branch: BranchId,
    /// Which task of that branch.
    pub(super) serial: u64,
    /// Rows of the batch.
    pub(super) rows: usize,
    /// Of these, rows of the prompt.
    pub(super) prompt_rows: usize,
    pub(super) phase: Phase,
    /// Log-probability heads.
    pub(super) logprobs: Range<usize>,
    /// Log-probability heads of tail tokens the listener is told about, and the first's index.
    pub(super) told: (Range<usize>, u32),
    /// Rows of the logits buffer whose likeliest tokens are wanted, and how many of them.
    pub(super) alternatives: (Range<usize>, usize),
    pub(super) read: Read,
}

/// Which result finishes something.
#[derive(Clone, Copy)]
pub(super) enum Read {
    Nothing,
    /// The argmaxes of `count` rows in order, by the first of their heads.
    Argmax {
        first: usize,
        count: usize,
    },
    /// The tokens drawn from `count` rows in order, by the first of their samples.
    Sample {
        first: usize,
        count: usize,
    },
    /// The labels of `count` places in order, by the first of their heads.
    Labels {
        first: usize,
        count: usize,
    },
    /// Row of the logits buffer the host draws from.
    Constrained(usize),
}

impl Read {
    /// The same for `count` rows.
    pub(super) fn of(self, rows: usize) -> Self {
        match self {
            Self::Argmax { first, .. } => Self::Argmax { first, count: rows },
            Self::Sample { first, .. } => Self::Sample { first, count: rows },
            other => other,
        }
    }
}

impl Slot {
    /// Tokens it draws, where it feeds hardly more rows than that.
    pub(super) fn draws(&self) -> Option<usize> {
        match self.read {
            Read::Argmax { count, .. } | Read::Sample { count, .. } if self.rows <= count + 1 => {
                Some(count)
            }
            _ => None,
        }
    }

    /// The row of logits from which the host draws a token under a grammar.
    pub(super) fn constrained(&self) -> Option<usize> {
        match self.read {
            Read::Constrained(row) => Some(row),
            _ => None,
        }
    }

    /// Whether it writes a window.
    pub(super) fn is_proposal(&self, live: &Live, role: Role) -> bool {
        let task = live.branches.get(&self.branch).and_then(|b| b.tasks[role.index()].as_ref());
        matches!(task, Some(Task::Propose(_)))
    }

    /// The places its scoring still has to tell of, if it is one.
    pub(super) fn places(&self, live: &Live, role: Role) -> Option<usize> {
        match live.branches.get(&self.branch)?.tasks[role.index()].as_ref()? {
            Task::Score(task) => Some(task.scratches().count()),
            _ => None,
        }
    }

    /// The probabilities it read off a label set, place by place.
    pub(super) fn labels(&self, results: &Results) -> Vec<Vec<f32>> {
        let Read::Labels { first, count } = self.read else { return vec![] };
        let heads = results.heads[first..first + count].iter();
        let probs = heads.map(|head| match head {
            HeadResult::Labels(probs) => probs.clone(),
            other => unreachable!("a label head returned {other:?}"),
        });
        probs.collect()
    }

    /// How the time of a pass counts: rows of the prompt apart from the rest.
    pub(super) fn shares(&self) -> [(Phase, usize); 2] {
        [(Phase::Prompt, self.prompt_rows), (self.phase, self.rows - self.prompt_rows)]
    }
}

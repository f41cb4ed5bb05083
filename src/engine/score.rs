//! Scorings: labels read after scratch suffixes, at one place of a tail or at several in one pass.
//!
//! The branch's own table is fed up to the last place; each suffix then goes to pages of its own,
//! attends to the branch's table up to its place and to nothing of the others. So a place reads the
//! same alone or with others, and nothing but the tail enters the branch's KV. Places are told one
//! by one, in their order: what a policy answers to one may cancel those behind it.

use super::assemble::Assembly;
use super::live::{Live, Task, Vocabulary};
use super::slot::{Read, Slot};
use crate::device::{HeadKind, HeadResult, HeadRow, Results};
use crate::error::RequestError;
use crate::ids::{BranchId, Role, TokenId};
use crate::kv::{Pool, SeqId};
use crate::policy::{Outcome, Score, ScoreSpan};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// A scoring in progress.
pub(super) struct ScoreTask {
    span: ScoreSpan,
    labels: Arc<[TokenId]>,
    /// Those still to be told of, the first first.
    places: VecDeque<Place>,
    /// What was read at the first of them.
    probs: VecDeque<Vec<f32>>,
    /// From the beginning of the span on, and how many of them were told.
    logprobs: Vec<f32>,
    told: usize,
}

struct Place {
    /// Tail tokens before the suffix; the draft may write more meanwhile.
    end: usize,
    suffix: Arc<[TokenId]>,
    /// The suffix's own pages.
    scratch: SeqId,
}

impl ScoreTask {
    /// # Panics
    /// If there is no place: policies name at least one.
    pub(super) fn new(score: Score, pool: &mut Pool) -> Self {
        assert!(!score.places.is_empty(), "a scoring has places");
        let places = score.places.into_iter().map(|place| Place {
            end: place.end as usize,
            suffix: place.suffix,
            scratch: pool.create_scratch(score.role),
        });
        Self {
            span: score.span,
            labels: score.labels,
            places: places.collect(),
            probs: VecDeque::new(),
            logprobs: vec![],
            told: 0,
        }
    }

    /// Tail tokens that are scored.
    pub(super) fn end(&self) -> usize {
        self.places.back().map_or(0, |place| place.end)
    }

    /// The tail tokens whose log-probabilities are still to be read.
    pub(super) fn span_left(&self) -> Option<Range<usize>> {
        let ScoreSpan::LogProbs { from } = self.span else { return None };
        Some(from as usize + self.logprobs.len()..self.end()).filter(|left| !left.is_empty())
    }

    /// Rows of suffixes that are still to be fed.
    pub(super) fn suffix_rows(&self, pool: &Pool) -> usize {
        self.places.iter().map(|place| place.suffix.len() - pool.len(place.scratch)).sum()
    }

    /// The tables of the suffixes, and the rows each takes in all.
    pub(super) fn scratches(&self) -> impl Iterator<Item = (SeqId, usize)> {
        self.places.iter().map(|place| (place.scratch, place.suffix.len()))
    }

    /// Forgets what was read of the places that nobody was told of.
    pub(super) fn begin_anew(&mut self, pool: &mut Pool) {
        self.scratches().for_each(|(scratch, _)| pool.truncate(scratch, 0));
        self.probs.clear();
        self.logprobs.clear();
    }

    /// Takes what a pass read.
    pub(super) fn read(&mut self, slot: &Slot, results: &Results) {
        self.logprobs.extend(results.heads[slot.logprobs.clone()].iter().map(|head| match head {
            HeadResult::LogProb(p) => *p,
            other => unreachable!("a log-probability head returned {other:?}"),
        }));
        self.probs.extend(slot.labels(results));
    }

    /// The place that can be told of, if it is the turn of one.
    fn tell(&mut self, pool: &mut Pool) -> Option<(Vec<f32>, Vec<f32>)> {
        let probs = self.probs.pop_front()?;
        let place = self.places.pop_front().expect("as many as were read");
        pool.release(place.scratch);
        let logprobs = match self.span {
            ScoreSpan::None => vec![],
            ScoreSpan::LogProbs { from } => {
                let told = std::mem::replace(&mut self.told, place.end - from as usize);
                self.logprobs[told..self.told].to_vec()
            }
        };
        Some((probs, logprobs))
    }
}

/// The next place that a scoring in flight can tell of. With the last one the scoring is over.
pub(super) fn told(live: &mut Live, pool: &mut Pool, at: (Role, BranchId)) -> Option<Outcome> {
    let (role, branch) = at;
    let slot = &mut live.branches.get_mut(&branch)?.tasks[role.index()];
    let Some(Task::Score(task)) = slot else { return None };
    let (probs, logprobs) = task.tell(pool)?;
    if task.places.is_empty() {
        *slot = None;
    }
    Some(Outcome::Scored { branch, role, probs, logprobs })
}

impl Assembly {
    /// Appends up to `rows` rows of the suffixes of a scoring whose tail is fed, and the labels of
    /// those that are complete. Returns how many there was room for.
    ///
    /// # Errors
    /// [`RequestError::Kv`] if there are no pages for any of them, unless `fed_some`: then they
    /// wait, and what comes before them need not.
    pub(super) fn push_suffixes(
        &mut self,
        live: &Live,
        (pool, vocabulary): (&mut Pool, &Vocabulary),
        (role, branch, seq): (Role, BranchId, SeqId),
        rows: usize,
        fed_some: bool,
    ) -> Result<(usize, Read), RequestError> {
        let Some(Task::Score(task)) = &live.branches[&branch].tasks[role.index()] else {
            unreachable!("a scoring is in flight")
        };
        let prompt = live.prompts[role.index()].len();
        let to_model = |id: &TokenId| vocabulary.to_model(role, *id);
        let labels: Vec<TokenId> = task.labels.iter().map(to_model).collect::<Result<_, _>>()?;
        let (mut pushed, first, mut count) = (0, self.batch(0).heads.len(), 0);
        for place in &task.places {
            let done = pool.len(place.scratch);
            let rest = &place.suffix[done..];
            let part = &rest[..rest.len().min(rows - pushed)];
            if part.is_empty() {
                continue;
            }
            let ids: Vec<TokenId> = part.iter().map(to_model).collect::<Result<_, _>>()?;
            let before = prompt + place.end;
            let tables = (place.scratch, Some((seq, before)));
            match self.push_group(0, pool, tables, &ids, before + done) {
                Err(RequestError::Kv(_)) if fed_some || pushed > 0 => break,
                grown => grown?,
            }
            pushed += part.len();
            if part.len() == rest.len() {
                let batch = self.batch(0);
                let (row, kind) = (batch.rows() - 1, HeadKind::Labels(labels.clone()));
                batch.heads.push(HeadRow::new(row, kind));
                count += 1;
            }
        }
        Ok((pushed, if count > 0 { Read::Labels { first, count } } else { Read::Nothing }))
    }
}

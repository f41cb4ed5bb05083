//! What the base makes of every token of a reply, whoever wrote it.
//!
//! Each row the base feeds says how likely the token behind it was. A token the base draws comes
//! with its own; any other, a draft's or an injected one, gets its from the pass in which the base
//! reads it, be it a scoring or the catching up before a decode. Invariant: tokens are told in
//! order, each once unless it is rolled back. Read next: [`super::assemble`], which asks for them.

use super::assemble::Assembly;
use super::live::{Live, Vocabulary};
use super::request::{Event, TokenLogprob};
use crate::device::{HeadKind, HeadRow};
use crate::error::RequestError;
use crate::ids::{BranchId, Role};
use std::ops::Range;

impl Live {
    /// The first `prompt + tail` index whose log-probability is still to be told.
    pub(super) fn first_to_tell(&self, (role, branch): (Role, BranchId)) -> Option<usize> {
        let wanted = self.logprobs.is_some() && role == Role::Base && branch == BranchId::ROOT;
        wanted.then(|| self.prompts[role.index()].len() + self.told as usize)
    }

    /// How many of the likeliest tokens are told beside each.
    pub(super) fn alternatives(&self, at: (Role, BranchId)) -> usize {
        self.first_to_tell(at).and(self.logprobs).unwrap_or(0) as usize
    }

    /// Tells the listener of tokens from tail index `at` on.
    pub(super) fn tell(&mut self, at: u32, logprobs: Vec<TokenLogprob>) {
        if logprobs.is_empty() {
            return;
        }
        debug_assert_eq!(at, self.told, "tokens are told in order");
        self.told += logprobs.len() as u32;
        self.emit(Event::Logprobs { at, logprobs });
    }
}

/// Of the rows a task feeds, those that tell a token of the tail the listener waits to hear of.
pub(super) fn rows_to_tell(live: &Live, at: (Role, BranchId), feed: &Range<usize>) -> Range<usize> {
    let last = feed.end.saturating_sub(1).max(feed.start);
    match live.first_to_tell(at) {
        Some(token) => (token - 1).clamp(feed.start, last)..last,
        None => feed.start..feed.start,
    }
}

impl Assembly {
    /// Heads by which rows `tell` tell the tokens behind them; the first is `row` of the batch.
    pub(super) fn told_heads(
        &mut self,
        live: &Live,
        vocabulary: &Vocabulary,
        (role, branch): (Role, BranchId),
        tell: &Range<usize>,
        row: usize,
    ) -> Result<Range<usize>, RequestError> {
        let first_head = self.batch(0).heads.len();
        for (row, i) in (row..).zip(tell.clone()) {
            let id = live.token(vocabulary, role, branch, i + 1)?;
            self.batch(0).heads.push(HeadRow::new(row, HeadKind::LogProb(id)));
        }
        Ok(first_head..self.batch(0).heads.len())
    }

    /// Keeps the logits of rows `tell`, of which the `wanted` likeliest tokens are asked for.
    pub(super) fn told_rows(
        &mut self,
        wanted: usize,
        tell: &Range<usize>,
        first_row: usize,
        fed_start: usize,
    ) -> (Range<usize>, usize) {
        let first = self.batch(0).full_rows();
        for i in tell.clone().filter(|_| wanted > 0) {
            let row = first_row + i - fed_start;
            self.batch(0).heads.push(HeadRow::new(row, HeadKind::Full));
        }
        (first..self.batch(0).full_rows(), wanted)
    }
}

//! From tasks to a ragged batch.
//!
//! For every task: how many rows it still has to feed, and the rows a grant turns into. A decode
//! feeds what its model has not seen and draws from the last row, and from every row of its window
//! if it has one; further passes of a chain feed what the pass before drew, so a decode runs ahead
//! of the host by some tokens, and those beyond its end are forgotten again
//! ([`Live::forget_ahead`]). A scoring feeds the same rows and then its suffix, which attends to
//! the branch's table and writes to its own. Read next: [`super::results`], what comes back.

use super::live::{Live, Task, Vocabulary};
use super::logprobs::rows_to_tell;
use super::slot::{Read, Slot};
use super::window::WindowState;
use crate::config::WINDOW_MAX;
use crate::device::{
    Drawn, FedRow, HeadKind, HeadRow, Mask, PageCopy, RaggedBatch, RowGroup, SampleRow, Span,
};
use crate::error::RequestError;
use crate::ids::{BranchId, PageId, Role, TokenId};
use crate::kv::{Pool, SeqId};
use crate::policy::Decode;
use crate::sample::{Key, Purpose, SamplingParams, Window};
use crate::schedule::Work;
use crate::telemetry::Phase;
use std::ops::Range;

/// A task that draws, and runs ahead.
struct Drawing<'a> {
    decode: &'a Decode,
    /// Tokens beyond the tail that are fed before the first it draws.
    proposed: usize,
    /// Tokens it may draw.
    limit: usize,
    look: Look,
}

/// What of the logits a token is drawn from is computed.
#[derive(Clone, Copy, Default)]
struct Look {
    /// A whole row, also where the likeliest id would do.
    full: bool,
    /// See [`HeadRow::first_ids`].
    first_ids: Option<usize>,
}

/// What a token is drawn from.
struct Place<'a> {
    pass: usize,
    row: usize,
    /// Tokens between the tail and the drawn one, and those of them that are known.
    beyond: usize,
    path: &'a [TokenId],
    look: Look,
}

/// A chain of passes under construction.
pub(super) struct Assembly {
    /// Passes in order. Those after the first hold only decodes that run ahead.
    pub(super) passes: Vec<(RaggedBatch, Vec<Slot>)>,
    /// Page copies ahead of the first.
    pub(super) copies: Vec<PageCopy>,
    /// Tokens a decode draws in the chain, at most.
    run_ahead: usize,
}

/// The first `prompt + tail` index a task has to feed, given what the model has seen, and the index
/// after the last.
fn span_to_feed(live: &Live, pool: &Pool, seq: SeqId, at: (Role, BranchId)) -> Range<usize> {
    let (role, branch) = at;
    let (prompt, total) = (live.prompts[role.index()].len(), live.total(role, branch));
    // A row tells the token behind it, which may have come after the row was fed.
    let seen = pool.len(seq).min(live.first_to_tell(at).map_or(usize::MAX, |token| token - 1));
    let window = live.branches[&branch].window.chain_len();
    match live.branches[&branch].tasks[role.index()].as_ref().expect("an active task") {
        // The logits at the tip come from its last token, seen or not. Until there is a window to
        // go with it, everything before it may be fed.
        Task::Decode(task) if task.window == WindowState::Writing => seen.min(total - 1)..total - 1,
        Task::Decode(_) if role == Role::Base => seen.min(total - 1)..total + window,
        Task::Decode(_) => seen.min(total - 1)..total,
        Task::Propose(_) => seen.min(total + window - 1)..total + window,
        Task::Score(task) => {
            let end = prompt + task.end();
            match task.span_left() {
                Some(left) => seen.min(prompt + left.start - 1)..end,
                None => seen.min(end)..end,
            }
        }
        Task::Span { range, logprobs } => {
            let first = prompt + range.start as usize + logprobs.len() - 1;
            seen.min(first)..prompt + range.end as usize - 1
        }
    }
}

/// What the task in flight on `at` wants of the next pass.
pub(super) fn wanted(live: &mut Live, pool: &mut Pool, at: (Role, BranchId)) -> Option<Work> {
    let (role, branch) = at;
    live.branches.get(&branch)?.tasks[role.index()].as_ref()?;
    let seq = live.sequence(pool, role, branch);
    let feed = span_to_feed(live, pool, seq, at);
    let mut work = Work { rows: feed.len(), full: 0..0, rank: live.rank };
    let told = rows_to_tell(live, at, &feed);
    if live.alternatives(at) > 0 {
        work.full = told.start - feed.start..told.end - feed.start;
    }
    match live.branches[&branch].tasks[role.index()].as_ref()? {
        // What is a prompt is fed meanwhile; a few tokens go with the window, in one pass.
        Task::Decode(task)
            if task.window == WindowState::Writing && feed.len() <= WINDOW_MAX as usize =>
        {
            return None;
        }
        Task::Decode(task) if task.window == WindowState::Writing => {}
        Task::Decode(task) => {
            let window = match role {
                Role::Base => &live.branches[&branch].window,
                Role::Draft => &Window::default(),
            };
            work.rows += window.len() - window.chain_len();
            if !is_plain_greedy(&task.decode) || live.branches[&branch].guard.is_some() {
                let drawn = work.rows - window.len() - 1;
                work.full = if work.full.is_empty() { drawn } else { work.full.start }..work.rows;
            }
        }
        Task::Propose(task) => {
            let greedy = live.base_decode(branch).is_none_or(is_plain_greedy);
            if !greedy || task.branches > 1 {
                work.full = work.rows - 1..work.rows;
            }
        }
        Task::Score(task) => work.rows += task.suffix_rows(pool),
        Task::Span { .. } => {}
    }
    Some(work)
}

/// Whether the host has to look at logits before the next pass replaces them.
pub(super) fn wants_logits(live: &Live, (role, branch): (Role, BranchId)) -> bool {
    match live.branches.get(&branch).and_then(|b| b.tasks[role.index()].as_ref()) {
        Some(Task::Decode(task)) if task.decode.want.alternatives > 0 => true,
        Some(Task::Decode(_)) if live.branches[&branch].guard.is_some() => true,
        Some(Task::Propose(task)) if task.branches > 1 => true,
        Some(_) => live.alternatives((role, branch)) > 0,
        None => false,
    }
}

/// Whether the argmax alone decides, so that no row of logits need be stored.
fn is_plain_greedy(decode: &Decode) -> bool {
    let (p, until) = (&decode.sampling, &decode.until);
    p.is_greedy()
        && !p.edits_logits()
        && !decode.want.any()
        && until.entropy_above.is_none()
        && until.first_entropy_above.is_none()
        && until.entropy_below.is_none()
}

impl Assembly {
    /// An empty chain in which a decode draws up to `run_ahead` tokens.
    pub(super) fn new(run_ahead: usize) -> Self {
        Self { passes: vec![Default::default()], copies: vec![], run_ahead }
    }

    /// Rows of all passes.
    pub(super) fn rows(&self) -> usize {
        self.passes.iter().map(|(batch, _)| batch.rows()).sum()
    }

    pub(super) fn batch(&mut self, pass: usize) -> &mut RaggedBatch {
        &mut self.passes[pass].0
    }

    /// Adds `rows` rows of the task in flight on `at`.
    ///
    /// # Errors
    /// [`RequestError::Kv`] if there are no pages for them; then nothing was added.
    pub(super) fn add(
        &mut self,
        live: &mut Live,
        pool: &mut Pool,
        vocabulary: &Vocabulary,
        at: (Role, BranchId),
        rows: usize,
    ) -> Result<(), RequestError> {
        let (role, branch) = at;
        let seq = live.sequence(pool, role, branch);
        let feed = span_to_feed(live, pool, seq, at);
        let fed = feed.start..feed.start + rows.min(feed.len());
        pool.truncate(seq, feed.start);
        let first_row = self.batch(0).rows();
        let tokens: Vec<TokenId> = fed
            .clone()
            .map(|i| live.token(vocabulary, role, branch, i))
            .collect::<Result<_, _>>()?;
        if !tokens.is_empty() {
            self.push_group(0, pool, (seq, None), &tokens, feed.start)?;
        }
        let logprobs = self.logprob_heads(live, vocabulary, at, first_row, &fed)?;
        let prompt = live.prompts[role.index()].len();
        let tell = rows_to_tell(live, at, &feed);
        let tell = tell.start..tell.end.min(fed.end).max(tell.start);
        let told =
            self.told_heads(live, vocabulary, at, &tell, first_row + tell.start - fed.start)?;
        let mut slot = Slot {
            request: live.id,
            branch,
            serial: live.serial(role, branch).expect("an active task"),
            rows,
            prompt_rows: fed.end.min(prompt).saturating_sub(fed.start),
            phase: Phase::Score,
            logprobs,
            told: (told, (tell.start + 1).saturating_sub(prompt) as u32),
            alternatives: self.told_rows(live.alternatives(at), &tell, first_row, fed.start),
            read: Read::Nothing,
        };
        let bound = live.is_bound(branch, vocabulary);
        let total = live.total(role, branch);
        let task = live.branches[&branch].tasks[role.index()].as_ref().expect("an active task");
        match task {
            Task::Decode(task) => {
                slot.phase = task.decode.phase;
                let beyond =
                    fed.end.checked_sub(total).filter(|_| task.window != WindowState::Writing);
                if let Some(chain) = beyond {
                    let row = self.batch(0).rows() - 1 - chain;
                    let mut nodes = chain + (rows - fed.len());
                    if role == Role::Base {
                        // Tokens there was no room for are not proposed.
                        live.propose_only(branch, nodes);
                        if nodes > chain && !self.push_tree(live, pool, vocabulary, branch, seq)? {
                            nodes = chain;
                            slot.rows = fed.len();
                            live.propose_only(branch, nodes);
                        }
                    }
                    let task = live.decode_task(at);
                    slot.read = if bound {
                        let logits_row = self.batch(0).full_rows();
                        self.batch(0).heads.push(HeadRow::new(row, HeadKind::Full));
                        Read::Constrained(logits_row)
                    } else {
                        self.draw_along(live, &task.decode, at, row, nodes)
                    };
                    if nodes > 0 {
                        self.passes[0].1.push(slot);
                        return Ok(());
                    }
                    let wanted = task.decode.want.alternatives as usize;
                    if wanted > 0 {
                        // The row it draws from is the last; those that tell come before it.
                        let end = self.batch(0).full_rows();
                        slot.alternatives = (end - 1 - slot.alternatives.0.len()..end, wanted);
                    }
                    let written = live.branches[&branch].ids.len() - task.start as usize;
                    let limit = (task.decode.until.limit as usize).saturating_sub(written);
                    let (decode, look) = (&task.decode, Look::default());
                    let drawing = Drawing { decode, proposed: 0, limit, look };
                    return self.add_ahead(slot, live, &drawing, at, pool, seq);
                }
            }
            Task::Propose(task) => {
                slot.phase = Phase::Draft;
                if fed.end == feed.end {
                    let proposed = fed.end - total;
                    let decode = live.base_decode(branch).expect("it asked for a window");
                    let row = self.batch(0).rows() - 1;
                    let look = Look { full: task.branches > 1, first_ids: task.first_ids };
                    let path = live.branches[&branch].window.ids();
                    let place = Place { pass: 0, row, beyond: proposed, path, look };
                    slot.read = self.draw(live, decode, at, &place);
                    if look.full {
                        let end = self.batch(0).full_rows();
                        slot.alternatives = (end - 1..end, task.branches);
                    }
                    let limit = task.tokens - proposed;
                    let drawing = Drawing { decode, proposed, limit, look };
                    return self.add_ahead(slot, live, &drawing, at, pool, seq);
                }
            }
            Task::Score(_) => {
                let (left, fed_some) = (rows - fed.len(), !fed.is_empty());
                let at = (role, branch, seq);
                let (suffixes, read) =
                    self.push_suffixes(live, (pool, vocabulary), at, left, fed_some)?;
                (slot.rows, slot.read) = (fed.len() + suffixes, read);
            }
            Task::Span { .. } => {}
        }
        self.passes[0].1.push(slot);
        Ok(())
    }

    /// Adds the slot of a task that draws, and the rows of later passes by which it runs ahead.
    fn add_ahead(
        &mut self,
        mut slot: Slot,
        live: &Live,
        drawing: &Drawing<'_>,
        at: (Role, BranchId),
        pool: &mut Pool,
        seq: SeqId,
    ) -> Result<(), RequestError> {
        let (role, branch) = at;
        let Drawing { decode, proposed, limit, look } = *drawing;
        // Penalties look at tokens only the host will know.
        let known = decode.sampling.needs_history();
        // The next token may be the first a grammar binds.
        let guarded = live.branches[&branch].guard.is_some();
        let most = if known || guarded { 1 } else { self.run_ahead };
        let len = live.branches[&branch].ids.len() + proposed;
        let draws = most.min(limit).min(live.tail_max - len).max(1);
        let position = live.total(role, branch) + proposed;
        let mut last = 0;
        for pass in 1..draws {
            // Nobody has to make room for tokens that may be thrown away.
            if pool.pages_needed(seq, 1) > pool.available_pages() {
                break;
            }
            let drawn = match slot.read {
                Read::Argmax { first, .. } => Drawn::Head(first),
                Read::Sample { first, .. } => Drawn::Sample(first),
                Read::Nothing | Read::Labels { .. } | Read::Constrained(_) => {
                    unreachable!("a task that draws on the device")
                }
            };
            let (logprobs, told, alternatives) = (0..0, (0..0, 0), (0..0, 0));
            let next = Slot { rows: 1, prompt_rows: 0, logprobs, told, alternatives, ..slot };
            self.passes[pass - 1].1.push(slot);
            slot = next;
            if self.passes.len() == pass {
                self.passes.push(Default::default());
            }
            let row = self.batch(pass).rows();
            self.push_group(pass, pool, (seq, None), &[TokenId(0)], position + pass - 1)?;
            self.batch(pass).fed.push(FedRow { row, drawn });
            let place = Place { pass, row, beyond: proposed + pass, path: &[], look };
            slot.read = self.draw(live, decode, at, &place);
            last = pass;
        }
        self.passes[last].1.push(slot);
        Ok(())
    }

    /// Appends the rows of a window that is a tree: they see all of the branch and their own
    /// ancestors, and write to pages of their own. False where there are no pages for them.
    fn push_tree(
        &mut self,
        live: &mut Live,
        pool: &mut Pool,
        vocabulary: &Vocabulary,
        branch: BranchId,
        seq: SeqId,
    ) -> Result<bool, RequestError> {
        let tree = pool.create_scratch(Role::Base);
        live.keep_tree(branch, tree);
        let window = live.branches[&branch].window.clone();
        let to_model = |id: &TokenId| vocabulary.to_model(Role::Base, *id);
        let tokens: Vec<TokenId> = window.ids().iter().map(to_model).collect::<Result<_, _>>()?;
        let total = live.total(Role::Base, branch);
        let depth = |node: usize| (total + window.path(node).len() - 1) as u32;
        let positions = (0..window.len()).map(depth).collect();
        let (mask, tables) = (Mask::Tree(window.masks()), (tree, Some((seq, pool.len(seq)))));
        match self.push_rows(0, pool, tables, &tokens, positions, mask) {
            Ok(()) => Ok(true),
            Err(RequestError::Kv(_)) => {
                live.drop_tree(pool, branch);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Appends rows that write to the first of `tables` and see so much of the second before that.
    pub(super) fn push_group(
        &mut self,
        pass: usize,
        pool: &mut Pool,
        tables: (SeqId, Option<(SeqId, usize)>),
        tokens: &[TokenId],
        position: usize,
    ) -> Result<(), RequestError> {
        let positions = (position..position + tokens.len()).map(|p| p as u32).collect();
        self.push_rows(pass, pool, tables, tokens, positions, Mask::Causal)
    }

    fn push_rows(
        &mut self,
        pass: usize,
        pool: &mut Pool,
        (seq, prefix): (SeqId, Option<(SeqId, usize)>),
        tokens: &[TokenId],
        positions: Vec<u32>,
        mask: Mask,
    ) -> Result<(), RequestError> {
        let own_len = pool.len(seq);
        let copy = pool.append(seq, tokens.len())?.copy;
        assert!(pass == 0 || copy.is_none(), "the first pass of a chain makes the page its own");
        self.copies.extend(copy);
        let batch = self.batch(pass);
        let mut span = |pages: &[PageId], len: usize| {
            let start = batch.pages.len();
            batch.pages.extend_from_slice(pages);
            Span { pages: start..batch.pages.len(), len }
        };
        let prefix = prefix.map_or(Span::default(), |(seq, len)| {
            let pages = pool.layout().pages_for(pool.role(seq), len);
            span(&pool.table(seq)[..pages], len)
        });
        let own = span(pool.table(seq), own_len);
        let first = batch.rows();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend(positions);
        let rows = first..first + tokens.len();
        batch.groups.push(RowGroup { rows, prefix, own, mask });
        Ok(())
    }

    /// Heads for the log-probabilities that rows `fed` can tell: row `i` tells token `i + 1`.
    fn logprob_heads(
        &mut self,
        live: &Live,
        vocabulary: &Vocabulary,
        at: (Role, BranchId),
        first_row: usize,
        fed: &Range<usize>,
    ) -> Result<Range<usize>, RequestError> {
        let (role, branch) = at;
        let prompt = live.prompts[role.index()].len();
        let tokens = match live.branches[&branch].tasks[role.index()].as_ref() {
            Some(Task::Score(task)) => match task.span_left() {
                Some(left) => prompt + left.start..prompt + left.end,
                None => 0..0,
            },
            Some(Task::Span { range, .. }) => {
                prompt + range.start as usize..prompt + range.end as usize
            }
            _ => 0..0,
        };
        let batch = self.batch(0);
        let first_head = batch.heads.len();
        for i in fed.clone().filter(|i| tokens.contains(&(i + 1))) {
            let id = live.token(vocabulary, role, branch, i + 1)?;
            let row = first_row + i - fed.start;
            batch.heads.push(HeadRow::new(row, HeadKind::LogProb(id)));
        }
        Ok(first_head..batch.heads.len())
    }

    /// Draws a token from `row` of the first pass and from the row of each of the first `nodes`
    /// nodes of the window, which come after it.
    fn draw_along(
        &mut self,
        live: &Live,
        decode: &Decode,
        at: (Role, BranchId),
        row: usize,
        nodes: usize,
    ) -> Read {
        let look = Look::default();
        let tip = Place { pass: 0, row, beyond: 0, path: &[], look };
        let first = self.draw(live, decode, at, &tip);
        let window = &live.branches[&at.1].window;
        for node in 0..nodes {
            let path: Vec<_> = window.path(node).into_iter().map(|n| window.ids()[n]).collect();
            let (row, beyond) = (row + node + 1, path.len());
            self.draw(live, decode, at, &Place { pass: 0, row, beyond, path: &path, look });
        }
        first.of(nodes + 1)
    }

    /// Draws the token of a place, as `decode` says: a draft that proposes draws with the random
    /// numbers of the base.
    fn draw(
        &mut self,
        live: &Live,
        decode: &Decode,
        (role, branch): (Role, BranchId),
        place: &Place<'_>,
    ) -> Read {
        let Place { pass, row, beyond, path, look: Look { full, first_ids } } = *place;
        let batch = self.batch(pass);
        if is_plain_greedy(decode) && !full {
            batch.heads.push(HeadRow { row, kind: HeadKind::Argmax, first_ids });
            return Read::Argmax { first: batch.heads.len() - 1, count: 1 };
        }
        let tail = &live.branches[&branch].ids;
        let params = (*decode.sampling).clone();
        let (prompt, generated) = if params.needs_history() {
            (live.prompts[role.index()].clone(), [tail, path].concat())
        } else {
            (vec![], vec![])
        };
        let key = key(&params, (decode.role, decode.draws_as), tail.len() + beyond);
        let logits_row = batch.full_rows();
        batch.heads.push(HeadRow { row, kind: HeadKind::Full, first_ids });
        batch.samples.push(SampleRow { logits_row, params, key, prompt, generated });
        Read::Sample { first: batch.samples.len() - 1, count: 1 }
    }
}

/// Names the random number by which `role` draws tail token `index`.
pub(super) fn key(params: &SamplingParams, (role, branch): (Role, BranchId), index: usize) -> Key {
    Key { seed: params.seed, branch, position: index as u32, role, purpose: Purpose::Draw }
}

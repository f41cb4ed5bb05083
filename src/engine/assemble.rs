//! From tasks to a ragged batch, and from its results back to outcomes.
//!
//! For every task: how many rows it still has to feed, the rows a grant turns into, and what their
//! results mean. A decode feeds what its model has not seen and draws from the last row; further
//! passes of a chain feed what the pass before drew, so a decode runs ahead of the host by some
//! tokens, and those beyond its end are forgotten again ([`Live::forget_ahead`]). A scoring feeds
//! the same rows and then its suffix, which attends to the branch's table and writes to its own.
//! Read next: [`super::runner`].

use super::live::{DecodeTask, Live, ScoreTask, Task, Vocabulary, release_task};
use super::request::TokenLogprob;
use crate::device::{
    Drawn, FedRow, HeadKind, HeadResult, HeadRow, Mask, PageCopy, RaggedBatch, Results, RowGroup,
    SampleRow, Span,
};
use crate::error::RequestError;
use crate::ids::{BranchId, RequestId, Role, TokenId};
use crate::kv::{Pool, SeqId};
use crate::policy::command::TokenStats;
use crate::policy::{Outcome, ScoreSpan, StopCause};
use crate::sample::{Key, Purpose, Sampled};
use crate::schedule::Work;
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
    phase: Phase,
    /// Log-probability heads.
    logprobs: Range<usize>,
    /// The row of the logits buffer whose likeliest tokens are wanted, and how many.
    pub(super) alternatives: Option<(usize, usize)>,
    read: Read,
}

/// Which result finishes something.
#[derive(Clone, Copy)]
enum Read {
    Nothing,
    Argmax(usize),
    Sample(usize),
    Labels(usize),
}

impl Slot {
    /// How the time of a pass counts: rows of the prompt apart from the rest.
    pub(super) fn shares(&self) -> [(Phase, usize); 2] {
        [(Phase::Prompt, self.prompt_rows), (self.phase, self.rows - self.prompt_rows)]
    }
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
    let seen = pool.len(seq);
    let end = |task: &ScoreTask| prompt + task.end;
    match live.branches[&branch].tasks[role.index()].as_ref().expect("an active task") {
        // The logits at the tip come from its last token, seen or not.
        Task::Decode(_) => seen.min(total - 1)..total,
        Task::Score(task) => match task.score.span {
            ScoreSpan::LogProbs { from }
                if prompt + from as usize + task.logprobs.len() < end(task) =>
            {
                seen.min(prompt + from as usize + task.logprobs.len() - 1)..end(task)
            }
            _ => seen..end(task),
        },
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
    let mut work = Work { rows: feed.len(), full_rows: 0, arrival: live.id.0 };
    match live.branches[&branch].tasks[role.index()].as_ref()? {
        Task::Decode(task) => work.full_rows = usize::from(!is_plain_greedy(task)),
        Task::Score(task) => work.rows += task.score.suffix.len() - pool.len(task.scratch),
        Task::Span { .. } => {}
    }
    Some(work)
}

/// Whether the host has to look at logits before the next pass replaces them.
pub(super) fn wants_logits(live: &Live, (role, branch): (Role, BranchId)) -> bool {
    match live.branches.get(&branch).and_then(|b| b.tasks[role.index()].as_ref()) {
        Some(Task::Decode(task)) => task.decode.want.alternatives > 0,
        _ => false,
    }
}

/// Whether the argmax alone decides, so that no row of logits need be stored.
fn is_plain_greedy(task: &DecodeTask) -> bool {
    let (p, until) = (&task.decode.sampling, &task.decode.until);
    p.is_greedy()
        && !p.edits_logits()
        && !task.decode.want.any()
        && until.entropy_above.is_none()
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

    fn batch(&mut self, pass: usize) -> &mut RaggedBatch {
        &mut self.passes[pass].0
    }

    /// Adds `rows` rows of the task in flight on `at`.
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
        let mut slot = Slot {
            request: live.id,
            branch,
            serial: live.serial(role, branch).expect("an active task"),
            rows,
            prompt_rows: fed.end.min(prompt).saturating_sub(fed.start),
            phase: Phase::Score,
            logprobs,
            alternatives: None,
            read: Read::Nothing,
        };
        let task = live.branches[&branch].tasks[role.index()].as_ref().expect("an active task");
        match task {
            Task::Decode(task) => {
                slot.phase = task.decode.phase;
                if fed.end == feed.end {
                    let row = self.batch(0).rows() - 1;
                    slot.read = self.draw(0, live, task, at, row);
                    let wanted = task.decode.want.alternatives as usize;
                    let full_row = self.batch(0).full_rows().checked_sub(1);
                    slot.alternatives = full_row.filter(|_| wanted > 0).map(|row| (row, wanted));
                    return self.add_ahead(slot, live, task, at, pool, seq);
                }
            }
            Task::Score(task) => {
                let done = pool.len(task.scratch);
                let suffix = &task.score.suffix[done..done + rows - fed.len()];
                if !suffix.is_empty() {
                    let ids: Vec<TokenId> = suffix
                        .iter()
                        .map(|id| vocabulary.to_model(role, *id))
                        .collect::<Result<_, _>>()?;
                    let tables = (task.scratch, Some(seq));
                    self.push_group(0, pool, tables, &ids, feed.end + done)?;
                }
                if done + suffix.len() == task.score.suffix.len() {
                    let labels = task.score.labels.iter();
                    let labels: Vec<TokenId> = labels
                        .map(|id| vocabulary.to_model(role, *id))
                        .collect::<Result<_, _>>()?;
                    let batch = self.batch(0);
                    slot.read = Read::Labels(batch.heads.len());
                    let row = batch.rows() - 1;
                    batch.heads.push(HeadRow { row, kind: HeadKind::Labels(labels) });
                }
            }
            Task::Span { .. } => {}
        }
        self.passes[0].1.push(slot);
        Ok(())
    }

    /// Adds the slot of a decode that draws, and the rows of later passes by which it runs ahead.
    fn add_ahead(
        &mut self,
        mut slot: Slot,
        live: &Live,
        task: &DecodeTask,
        at: (Role, BranchId),
        pool: &mut Pool,
        seq: SeqId,
    ) -> Result<(), RequestError> {
        let (role, branch) = at;
        let len = live.branches[&branch].ids.len();
        // Penalties look at tokens only the host will know.
        let known = task.decode.sampling.needs_history();
        let limit = (task.decode.until.limit as usize).saturating_sub(len - task.start as usize);
        let most = if known { 1 } else { self.run_ahead };
        let draws = most.min(limit).min(live.tail_max - len).max(1);
        let position = live.total(role, branch);
        for pass in 1..draws {
            let drawn = match slot.read {
                Read::Argmax(head) => Drawn::Head(head),
                Read::Sample(sample) => Drawn::Sample(sample),
                Read::Nothing | Read::Labels(_) => unreachable!("a decode that draws"),
            };
            let next = Slot { rows: 1, prompt_rows: 0, logprobs: 0..0, alternatives: None, ..slot };
            self.passes[pass - 1].1.push(slot);
            slot = next;
            if self.passes.len() == pass {
                self.passes.push(Default::default());
            }
            let row = self.batch(pass).rows();
            self.push_group(pass, pool, (seq, None), &[TokenId(0)], position + pass - 1)?;
            self.batch(pass).fed.push(FedRow { row, drawn });
            slot.read = self.draw(pass, live, task, at, row);
        }
        self.passes[draws - 1].1.push(slot);
        Ok(())
    }

    /// Appends rows that write to the first of `tables` and see all of the second before that.
    fn push_group(
        &mut self,
        pass: usize,
        pool: &mut Pool,
        tables: (SeqId, Option<SeqId>),
        tokens: &[TokenId],
        position: usize,
    ) -> Result<(), RequestError> {
        let (seq, prefix) = tables;
        let own_len = pool.len(seq);
        let copy = pool.append(seq, tokens.len())?.copy;
        assert!(pass == 0 || copy.is_none(), "the first pass of a chain makes the page its own");
        self.copies.extend(copy);
        let batch = self.batch(pass);
        let mut span = |seq: SeqId, len: usize| {
            let start = batch.pages.len();
            batch.pages.extend_from_slice(pool.table(seq));
            Span { pages: start..batch.pages.len(), len }
        };
        let prefix = prefix.map_or(Span::default(), |p| span(p, pool.len(p)));
        let own = span(seq, own_len);
        let first = batch.rows();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        let rows = first..first + tokens.len();
        batch.groups.push(RowGroup { rows, prefix, own, mask: Mask::Causal });
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
            Some(Task::Score(task)) => match task.score.span {
                ScoreSpan::LogProbs { from } => prompt + from as usize..prompt + task.end,
                ScoreSpan::None => 0..0,
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
            batch.heads.push(HeadRow { row, kind: HeadKind::LogProb(id) });
        }
        Ok(first_head..batch.heads.len())
    }

    /// Draws a token from `row` of a pass.
    fn draw(
        &mut self,
        pass: usize,
        live: &Live,
        task: &DecodeTask,
        at: (Role, BranchId),
        row: usize,
    ) -> Read {
        let (role, branch) = at;
        let batch = self.batch(pass);
        if is_plain_greedy(task) {
            batch.heads.push(HeadRow { row, kind: HeadKind::Argmax });
            return Read::Argmax(batch.heads.len() - 1);
        }
        let tail = &live.branches[&branch].ids;
        let params = (*task.decode.sampling).clone();
        let (prompt, generated) = if params.needs_history() {
            (live.prompts[role.index()].clone(), tail.clone())
        } else {
            (vec![], vec![])
        };
        let key = Key {
            seed: params.seed,
            branch,
            position: (tail.len() + pass) as u32,
            role,
            purpose: Purpose::Draw,
        };
        let logits_row = batch.full_rows();
        batch.heads.push(HeadRow { row, kind: HeadKind::Full });
        batch.samples.push(SampleRow { logits_row, params, key, prompt, generated });
        Read::Sample(batch.samples.len() - 1)
    }
}

/// What a slot's results mean for its request: an outcome when its task is complete.
/// `alternatives` are those the slot wanted.
pub(super) fn read(
    slot: &Slot,
    role: Role,
    live: &mut Live,
    pool: &mut Pool,
    vocabulary: &Vocabulary,
    results: &Results,
    alternatives: Vec<(TokenId, f32)>,
) -> Result<Option<Outcome>, RequestError> {
    let branch = slot.branch;
    let new = results.heads[slot.logprobs.clone()].iter().map(|head| match head {
        HeadResult::LogProb(p) => *p,
        other => unreachable!("a log-probability head returned {other:?}"),
    });
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let task = tail.tasks[role.index()].as_mut().expect("an active task");
    match (task, &slot.read) {
        (Task::Decode(_), Read::Argmax(i)) => {
            let HeadResult::Argmax { id, .. } = results.heads[*i] else {
                unreachable!("an argmax head returned something else")
            };
            drawn(live, pool, (role, branch), id, None, vocabulary)
        }
        (Task::Decode(_), Read::Sample(i)) => {
            let sampled = &results.samples[*i];
            let told = Some((sampled, alternatives));
            drawn(live, pool, (role, branch), sampled.id, told, vocabulary)
        }
        (Task::Score(task), read) => {
            task.logprobs.extend(new);
            let Read::Labels(i) = read else { return Ok(None) };
            let HeadResult::Labels(probs) = &results.heads[*i] else {
                unreachable!("a label head returned something else")
            };
            let logprobs = std::mem::take(&mut task.logprobs);
            let done = tail.tasks[role.index()].take().expect("just seen");
            release_task(pool, &done);
            Ok(Some(Outcome::Scored { branch, role, probs: probs.clone(), logprobs }))
        }
        (Task::Span { range, logprobs }, _) => {
            logprobs.extend(new);
            if logprobs.len() < range.len() {
                return Ok(None);
            }
            let logprobs = std::mem::take(logprobs);
            tail.tasks[role.index()] = None;
            Ok(Some(Outcome::Spanned { branch, role, logprobs }))
        }
        (Task::Decode(_), _) => Ok(None),
    }
}

/// Appends a drawn token and says whether the decode ends with it.
fn drawn(
    live: &mut Live,
    pool: &mut Pool,
    at: (Role, BranchId),
    own_id: TokenId,
    sampled: Option<(&Sampled, Vec<(TokenId, f32)>)>,
    vocabulary: &Vocabulary,
) -> Result<Option<Outcome>, RequestError> {
    let (role, branch) = at;
    let id = vocabulary.read_from(role, own_id)?;
    let tells = match live.branches[&branch].tasks[role.index()].as_ref() {
        Some(Task::Decode(task)) => task.decode.want.logprob,
        _ => false,
    };
    let (sampled, alternatives) = sampled.map_or((None, vec![]), |(s, a)| (Some(s), a));
    let logprob = sampled.filter(|_| tells).map(|s| s.logprob);
    let logprobs = logprob.map(|logprob| TokenLogprob { logprob, alternatives });
    live.append(branch, &[id], role.into(), logprobs.into_iter().collect(), vocabulary);
    let tail_max = live.tail_max;
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let len = tail.ids.len();
    let Some(Task::Decode(task)) = tail.tasks[role.index()].as_mut() else {
        unreachable!("only a decode draws")
    };
    let want = task.decode.want;
    if let (true, Some(s)) = (want.any(), sampled) {
        task.stats.push(TokenStats {
            entropy: want.entropy.then_some(s.entropy_nats),
            top1: want.top1.then_some(s.top1_prob),
            logprob: want.logprob.then_some(s.logprob),
        });
    }
    let cause = stop_cause(task, id, sampled, len, vocabulary)
        .or_else(|| (len >= tail_max).then_some(StopCause::Context));
    let Some(stop) = cause else {
        // Two ids of a model may be one id of the tail. What the model sees is the tail's.
        if vocabulary.to_model(role, id)? != own_id {
            live.forget_ahead(pool, at, 1);
        }
        return Ok(None);
    };
    let range = task.start..len as u32;
    let stats = std::mem::take(&mut task.stats);
    tail.tasks[role.index()] = None;
    live.forget_ahead(pool, at, 0);
    Ok(Some(Outcome::Decoded { branch, role, range, stop, stats }))
}

fn stop_cause(
    task: &mut DecodeTask,
    id: TokenId,
    sampled: Option<&Sampled>,
    len: usize,
    vocabulary: &Vocabulary,
) -> Option<StopCause> {
    let until = &task.decode.until;
    if until.ids.contains(&id) {
        return Some(StopCause::Id(id));
    }
    let bytes = vocabulary.tokenizer.token_bytes(id);
    if let Some(hit) = task.matcher.push(bytes) {
        return Some(StopCause::String(hit.string));
    }
    if task.sentence.push(bytes).is_some() && until.sentence_end {
        return Some(StopCause::SentenceEnd);
    }
    let entropy = sampled.map(|s| s.entropy_nats);
    let above = until.entropy_above.zip(entropy).is_some_and(|(bound, h)| h > bound);
    let below = until.entropy_below.zip(entropy).is_some_and(|(bound, h)| h < bound);
    if above || below {
        return Some(StopCause::Entropy);
    }
    (len as u32 - task.start >= until.limit).then_some(StopCause::Limit)
}

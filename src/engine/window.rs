//! Windows: tokens proposed to a decode, which its model verifies several at a time.
//!
//! Before a pass that would draw one token, [`Live::open_window`] decides how many are proposed and
//! by whom. Looked-up tokens are there at once; the draft model writes them as a task of its own
//! ([`ProposeTask`]), while the base feeds what it has not seen. The base then feeds the window and
//! draws at every place of it, and [`verified`] keeps what agrees. Whatever was fed beyond the
//! first difference is forgotten by both models, so afterwards neither KV differs from one that
//! never saw a proposed token. A tree goes to pages of its own, which are dropped: what stays of it
//! is fed once more, with the next window. Read next: [`crate::policy::speculation`], the rules.

use super::live::{DecodeTask, Live, Task, Vocabulary};
use super::results::drawn;
use super::slot::Read;
use crate::config::WINDOW_MAX;
use crate::device::{HeadResult, Results};
use crate::error::RequestError;
use crate::ids::{BranchId, Role, TokenId};
use crate::kv::{Pool, SeqId};
use crate::policy::speculation::{Costs, lookup};
use crate::policy::{Decode, Outcome, Proposer, WindowSize};
use crate::sample::{Sampled, Window};

/// Tokens of a first window, which somebody else wrote, at most: those that fit one tile of rows.
const FIRST_WINDOW_MAX: usize = 63;

/// How far the window of a decode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowState {
    /// To be decided before the next pass that draws.
    Open,
    /// The draft writes it.
    Writing,
    /// In the branch, to be verified; it may be empty.
    Ready,
}

/// The draft writing a window.
pub(super) struct ProposeTask {
    /// Tokens one after another the window is to have.
    pub(super) tokens: usize,
    /// Tokens it is to have in one place.
    pub(super) branches: usize,
    /// Ids it is written from; see [`crate::device::HeadRow::first_ids`].
    pub(super) first_ids: Option<usize>,
    /// Tokens beside the one at a place: what else the draft found likely there.
    siblings: Vec<(usize, TokenId)>,
}

/// The ids a pass drew in a row, for a decode that verifies.
pub(super) enum Draws<'a> {
    Argmax(&'a [HeadResult]),
    Sampled(&'a [Sampled]),
}

impl<'a> Draws<'a> {
    /// What a slot drew, if anything.
    pub(super) fn of(read: Read, results: &'a Results) -> Option<Self> {
        match read {
            Read::Argmax { first, count } => {
                Some(Self::Argmax(&results.heads[first..first + count]))
            }
            Read::Sample { first, count } => {
                Some(Self::Sampled(&results.samples[first..first + count]))
            }
            Read::Nothing | Read::Labels { .. } | Read::Constrained(_) => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Argmax(heads) => heads.len(),
            Self::Sampled(samples) => samples.len(),
        }
    }

    pub(super) fn get(&self, i: usize) -> (TokenId, Option<&'a Sampled>) {
        match self {
            Self::Argmax(heads) => match &heads[i] {
                HeadResult::Argmax { id, .. } => (*id, None),
                other => unreachable!("an argmax head returned {other:?}"),
            },
            Self::Sampled(samples) => (samples[i].id, Some(&samples[i])),
        }
    }
}

impl Live {
    /// The decode of the base in flight on a branch.
    pub(super) fn base_decode(&self, branch: BranchId) -> Option<&Decode> {
        match self.branches.get(&branch)?.tasks[Role::Base.index()].as_ref()? {
            Task::Decode(task) => Some(&task.decode),
            _ => None,
        }
    }

    /// Decides the next window of a branch whose base is about to draw.
    pub(super) fn open_window(&mut self, branch: BranchId, costs: &Costs, v: &Vocabulary) {
        let Some(tail) = self.branches.get_mut(&branch) else { return };
        let [draft, base] = &mut tail.tasks;
        let Some(Task::Decode(task)) = base else { return };
        if task.window != WindowState::Open {
            return;
        }
        task.window = WindowState::Ready;
        let len = tail.ids.len();
        let written = len - task.start as usize;
        // One token is drawn beyond the window. A caller who looks at logits gets them one by one,
        // and so does one whose tokens the host draws.
        let room = (task.decode.until.limit as usize)
            .saturating_sub(written)
            .min(self.tail_max - len)
            .saturating_sub(1);
        let one_by_one = tail.guard.is_some() || task.decode.want.alternatives > 0;
        if room == 0 || one_by_one {
            return;
        }
        let first = std::mem::take(&mut task.decode.first_window);
        if !first.is_empty() {
            tail.window = Window::chain(first);
            tail.window.truncate(room.min(FIRST_WINDOW_MAX));
            self.report.salvaging = true;
            return;
        }
        let Some(speculation) = task.decode.speculation else { return };
        let by = speculation.by;
        let draft_room = self.draft_tail_max.saturating_sub(len);
        let most = match by {
            Proposer::Draft if draft.is_some() => 0,
            Proposer::Draft => room.min(draft_room),
            Proposer::Ngram => room,
        };
        let most = most.min(WINDOW_MAX as usize) as u32;
        let k = match speculation.window {
            WindowSize::Fixed(k) => k.min(most),
            WindowSize::Auto => costs.best_window(by, &self.report.agreement, most),
        };
        let (tokens, branches) = (k as usize, speculation.branches as usize);
        match by {
            _ if k == 0 => self.report.agreement.count(0, 0),
            Proposer::Ngram => self.look_up(branch, tokens, branches),
            Proposer::Draft => {
                task.window = WindowState::Writing;
                let text = [&self.prompts[Role::Base.index()][..], &tail.ids];
                let first_ids = speculation.vocab.first_ids(&text, v.draft_ids);
                let task = ProposeTask { tokens, branches, first_ids, siblings: vec![] };
                self.start(branch, Role::Draft, Task::Propose(task));
            }
        }
    }

    /// The first ids that rows of logits of the task in flight hold; `None`: all of them.
    pub(super) fn first_ids(&self, (role, branch): (Role, BranchId)) -> Option<usize> {
        match self.branches.get(&branch)?.tasks[role.index()].as_ref()? {
            Task::Propose(task) => task.first_ids,
            _ => None,
        }
    }

    /// Proposes what followed the newest tokens before, in this branch or one of its siblings.
    fn look_up(&mut self, branch: BranchId, k: usize, branches: usize) {
        let prompt = &self.prompts[Role::Base.index()];
        let text = |b: BranchId| [prompt.as_slice(), &self.branches[&b].ids].concat();
        let siblings = self.branches.keys().copied().filter(|b| *b != branch);
        let texts: Vec<_> = std::iter::once(branch).chain(siblings).map(text).collect();
        let texts: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
        let window = lookup(&texts, k, branches);
        self.branches.get_mut(&branch).expect("live branch").window = window;
    }

    /// The decode in flight of either model.
    pub(super) fn decode_task(&self, (role, branch): (Role, BranchId)) -> &DecodeTask {
        match self.branches[&branch].tasks[role.index()].as_ref() {
            Some(Task::Decode(task)) => task,
            _ => unreachable!("a decode is in flight"),
        }
    }

    /// Remembers the pages of a window that is a tree.
    pub(super) fn keep_tree(&mut self, branch: BranchId, tree: SeqId) {
        let tail = self.branches.get_mut(&branch).expect("live branch");
        match tail.tasks[Role::Base.index()].as_mut() {
            Some(Task::Decode(task)) => task.tree = Some(tree),
            _ => unreachable!("a decode verifies the tree"),
        }
    }

    /// Cuts the window of a branch: only so many tokens go into a pass.
    pub(super) fn propose_only(&mut self, branch: BranchId, tokens: usize) {
        self.report.salvaging &= tokens > 0;
        self.branches.get_mut(&branch).expect("live branch").window.truncate(tokens);
    }

    /// Gives a command of the policy's own its place: the draft stops proposing.
    pub(super) fn abandon_proposal(&mut self, pool: &mut Pool, branch: BranchId, role: Role) {
        let task = self.branches.get(&branch).and_then(|b| b.tasks[role.index()].as_ref());
        if let Some(Task::Propose(_)) = task {
            self.close_window(pool, branch, self.branches[&branch].ids.len());
        }
    }

    /// Lets a decode go on without the window there are no pages for. False if it has none.
    pub(super) fn drop_window(&mut self, pool: &mut Pool, branch: BranchId) -> bool {
        if self.branches[&branch].window.is_empty() {
            return false;
        }
        self.report.salvaging = false;
        self.close_window(pool, branch, self.branches[&branch].ids.len());
        let tail = self.branches.get_mut(&branch).expect("live branch");
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.window = WindowState::Ready;
        }
        true
    }

    /// Gives back the pages of a window that is a tree.
    pub(super) fn drop_tree(&mut self, pool: &mut Pool, branch: BranchId) {
        let tail = self.branches.get_mut(&branch).expect("live branch");
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.tree.take().into_iter().for_each(|tree| pool.release(tree));
        }
    }

    /// Forgets the window of a branch and what either model saw of it: of the tail both may know
    /// the first `known` tokens.
    pub(super) fn close_window(&mut self, pool: &mut Pool, branch: BranchId, known: usize) {
        let tail = self.branches.get_mut(&branch).expect("live branch");
        tail.window.truncate(0);
        if let Some(Task::Propose(_)) = tail.tasks[Role::Draft.index()] {
            tail.tasks[Role::Draft.index()] = None;
        }
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.window = WindowState::Open;
        }
        self.drop_tree(pool, branch);
        let tail = &self.branches[&branch];
        let less = tail.ids.len() - known;
        let draft_is_free = tail.tasks[Role::Draft.index()].is_none();
        for role in Role::ALL {
            if role == Role::Base || draft_is_free && !self.prompts[role.index()].is_empty() {
                self.forget_ahead(pool, (role, branch), less);
            }
        }
    }
}

/// Adds a token the draft drew to the window it writes; `likeliest` are others of its place.
pub(super) fn proposed(
    live: &mut Live,
    branch: BranchId,
    own_id: TokenId,
    likeliest: &[(TokenId, f32)],
    v: &Vocabulary,
) {
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let Some(Task::Propose(task)) = &mut tail.tasks[Role::Draft.index()] else {
        unreachable!("only a proposal is told of its draws")
    };
    let place = tail.window.len();
    let others = likeliest.iter().map(|(id, _)| *id).filter(|id| *id != own_id);
    let others = others.take(task.branches - 1).filter_map(|id| v.read_from(Role::Draft, id).ok());
    task.siblings.extend(others.map(|id| (place, id)));
    // What the base has no word for, or another one that the draft would read back, ends it.
    let id = v.read_from(Role::Draft, own_id).ok();
    let id = id.filter(|id| v.to_model(Role::Draft, *id).is_ok_and(|own| own == own_id));
    if let Some(id) = id {
        tail.window.add(place.checked_sub(1), id);
    }
    if id.is_none() || tail.window.len() >= task.tokens {
        for (place, id) in std::mem::take(&mut task.siblings) {
            tail.window.add(place.checked_sub(1), id);
        }
        tail.tasks[Role::Draft.index()] = None;
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.window = WindowState::Ready;
        }
    }
}

/// Appends what the base drew along a window, up to and including the first token that is not the
/// proposed one, and says whether the decode ends within it.
pub(super) fn verified(
    live: &mut Live,
    pool: &mut Pool,
    branch: BranchId,
    draws: &Draws<'_>,
    vocabulary: &Vocabulary,
) -> Result<Option<Outcome>, RequestError> {
    live.drop_tree(pool, branch);
    let tail = &live.branches[&branch];
    let (window, len) = (tail.window.clone(), tail.ids.len());
    let ids: Vec<TokenId> = (0..draws.len()).map(|i| draws.get(i).0).collect();
    let path = window.accept(&ids);
    // The draft fed the chain its own draws made: the first nodes, in order.
    let along = path.iter().enumerate().take_while(|(i, node)| i == *node).count();
    let mut matched = path.len();
    let mut outcome = None;
    let rows = std::iter::once(0).chain(path.iter().map(|node| node + 1));
    for (i, row) in rows.enumerate() {
        let (id, sampled) = draws.get(row);
        let told = sampled.map(|sampled| (sampled, vec![]));
        outcome = drawn(live, pool, (Role::Base, branch), id, told, vocabulary)?;
        if outcome.is_some() {
            matched = matched.min(i + 1);
            break;
        }
    }
    live.report.count_window(window.len() as u32, matched as u32);
    let known = (len + along).min(live.branches[&branch].ids.len());
    live.close_window(pool, branch, known);
    Ok(outcome)
}

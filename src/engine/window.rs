//! Windows: tokens proposed to a decode, which its model verifies several at a time.
//!
//! Before a pass that would draw one token, [`Live::open_window`] decides how many are proposed and
//! by whom. Looked-up tokens are there at once; the draft model writes them as a task of its own
//! ([`ProposeTask`]), while the base feeds what it has not seen. The base then feeds the window and
//! draws at every place of it, and [`verified`] keeps what agrees. Whatever was fed beyond the
//! first difference is forgotten by both models, so afterwards neither KV differs from one that
//! never saw a proposed token. Read next: [`crate::policy::speculation`], the rules.

use super::assemble::Read;
use super::live::{Live, Task, Vocabulary};
use super::results::drawn;
use crate::config::WINDOW_MAX;
use crate::device::{HeadResult, Results};
use crate::error::RequestError;
use crate::ids::{BranchId, Role, TokenId};
use crate::kv::Pool;
use crate::policy::speculation::{Costs, lookup};
use crate::policy::{Decode, Outcome, Proposer, WindowSize};
use crate::sample::Sampled;

/// Tokens of a first window, which somebody else wrote, at most: those that fit one tile of rows.
const FIRST_WINDOW_MAX: usize = 63;

/// How far the window of a decode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// To be decided before the next pass that draws.
    Open,
    /// The draft writes it.
    Writing,
    /// In the branch, to be verified; it may be empty.
    Ready,
}

/// The draft writing a window.
pub(super) struct ProposeTask {
    /// Tokens the window is to have.
    pub(super) tokens: usize,
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
            Read::Nothing | Read::Labels(_) => None,
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
    pub(super) fn open_window(&mut self, branch: BranchId, costs: &Costs) {
        let Some(tail) = self.branches.get_mut(&branch) else { return };
        let [draft, base] = &mut tail.tasks;
        let Some(Task::Decode(task)) = base else { return };
        if task.window != Window::Open {
            return;
        }
        task.window = Window::Ready;
        let len = tail.ids.len();
        let written = len - task.start as usize;
        // One token is drawn beyond the window. A caller who looks at logits gets them one by one.
        let room = (task.decode.until.limit as usize)
            .saturating_sub(written)
            .min(self.tail_max - len)
            .saturating_sub(1);
        if room == 0 || task.decode.want.alternatives > 0 {
            return;
        }
        let first = std::mem::take(&mut task.decode.first_window);
        if !first.is_empty() {
            tail.window = first;
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
        match by {
            _ if k == 0 => {}
            Proposer::Ngram => self.look_up(branch, k as usize),
            Proposer::Draft => {
                task.window = Window::Writing;
                let task = Task::Propose(ProposeTask { tokens: k as usize });
                self.start(branch, Role::Draft, task);
            }
        }
    }

    /// Proposes what followed the newest tokens before, in this branch or one of its siblings.
    fn look_up(&mut self, branch: BranchId, k: usize) {
        let prompt = &self.prompts[Role::Base.index()];
        let text = |b: BranchId| [prompt.as_slice(), &self.branches[&b].ids].concat();
        let siblings = self.branches.keys().copied().filter(|b| *b != branch);
        let texts: Vec<_> = std::iter::once(branch).chain(siblings).map(text).collect();
        let texts: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
        let window = lookup(&texts, k);
        self.branches.get_mut(&branch).expect("live branch").window = window;
    }

    /// Cuts the window of a branch: only so many tokens go into a pass.
    pub(super) fn propose_only(&mut self, branch: BranchId, tokens: usize) {
        self.branches.get_mut(&branch).expect("live branch").window.truncate(tokens);
    }

    /// Gives a command of the policy's own its place: the draft stops proposing.
    pub(super) fn abandon_proposal(&mut self, pool: &mut Pool, branch: BranchId, role: Role) {
        let task = self.branches.get(&branch).and_then(|b| b.tasks[role.index()].as_ref());
        if let Some(Task::Propose(_)) = task {
            self.close_window(pool, branch);
        }
    }

    /// Forgets the window of a branch and what either model saw of it. Everything but the last
    /// token of the tail may have been fed.
    pub(super) fn close_window(&mut self, pool: &mut Pool, branch: BranchId) {
        let tail = self.branches.get_mut(&branch).expect("live branch");
        tail.window.clear();
        if let Some(Task::Propose(_)) = tail.tasks[Role::Draft.index()] {
            tail.tasks[Role::Draft.index()] = None;
        }
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.window = Window::Open;
        }
        let less = usize::from(!tail.ids.is_empty());
        for role in Role::ALL {
            if !self.prompts[role.index()].is_empty() {
                self.forget_ahead(pool, (role, branch), less);
            }
        }
    }
}

/// Adds a token the draft drew to the window it writes.
pub(super) fn proposed(live: &mut Live, branch: BranchId, own_id: TokenId, v: &Vocabulary) {
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let Some(Task::Propose(task)) = &tail.tasks[Role::Draft.index()] else {
        unreachable!("only a proposal is told of its draws")
    };
    let wanted = task.tokens;
    // What the base has no word for, or another one that the draft would read back, ends it.
    let id = v.read_from(Role::Draft, own_id).ok();
    let id = id.filter(|id| v.to_model(Role::Draft, *id).is_ok_and(|own| own == own_id));
    tail.window.extend(id);
    if id.is_none() || tail.window.len() >= wanted {
        tail.tasks[Role::Draft.index()] = None;
        if let Some(Task::Decode(task)) = tail.tasks[Role::Base.index()].as_mut() {
            task.window = Window::Ready;
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
    let window = live.branches[&branch].window.clone();
    let mut matched = 0;
    let mut outcome = None;
    for i in 0..draws.len() {
        let (id, sampled) = draws.get(i);
        let told = sampled.map(|sampled| (sampled, vec![]));
        outcome = drawn(live, pool, (Role::Base, branch), id, told, vocabulary)?;
        let agrees = window.get(i) == Some(&id);
        matched += u32::from(agrees);
        if outcome.is_some() || !agrees {
            break;
        }
    }
    live.report.count_window(window.len() as u32, matched);
    live.close_window(pool, branch);
    Ok(outcome)
}

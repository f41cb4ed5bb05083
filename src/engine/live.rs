//! A request in progress: its branches, what is in flight on each, and what each model has seen.
//!
//! A branch is one tail of generated ids in the base's numbering. For each model it holds a KV
//! sequence whose length is the watermark: how much of `prompt + tail` that model has seen. The
//! invariant is `watermark <= prompt + tail`, and nothing below the watermark ever changes. All of
//! this is host state; passes are assembled in [`super::assemble`].

use super::guard::Guard;
use super::listener::Listener;
use super::progress::Progress;
use super::request::{Event, Settings, TokenLogprob, Urgency};
use super::score::ScoreTask;
use super::window::{ProposeTask, WindowState};
use crate::error::RequestError;
use crate::ids::{BranchId, RequestId, Role, TokenId};
use crate::kv::{Pool, SeqId};
use crate::policy::command::TokenStats;
use crate::policy::{Command, Decode, FinishWhy, Origin, Outcome, Policy, Tails};
use crate::sample::Window;
use crate::schedule::Rank;
use crate::telemetry::Trace;
use crate::text::{IdMap, SentenceEnd, StopMatcher, StopStrings, Tokenizer};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

/// A command in flight on one branch and model.
pub(super) enum Task {
    /// Writing tokens.
    Decode(DecodeTask),
    /// Reading labels after a suffix.
    Score(ScoreTask),
    /// Writing a window for the base's decode; only the draft does.
    Propose(ProposeTask),
    /// Reading log-probabilities.
    Span {
        /// Tail indices.
        range: Range<u32>,
        /// Those read so far.
        logprobs: Vec<f32>,
    },
}

/// A decode in progress.
pub(super) struct DecodeTask {
    pub(super) decode: Decode,
    /// Tail index of its first token.
    pub(super) start: u32,
    pub(super) matcher: StopMatcher,
    pub(super) sentence: SentenceEnd,
    pub(super) stats: Vec<TokenStats>,
    pub(super) window: WindowState,
    /// The pages of a window that is a tree, while it is verified.
    pub(super) tree: Option<SeqId>,
}

/// One branch of a request.
#[derive(Default)]
pub(super) struct Branch {
    pub(super) ids: Vec<TokenId>,
    pub(super) origins: Vec<Origin>,
    /// Tokens proposed beyond the tail.
    pub(super) window: Window,
    pub(super) kv: [Option<SeqId>; 2],
    pub(super) tasks: [Option<Task>; 2],
    /// What its tokens have to follow.
    pub(super) guard: Option<Guard>,
    /// Counts the tasks started, so that a result never reaches a task that came after its own.
    pub(super) serials: [u64; 2],
}

/// What both models' texts have in common, for every request of the engine.
pub(super) struct Vocabulary {
    /// The base's tokenizer: the numbering of every tail.
    pub(super) tokenizer: Tokenizer,
    /// Translates for the draft.
    pub(super) map: IdMap,
    /// Ids of the draft, 0 without one.
    pub(super) draft_ids: usize,
}

impl Vocabulary {
    /// `id` in the numbering of `role`.
    pub(super) fn to_model(&self, role: Role, id: TokenId) -> Result<TokenId, RequestError> {
        let own = if role == Role::Base { Some(id) } else { self.map.to_draft(id) };
        own.ok_or_else(|| self.unmapped(Role::Base, id, &self.tokenizer))
    }

    /// An id the model `role` emitted, in the base's numbering.
    pub(super) fn read_from(&self, role: Role, id: TokenId) -> Result<TokenId, RequestError> {
        let base = if role == Role::Base { Some(id) } else { self.map.to_base(id) };
        base.ok_or_else(|| self.unmapped(role, id, &self.tokenizer))
    }

    fn unmapped(&self, role: Role, id: TokenId, tokenizer: &Tokenizer) -> RequestError {
        let text = String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        RequestError::UnmappedToken { role, id: id.0, text }
    }
}

/// A request in progress.
pub(super) struct Live {
    pub(super) id: RequestId,
    /// Each model's own rendered prompt, in its own numbering.
    pub(super) prompts: [Vec<TokenId>; 2],
    pub(super) policy: Option<Box<dyn Policy>>,
    pub(super) branches: BTreeMap<BranchId, Branch>,
    next_branch: u32,
    /// Tail tokens the contexts of both models have room for.
    pub(super) tail_max: usize,
    /// Tail tokens up to which the draft may propose.
    pub(super) draft_tail_max: usize,
    pub(super) rank: Rank,
    pub(super) deadline: Option<Instant>,
    /// It gave its place and its pages back and waits for them; see [`Live::park`].
    pub(super) parked: bool,
    /// Asks for what the base makes of every token, and for this many of the likeliest beside it.
    pub(super) logprobs: Option<u32>,
    /// Tail tokens of the root whose log-probabilities the listener has.
    pub(super) told: u32,
    pub(super) settings: Settings,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) submitted: Instant,
    listener: Listener,
    /// The root's first token that the listener does not hear of yet, as the policy says.
    undecided_from: u32,
    pub(super) report: Progress,
    pub(super) finished: Option<Result<FinishWhy, RequestError>>,
}

impl Tails for Live {
    fn ids(&self, branch: BranchId) -> &[TokenId] {
        &self.branches[&branch].ids
    }
}

/// Everything [`super::Engine::submit`] prepared for a request.
pub(super) struct Submission {
    pub(super) id: RequestId,
    pub(super) prompts: [Vec<TokenId>; 2],
    pub(super) policy: Box<dyn Policy>,
    pub(super) tail_max: usize,
    /// Tail tokens up to which the draft may propose.
    pub(super) draft_tail_max: usize,
    pub(super) urgency: Urgency,
    /// See [`Live::logprobs`].
    pub(super) logprobs: Option<u32>,
    pub(super) guard: Option<Guard>,
    pub(super) settings: Settings,
    pub(super) events: Sender<Event>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) submitted: Instant,
}

impl Submission {
    pub(super) fn rank(&self) -> Rank {
        Rank { priority: self.urgency.priority, arrival: self.id.0 }
    }

    /// Whether it ends before it begins: cancelled, or too late.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.cancelled.load(Ordering::Relaxed)
            || self.urgency.timeout.is_some_and(|timeout| self.submitted + timeout <= now)
    }
}

impl Live {
    pub(super) fn new(s: Submission, trace: Option<&Arc<Trace>>) -> Self {
        let rank = s.rank();
        let root = Branch { guard: s.guard, ..Branch::default() };
        Self {
            id: s.id,
            prompts: s.prompts,
            policy: Some(s.policy),
            branches: BTreeMap::from([(BranchId::ROOT, root)]),
            next_branch: 1,
            tail_max: s.tail_max,
            draft_tail_max: s.draft_tail_max,
            rank,
            deadline: s.urgency.timeout.map(|timeout| s.submitted + timeout),
            parked: false,
            logprobs: s.logprobs,
            told: 0,
            settings: s.settings,
            cancelled: s.cancelled,
            submitted: s.submitted,
            listener: Listener::new(s.events, trace.map(|trace| (trace.clone(), s.id))),
            undecided_from: u32::MAX,
            report: Progress::default(),
            finished: None,
        }
    }

    pub(super) fn emit(&self, event: Event) {
        self.listener.tell(event);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Length of `prompt + tail` for `role`.
    pub(super) fn total(&self, role: Role, branch: BranchId) -> usize {
        self.prompts[role.index()].len() + self.branches[&branch].ids.len()
    }

    /// Token `index` of `prompt + tail + window`, in the numbering of `role`.
    pub(super) fn token(
        &self,
        vocabulary: &Vocabulary,
        role: Role,
        branch: BranchId,
        index: usize,
    ) -> Result<TokenId, RequestError> {
        let prompt = &self.prompts[role.index()];
        match prompt.get(index) {
            Some(id) => Ok(*id),
            None => {
                let (branch, index) = (&self.branches[&branch], index - prompt.len());
                let proposed = || branch.window.ids()[index - branch.ids.len()];
                let id = branch.ids.get(index).copied().unwrap_or_else(proposed);
                vocabulary.to_model(role, id)
            }
        }
    }

    /// Whether the next token of a branch has to follow a grammar.
    pub(super) fn is_bound(&mut self, branch: BranchId, vocabulary: &Vocabulary) -> bool {
        let tail = self.branch(branch);
        tail.guard.as_mut().is_some_and(|guard| guard.binds(&tail.ids, &vocabulary.tokenizer))
    }

    /// Hands an outcome to the policy and executes what it answers.
    pub(super) fn advance(&mut self, pool: &mut Pool, vocabulary: &Vocabulary, outcome: Outcome) {
        let mut policy = self.policy.take().expect("a policy is put back after every turn");
        let mut outcomes = std::collections::VecDeque::from([outcome]);
        while let Some(outcome) = outcomes.pop_front() {
            if self.finished.is_some() {
                break;
            }
            let turn = policy.next(self, outcome);
            self.undecided_from = policy.undecided_from();
            for command in turn.commands {
                if let Err(error) = self.execute(pool, vocabulary, command, &mut outcomes) {
                    self.finished = Some(Err(error));
                }
            }
            for note in turn.notes {
                self.note(note, vocabulary);
            }
        }
        self.policy = Some(policy);
        self.listener.tell_until(self.undecided_from);
    }

    fn execute(
        &mut self,
        pool: &mut Pool,
        vocabulary: &Vocabulary,
        command: Command,
        outcomes: &mut std::collections::VecDeque<Outcome>,
    ) -> Result<(), RequestError> {
        match command {
            Command::Decode(decode) => {
                let branch = self.branch(decode.branch);
                let start = branch.ids.len() as u32;
                let matcher = StopStrings::new(decode.until.strings.clone()).matcher();
                let sentence = SentenceEnd::new();
                let (at, role) = (decode.branch, decode.role);
                let (stats, window, tree) = (vec![], WindowState::Open, None);
                let task = DecodeTask { decode, start, matcher, sentence, stats, window, tree };
                self.abandon_proposal(pool, at, role);
                self.start(at, role, Task::Decode(task));
            }
            Command::Score(score) => {
                let (at, role) = (score.branch, score.role);
                self.abandon_proposal(pool, at, role);
                self.start(at, role, Task::Score(ScoreTask::new(score, pool)));
            }
            Command::Span { branch, role, range } => {
                self.abandon_proposal(pool, branch, role);
                self.start(branch, role, Task::Span { range, logprobs: vec![] });
            }
            Command::Inject { branch, ids } => {
                self.cancel_tasks(pool, branch, outcomes);
                self.append(branch, &ids, Origin::Injected, vec![], vocabulary);
                outcomes.push_back(Outcome::Done { branch });
            }
            Command::Rollback { branch, len } => {
                self.cancel_tasks(pool, branch, outcomes);
                self.rollback(pool, branch, len);
                outcomes.push_back(Outcome::Done { branch });
            }
            Command::Fork { branch, n } => {
                let branches = (0..n).map(|_| self.fork(branch)).collect();
                outcomes.push_back(Outcome::Forked { branches });
            }
            Command::Keep { branch } => {
                self.keep(pool, vocabulary, branch);
                outcomes.push_back(Outcome::Done { branch });
            }
            Command::Drop { branch } => {
                self.drop_branch(pool, branch);
                outcomes.push_back(Outcome::Done { branch });
            }
            Command::Tool { .. } => {
                let reason = "this engine has no sandbox".into();
                return Err(RequestError::Invalid { field: "tool", reason });
            }
            Command::Finish { why } => self.finished = Some(Ok(why)),
        }
        Ok(())
    }

    pub(super) fn branch(&mut self, branch: BranchId) -> &mut Branch {
        self.branches.get_mut(&branch).expect("a policy names only branches it was given")
    }

    pub(super) fn start(&mut self, branch: BranchId, role: Role, task: Task) {
        let slot = &mut self.branch(branch).tasks[role.index()];
        assert!(slot.is_none(), "a second command in flight on one branch and model");
        *slot = Some(task);
        self.branch(branch).serials[role.index()] += 1;
    }

    /// Identifies the task in flight on a branch and model.
    pub(super) fn serial(&self, role: Role, branch: BranchId) -> Option<u64> {
        let branch = self.branches.get(&branch)?;
        branch.tasks[role.index()].as_ref().map(|_| branch.serials[role.index()])
    }

    /// Forgets what passes beyond the tail fed, and but for `less` tokens of the tail all it knows
    /// of it; results still to come of these passes reach nobody.
    pub(super) fn forget_ahead(&mut self, pool: &mut Pool, at: (Role, BranchId), less: usize) {
        let (role, branch) = at;
        let known = self.total(role, branch) - less;
        let branch = self.branch(branch);
        branch.serials[role.index()] += 1;
        if let Some(seq) = branch.kv[role.index()] {
            pool.truncate(seq, pool.len(seq).min(known));
        }
    }

    /// Ends what is in flight on a branch whose tail is about to change under it.
    fn cancel_tasks(
        &mut self,
        pool: &mut Pool,
        branch: BranchId,
        outcomes: &mut std::collections::VecDeque<Outcome>,
    ) {
        if self.base_decode(branch).is_some() {
            self.close_window(pool, branch, self.branches[&branch].ids.len());
        }
        for role in Role::ALL {
            if let Some(task) = self.branch(branch).tasks[role.index()].take() {
                release_task(pool, &task);
                self.forget_ahead(pool, (role, branch), 0);
                outcomes.push_back(Outcome::Cancelled { branch, role });
            }
        }
    }

    /// Appends ids to a tail and tells the listener.
    pub(super) fn append(
        &mut self,
        branch: BranchId,
        ids: &[TokenId],
        origin: Origin,
        logprobs: Vec<TokenLogprob>,
        vocabulary: &Vocabulary,
    ) {
        let tail = self.branch(branch);
        let at = tail.ids.len() as u32;
        tail.ids.extend_from_slice(ids);
        tail.origins.extend(ids.iter().map(|_| origin));
        if branch == BranchId::ROOT {
            self.told += logprobs.len() as u32;
            let at = (at, self.undecided_from);
            self.listener.appended(at, ids, origin, logprobs, &vocabulary.tokenizer);
        }
    }

    /// Forgets the tokens nobody has heard of.
    pub(super) fn forget_undecided(&mut self) {
        let from = self.undecided_from as usize;
        let root = self.branch(BranchId::ROOT);
        root.ids.truncate(from);
        root.origins.truncate(from);
    }

    fn rollback(&mut self, pool: &mut Pool, branch: BranchId, len: u32) {
        let prompts = [self.prompts[0].len(), self.prompts[1].len()];
        let tail = self.branch(branch);
        tail.ids.truncate(len as usize);
        tail.origins.truncate(len as usize);
        let cut = tail.guard.as_mut().map_or(Ok(()), |guard| guard.cut(len as usize));
        if let Err(error) = cut {
            self.finished = Some(Err(error));
        }
        for role in Role::ALL {
            if let Some(seq) = self.branches[&branch].kv[role.index()] {
                let seen = pool.len(seq).min(prompts[role.index()] + len as usize);
                pool.truncate(seq, seen);
            }
        }
        if branch == BranchId::ROOT {
            self.tell_rolled_back(len);
        }
    }

    /// Tells the listener that of the root's tail `len` tokens are left.
    pub(super) fn tell_rolled_back(&mut self, len: u32) {
        self.told = self.told.min(len);
        self.listener.rolled_back(len);
    }

    /// A branch that does not exist yet.
    pub(super) fn new_branch(&mut self) -> BranchId {
        let id = BranchId(self.next_branch);
        self.next_branch += 1;
        id
    }

    /// Gives every page back. What the owner of a KV accepted enters the prefix cache first.
    pub(super) fn release(&mut self, pool: &mut Pool, vocabulary: &Vocabulary) {
        let accepted = matches!(self.finished, Some(Ok(_)));
        for role in Role::ALL {
            self.publish(pool, vocabulary, role, if accepted { usize::MAX } else { 0 });
        }
        let branches: Vec<_> = self.branches.keys().copied().collect();
        let root = self
            .branches
            .get_mut(&BranchId::ROOT)
            .map(|b| (std::mem::take(&mut b.ids), std::mem::take(&mut b.origins)));
        branches.into_iter().for_each(|b| self.drop_branch(pool, b));
        // The reply is still to be written from the root's tail.
        let (ids, origins) = root.unwrap_or_default();
        self.branches.insert(BranchId::ROOT, Branch { ids, origins, ..Branch::default() });
    }
}

/// Gives back the pages only a task holds.
pub(super) fn release_task(pool: &mut Pool, task: &Task) {
    match task {
        Task::Score(score) => score.scratches().for_each(|(scratch, _)| pool.release(scratch)),
        Task::Decode(decode) => decode.tree.into_iter().for_each(|tree| pool.release(tree)),
        Task::Span { .. } | Task::Propose(_) => {}
    }
}

//! Who has a place in the engine, and what happens when pages run out.
//!
//! A request is admitted when the pages it needs now are there. When one cannot go on for want of
//! pages, cached prefixes have gone already (the pool evicts them by itself); then drafts' KV goes
//! that nobody works with, then the request last in rank is *parked*: it keeps its tail, its policy
//! and the commands in flight, and gives all its KV back. Once there is room again the watermarks
//! say that nothing was seen, so everything is fed again. Invariant: by row invariance a parked
//! request says what it would have said. Read next: [`crate::schedule::seats`], which decides.

use super::live::{Live, Submission, Task, Vocabulary};
use super::request::Event;
use super::runner::Runner;
use crate::device::Device;
use crate::error::RequestError;
use crate::ids::{BranchId, Role};
use crate::kv::{Pool, PoolLayout};
use crate::policy::Outcome;
use crate::schedule::{self, Admission, Claim};
use std::sync::PoisonError;

/// What an engine is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Engine steps since the start.
    pub steps: u64,
    /// Requests worked on.
    pub running: usize,
    /// Requests that wait for a place, those that had to give theirs back among them.
    pub waiting: usize,
    /// How often a request had to give its place back.
    pub preemptions: u64,
    /// Pages of the shared pool.
    pub pages: usize,
    /// Of these, pages nobody holds.
    pub free_pages: usize,
    /// Pages that hold only cached prefixes: free as soon as somebody needs them.
    pub evictable_pages: usize,
    /// Pages by whose KV they hold, cached ones included, by [`Role::index`].
    pub used_pages: [usize; 2],
}

impl Load {
    /// Of an engine that has not begun.
    pub(super) fn of(layout: &PoolLayout) -> Self {
        Self { pages: layout.pages(), free_pages: layout.pages(), ..Self::default() }
    }
}

/// The first in rank of those who wait.
enum First {
    /// By index among those who never ran.
    New(usize),
    /// By index among those who did.
    Parked(usize),
}

impl<D: Device> Runner<D> {
    /// Gives places to those who wait, in order of rank, while there are any.
    pub(super) fn admit(&mut self) {
        while self.lost.is_none() {
            let Some((first, claim)) = self.first_waiting() else { return };
            let seated: Vec<usize> = self.seated().collect();
            let claims: Vec<Claim> = seated.iter().map(|i| self.claim(&self.live[*i])).collect();
            let available = self.pool.available_pages();
            match schedule::admit(&claim, &claims, self.sequences_max, available) {
                Admission::Wait => return,
                Admission::Preempt(last) => {
                    self.park(seated[last]);
                    self.collect_given_up();
                }
                Admission::Admit => self.seat(first),
            }
        }
    }

    fn seat(&mut self, first: First) {
        match first {
            First::Parked(index) => self.live[index].parked = false,
            First::New(index) => {
                let submission = self.waiting.remove(index).expect("just found");
                let mut live = Live::new(submission, self.trace.as_ref());
                live.emit(Event::Started(live.settings.clone()));
                live.advance(&mut self.pool, &self.vocabulary, Outcome::Started);
                self.live.push(live);
            }
        }
    }

    /// Those who have a place.
    fn seated(&self) -> impl Iterator<Item = usize> {
        let seated = self.live.iter().enumerate();
        seated.filter(|(_, live)| !live.parked && live.finished.is_none()).map(|(index, _)| index)
    }

    fn first_waiting(&self) -> Option<(First, Claim)> {
        let new = self.waiting.iter().enumerate();
        let new = new.map(|(i, s)| (First::New(i), self.claim_of_new(s)));
        let parked = self.live.iter().enumerate();
        let parked = parked.filter(|(_, live)| live.parked && live.finished.is_none());
        let parked = parked.map(|(i, live)| (First::Parked(i), self.claim(live)));
        new.chain(parked).min_by_key(|(_, claim)| claim.rank)
    }

    fn claim_of_new(&self, submission: &Submission) -> Claim {
        let layout = self.pool.layout();
        let pages = Role::ALL.map(|r| layout.pages_for(r, submission.prompts[r.index()].len()));
        Claim { rank: submission.rank(), held_pages: 0, needed_pages: pages.iter().sum() }
    }

    fn claim(&self, live: &Live) -> Claim {
        let (mut held_pages, mut needed_pages) = (0, 0);
        for role in Role::ALL {
            let mut at_work = vec![];
            for (id, branch) in &live.branches {
                if let Some(Task::Score(task)) = &branch.tasks[role.index()] {
                    for (scratch, suffix) in task.scratches() {
                        held_pages += self.pool.pages_of(scratch);
                        needed_pages += self.pool.layout().pages_for(role, suffix);
                    }
                }
                let seq = branch.kv[role.index()];
                held_pages += seq.map_or(0, |seq| self.pool.pages_of(seq));
                if seq.is_some() || branch.tasks[role.index()].is_some() {
                    at_work.push(*id);
                }
            }
            // What its branches have in common they share.
            let shared = live.shared(role, &at_work);
            let layout = self.pool.layout();
            needed_pages += layout.pages_for(role, shared);
            let own = at_work.iter().map(|id| live.total(role, *id) - shared).filter(|n| *n > 0);
            needed_pages += own.map(|own| layout.pages_for(role, own) + 1).sum::<usize>();
        }
        Claim { rank: live.rank, held_pages, needed_pages }
    }

    fn park(&mut self, index: usize) {
        self.live[index].park(&mut self.pool, &self.vocabulary);
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.preemptions += 1;
    }

    /// Gives back the draft's KV of the last in rank whose draft has nothing to do. False if there
    /// is none.
    pub(super) fn release_a_draft(&mut self) -> bool {
        let idle = |live: &&mut Live| {
            live.finished.is_none()
                && live.branches.values().any(|b| {
                    b.kv[Role::Draft.index()].is_some() && b.tasks[Role::Draft.index()].is_none()
                })
        };
        let Some(live) = self.live.iter_mut().filter(idle).max_by_key(|live| live.rank) else {
            return false;
        };
        let branches: Vec<BranchId> = live.branches.keys().copied().collect();
        for branch in branches {
            if live.branches[&branch].tasks[Role::Draft.index()].is_none() {
                live.release_kv(&mut self.pool, &self.vocabulary, (Role::Draft, branch));
            }
        }
        true
    }

    /// Makes room where somebody could not go on.
    pub(super) fn relieve(&mut self) {
        let Some((id, full)) = self.starved.take() else { return };
        let seated: Vec<usize> = self.seated().collect();
        let claims: Vec<Claim> = seated.iter().map(|i| self.claim(&self.live[*i])).collect();
        if let Some(last) = schedule::victim(&claims) {
            return self.park(seated[last]);
        }
        // It has everything there is; what is under way may still give some of it back.
        let waits = self.flights.iter().any(Option::is_some);
        let Some(index) = self.index_of(id) else { return };
        let live = &mut self.live[index];
        if !live.shed(&mut self.pool, &self.vocabulary) && !waits {
            live.finished.get_or_insert(Err(RequestError::Kv(full)));
        }
    }

    pub(super) fn show_load(&self) {
        let running = self.seated().count();
        let parked = self.live.iter().filter(|l| l.parked && l.finished.is_none()).count();
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.steps += 1;
        load.running = running;
        load.waiting = self.waiting.len() + parked;
        load.free_pages = self.pool.free_pages();
        load.evictable_pages = self.pool.evictable_pages();
        load.used_pages = Role::ALL.map(|role| self.pool.pages_in_use(role));
    }
}

impl Live {
    /// Gives every page back and keeps everything else. Results still to come of passes under way
    /// reach nobody.
    fn park(&mut self, pool: &mut Pool, vocabulary: &Vocabulary) {
        self.parked = true;
        let branches: Vec<BranchId> = self.branches.keys().copied().collect();
        for at in branches.into_iter().flat_map(|b| Role::ALL.map(|role| (role, b))) {
            self.give_back(pool, vocabulary, at);
        }
    }

    /// Gives back the KV of the youngest branch, so that those before it go on; else what the base
    /// has seen of a root it does not work on. False if there is neither.
    fn shed(&mut self, pool: &mut Pool, vocabulary: &Vocabulary) -> bool {
        let holds = |id: &BranchId, role: Role| self.branches[id].kv[role.index()].is_some();
        let forks = self.branches.keys().skip(1);
        let youngest = forks.skip(1).rfind(|id| Role::ALL.iter().any(|role| holds(id, *role)));
        let root_is_idle = self.branches.len() > 1
            && self.branches[&BranchId::ROOT].tasks[Role::Base.index()].is_none();
        let given = match youngest {
            Some(id) => Some((Role::ALL.to_vec(), *id)),
            None => (root_is_idle && holds(&BranchId::ROOT, Role::Base))
                .then_some((vec![Role::Base], BranchId::ROOT)),
        };
        let Some((roles, branch)) = given else { return false };
        for role in roles {
            self.give_back(pool, vocabulary, (role, branch));
        }
        true
    }

    /// Gives back the pages of one model on a branch; what is in flight there begins anew.
    fn give_back(&mut self, pool: &mut Pool, vocabulary: &Vocabulary, at: (Role, BranchId)) {
        if self.base_decode(at.1).is_some() {
            self.close_window(pool, at.1, self.branches[&at.1].ids.len());
        }
        self.release_kv(pool, vocabulary, at);
        let branch = self.branches.get_mut(&at.1).expect("a live branch");
        match &mut branch.tasks[at.0.index()] {
            Some(Task::Score(task)) => task.begin_anew(pool),
            Some(Task::Span { logprobs, .. }) => logprobs.clear(),
            Some(Task::Decode(_) | Task::Propose(_)) | None => {}
        }
    }

    /// Gives back the KV of one model; of the root's, what was kept for good enters the prefix
    /// cache.
    fn release_kv(&mut self, pool: &mut Pool, vocabulary: &Vocabulary, at: (Role, BranchId)) {
        let (role, branch) = at;
        self.forget_ahead(pool, at, 0);
        if branch == BranchId::ROOT {
            let kept = self.prompts[role.index()].len() + self.report.kept as usize;
            self.publish(pool, vocabulary, role, kept);
        }
        let kv = &mut self.branches.get_mut(&branch).expect("a live branch").kv[role.index()];
        if let Some(seq) = kv.take() {
            pool.release(seq);
        }
    }

    /// Enters what `role` has seen of the root into the prefix cache, at most `until` tokens.
    pub(super) fn publish(
        &mut self,
        pool: &mut Pool,
        vocabulary: &Vocabulary,
        role: Role,
        until: usize,
    ) {
        let kv = self.branches.get(&BranchId::ROOT).and_then(|root| root.kv[role.index()]);
        let Some(seq) = kv else { return };
        self.forget_ahead(pool, (role, BranchId::ROOT), 0);
        let ids: Result<Vec<_>, _> = (0..pool.len(seq).min(until))
            .map(|i| self.token(vocabulary, role, BranchId::ROOT, i))
            .collect();
        if let Ok(ids) = ids {
            pool.publish(seq, &ids);
        }
    }
}

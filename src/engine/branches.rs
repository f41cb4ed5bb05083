//! Branches of a request: made, chosen, dropped, and what they share.
//!
//! A fork copies ids; KV it gets when a model first works on it, from whichever branch of the
//! request has seen most of its tail, else from the prefix cache. Both share pages copy-on-write,
//! so whatever any branch has read is read once.

use super::guard::Guard;
use super::live::{Branch, Live, Vocabulary, release_task};
use crate::ids::{BranchId, Role, TokenId};
use crate::kv::{Pool, SeqId};

/// How far two tails are the same.
fn common<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Branch {
    /// Takes another branch's place: no result that was meant for either reaches its tasks.
    fn outlive(&mut self, other: &Self) {
        for (own, other) in self.serials.iter_mut().zip(other.serials) {
            *own = 1 + other.max(*own);
        }
    }
}

impl Live {
    /// The KV sequence of a branch, created at first use.
    pub(super) fn sequence(&mut self, pool: &mut Pool, role: Role, branch: BranchId) -> SeqId {
        if let Some(seq) = self.branches[&branch].kv[role.index()] {
            return seq;
        }
        let prompt = &self.prompts[role.index()];
        let seq = match self.most_seen(pool, role, branch) {
            Some((seq, seen)) if seen > pool.matched_tokens(role, prompt) => {
                let fork = pool.fork(seq);
                pool.truncate(fork, seen);
                fork
            }
            _ => {
                let (seq, cached) = pool.create_from_prefix(role, prompt);
                self.report.cached[role.index()].get_or_insert(cached as u32);
                seq
            }
        };
        self.branch(branch).kv[role.index()] = Some(seq);
        seq
    }

    /// Of the other branches' sequences the one that has seen most of a branch, and how many tokens
    /// of `prompt + tail` that is.
    fn most_seen(&self, pool: &Pool, role: Role, branch: BranchId) -> Option<(SeqId, usize)> {
        let (prompt, ids) = (self.prompts[role.index()].len(), &self.branches[&branch].ids);
        let others = self.branches.iter().filter(|(id, _)| **id != branch);
        let seen = others.filter_map(|(_, other)| {
            let seq = other.kv[role.index()]?;
            Some((seq, pool.len(seq).min(prompt + common(&other.ids, ids))))
        });
        seen.max_by_key(|(_, seen)| *seen)
    }

    /// Tokens of `prompt + tail` that some branches have in common; 0 without any.
    pub(super) fn shared(&self, role: Role, branches: &[BranchId]) -> usize {
        let Some((first, others)) = branches.split_first() else { return 0 };
        let ids = &self.branches[first].ids;
        let least = others.iter().map(|other| common(ids, &self.branches[other].ids)).min();
        self.prompts[role.index()].len() + least.unwrap_or(ids.len())
    }

    /// Another branch with the same tail.
    pub(super) fn fork(&mut self, branch: BranchId) -> BranchId {
        let source = &self.branches[&branch];
        let copy = Branch {
            ids: source.ids.clone(),
            origins: source.origins.clone(),
            guard: source.guard.as_ref().map(Guard::fork),
            ..Branch::default()
        };
        let id = self.new_branch();
        self.branches.insert(id, copy);
        id
    }

    /// Makes a branch the reply: it takes the root's place, and every other one is dropped.
    pub(super) fn keep(&mut self, pool: &mut Pool, vocabulary: &Vocabulary, branch: BranchId) {
        if branch != BranchId::ROOT {
            self.succeed(pool, vocabulary, branch);
        }
        let others: Vec<_> = self.branches.keys().copied().collect();
        let others = others.into_iter().filter(|id| *id != BranchId::ROOT);
        others.for_each(|id| self.drop_branch(pool, id));
    }

    fn succeed(&mut self, pool: &mut Pool, vocabulary: &Vocabulary, branch: BranchId) {
        for role in Role::ALL {
            let own = self.branches[&branch].kv[role.index()];
            let best = self.most_seen(pool, role, branch);
            if let Some((seq, seen)) = best.filter(|b| b.1 > own.map_or(0, |own| pool.len(own))) {
                let fork = pool.fork(seq);
                pool.truncate(fork, seen);
                let worse = self.branch(branch).kv[role.index()].replace(fork);
                worse.into_iter().for_each(|seq| pool.release(seq));
            }
        }
        let root = self.branches.remove(&BranchId::ROOT).expect("the root lives on");
        let mut heir = self.branches.remove(&branch).expect("a live branch");
        let tail = |b: &Branch| -> Vec<_> {
            b.ids.iter().copied().zip(b.origins.iter().copied()).collect::<Vec<(TokenId, _)>>()
        };
        let same = common(&tail(&root), &tail(&heir));
        for task in root.tasks.iter().chain(&heir.tasks).flatten() {
            release_task(pool, task);
        }
        heir.tasks = [None, None];
        // Passes under way for either reach nobody.
        heir.outlive(&root);
        root.kv.into_iter().flatten().for_each(|seq| pool.release(seq));
        let (ids, origins) = (heir.ids.split_off(same), heir.origins.split_off(same));
        self.branches.insert(BranchId::ROOT, heir);
        if root.ids.len() > same {
            self.tell_rolled_back(same as u32);
        }
        let mut at = 0;
        for run in origins.chunk_by(|a, b| a == b) {
            let ids = &ids[at..at + run.len()];
            self.append(BranchId::ROOT, ids, run[0], vec![], vocabulary);
            at += run.len();
        }
        for role in Role::ALL {
            self.forget_ahead(pool, (role, BranchId::ROOT), 0);
        }
    }

    pub(super) fn drop_branch(&mut self, pool: &mut Pool, branch: BranchId) {
        if let Some(gone) = self.branches.remove(&branch) {
            gone.tasks.iter().flatten().for_each(|task| release_task(pool, task));
            gone.kv.into_iter().flatten().for_each(|seq| pool.release(seq));
        }
    }
}

//! The pool: pages handed to sequences of either model, shared, copied on write, taken back.
//!
//! A page is free, or belongs to one role and has at least one holder: sequences that name it in
//! their tables, and perhaps the prefix tree. When pages run short the pool evicts cached prefixes
//! by itself; beyond that it answers [`KvError::Full`] and the engine decides what to give up:
//! first a draft's KV, then a whole request ([`Pool::reclaimable`] says what each would bring).
//!
//! The one invariant: nobody writes a page with two holders, see [`Pool::append`].
//! Read next: `tests.rs`, where a naive model says what each operation means.

use super::layout::PoolLayout;
use super::prefix::PrefixIndex;
use super::table::{SeqId, SequenceTable};
pub use crate::device::PageCopy;
use crate::error::KvError;
use crate::ids::{PageId, Role, TokenId};

/// Room for new tokens at the end of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the copy has to be made before the new tokens are written"]
pub struct Append {
    /// The copy to make first, if the last page was partly filled and shared.
    pub copy: Option<PageCopy>,
    /// Where the new tokens start: the length of the sequence before.
    pub start: usize,
}

/// The shared KV pool of two models.
///
/// Every operation takes effect at once, so a page may be freed and handed out again between two
/// calls. The caller keeps the device in step: what was read or written before a page was freed
/// comes before what is written after it was handed out, copies in the order they were returned.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Pool {
    layout: PoolLayout,
    sequences: SequenceTable,
    /// By page: the sequences whose tables name it. The prefix tree does not count.
    refs: Vec<u32>,
    /// By page: whose it is; `None` while it is free.
    owner: Vec<Option<Role>>,
    /// Free pages; the last one is handed out first.
    free: Vec<PageId>,
    /// Pages that are not free, by [`Role::index`].
    in_use: [usize; 2],
    prefixes: PrefixIndex,
}

/// What an append would take.
struct Growth {
    /// Pages to hand out, one of them for the copy of a shared last page.
    new_pages: usize,
    /// The last page, if it is partly filled and has another holder.
    shared_tail: Option<PageId>,
}

impl Pool {
    /// An empty pool: every page free.
    #[must_use]
    pub fn new(layout: PoolLayout) -> Self {
        let pages = layout.pages();
        Self {
            sequences: SequenceTable::default(),
            refs: vec![0; pages],
            owner: vec![None; pages],
            free: (0..pages as u32).rev().map(PageId).collect(),
            in_use: [0; 2],
            prefixes: PrefixIndex::new(pages),
            layout,
        }
    }

    /// How the pages are cut.
    #[must_use]
    pub fn layout(&self) -> &PoolLayout {
        &self.layout
    }

    /// A new, empty sequence of `role`'s model. Takes no page.
    ///
    /// # Panics
    /// If the layout has no model for `role`.
    pub fn create(&mut self, role: Role) -> SeqId {
        self.insert(role, false)
    }

    /// A new, empty sequence that never enters the prefix tree: a scoring suffix, a tree draft.
    ///
    /// # Panics
    /// If the layout has no model for `role`.
    pub fn create_scratch(&mut self, role: Role) -> SeqId {
        self.insert(role, true)
    }

    /// A new sequence that starts with the longest cached prefix of `ids`, and that prefix's
    /// length: whole pages, so a multiple of [`PoolLayout::page_tokens`]. Takes no page.
    ///
    /// Everything may match. A caller that needs logits after the last id passes all ids but that.
    ///
    /// # Panics
    /// If the layout has no model for `role`.
    pub fn create_from_prefix(&mut self, role: Role, ids: &[TokenId]) -> (SeqId, usize) {
        let pages: Vec<PageId> = self.cached_path(role, ids).collect();
        let len = pages.len() * self.layout.page_tokens(role);
        let seq = self.create(role);
        self.attach(seq, &pages, len);
        (seq, len)
    }

    /// How many tokens [`Pool::create_from_prefix`] would find; changes nothing.
    #[must_use]
    pub fn matched_tokens(&self, role: Role, ids: &[TokenId]) -> usize {
        self.cached_path(role, ids).count() * self.layout.page_tokens(role)
    }

    /// A second sequence with the same tokens that shares every page, the partly filled one too:
    /// whoever appends first gets a copy of it. Takes no page. A fork of a scratch sequence is one.
    pub fn fork(&mut self, seq: SeqId) -> SeqId {
        let source = self.sequences.get(seq);
        let (role, scratch, len) = (source.role, source.scratch, source.len);
        let pages = source.pages.clone();
        let fork = self.insert(role, scratch);
        self.attach(fork, &pages, len);
        fork
    }

    /// Ends a sequence. Pages nobody else holds are free again; those in the prefix tree stay
    /// cached until their room is needed. The handle is dead.
    pub fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
        self.sequences.remove(seq);
    }

    /// Makes room for `tokens` more tokens and counts them at once.
    ///
    /// Afterwards no other sequence and no prefix tree holds a page in which the new tokens lie.
    /// If the partly filled last page has another holder, a copy takes its place; the device makes
    /// that copy before it writes. Cached prefixes are evicted as needed, the longest idle first.
    ///
    /// # Errors
    /// [`KvError::Full`] if free and evictable pages do not suffice; then nothing has changed.
    pub fn append(&mut self, seq: SeqId, tokens: usize) -> Result<Append, KvError> {
        let Growth { mut new_pages, mut shared_tail } = self.growth(seq, tokens);
        let available = self.available_pages();
        if new_pages > available {
            // If only the prefix tree shares the last page, give up the cached prefix instead of
            // the copy: a cache must never be the reason that a request does not fit.
            match shared_tail {
                Some(tail) if self.refs[tail.index()] == 1 && new_pages - 1 <= available => {
                    for page in self.prefixes.withdraw(tail) {
                        self.set_free(page);
                    }
                    shared_tail = None;
                    new_pages -= 1;
                }
                _ => {
                    return Err(KvError::Full { needed_pages: new_pages, free_pages: available });
                }
            }
        }
        while self.free.len() < new_pages {
            let page = self.prefixes.evict().expect("idle pages were counted as available");
            self.set_free(page);
        }

        let (role, start) = (self.role(seq), self.len(seq));
        let copy = shared_tail.map(|from| {
            let to = self.take_free(role);
            let tail = self.sequences.get_mut(seq).pages.last_mut();
            *tail.expect("a shared tail is a page of the sequence") = to;
            self.drop_reference(from);
            new_pages -= 1;
            PageCopy { from, to, tokens: start % self.layout.page_tokens(role) }
        });
        for _ in 0..new_pages {
            let page = self.take_free(role);
            self.sequences.get_mut(seq).pages.push(page);
        }
        self.sequences.get_mut(seq).len += tokens;
        Ok(Append { copy, start })
    }

    /// Forgets every token from `len` on. Costs no more than the appends it takes back.
    ///
    /// # Panics
    /// If the sequence is shorter than `len`.
    pub fn truncate(&mut self, seq: SeqId, len: usize) {
        let sequence = self.sequences.get_mut(seq);
        let was = sequence.len;
        assert!(len <= was, "{seq} has {was} tokens and cannot be cut to {len}");
        sequence.len = len;
        let keep = self.layout.pages_for(sequence.role, len);
        // From the end, so that of a cached path the deepest page becomes idle first.
        while self.sequences.get(seq).pages.len() > keep {
            let page = self.sequences.get_mut(seq).pages.pop().expect("longer than keep");
            self.drop_reference(page);
        }
    }

    /// Enters the whole pages of `ids` into the prefix tree of the sequence's model.
    ///
    /// `ids` are the first tokens the sequence's KV holds, up to where their owner has accepted
    /// them. Where the tree holds the same ids in another page already, the sequence moves to that
    /// page and its own is free again: its table may change. A page that forks share cannot move,
    /// so publishing ends before it. A scratch sequence publishes nothing.
    ///
    /// Publish and release is how a preempted request leaves: what is not evicted meanwhile is
    /// found again by [`Pool::create_from_prefix`].
    ///
    /// # Panics
    /// If `ids` are more than the sequence holds, or not those it was published with before.
    pub fn publish(&mut self, seq: SeqId, ids: &[TokenId]) {
        let sequence = self.sequences.get(seq);
        let (role, len) = (sequence.role, sequence.len);
        assert!(ids.len() <= len, "{} ids to publish, but {seq} has {len} tokens", ids.len());
        if sequence.scratch {
            return;
        }
        let mut parent = None;
        for (index, ids) in ids.chunks_exact(self.layout.page_tokens(role)).enumerate() {
            let own = self.table(seq)[index];
            let cached = self.prefixes.child(role, parent, ids);
            assert!(
                cached == Some(own) || !self.prefixes.contains(own),
                "{seq} was published with other ids before"
            );
            match cached {
                None => self.prefixes.insert(role, parent, own, ids),
                Some(cached) if cached == own => {}
                Some(cached) if self.refs[own.index()] == 1 => {
                    self.add_reference(cached);
                    self.sequences.get_mut(seq).pages[index] = cached;
                    self.drop_reference(own);
                }
                // Moving this sequence alone would leave its forks with the same later pages
                // behind different earlier ones: sharing would no longer be of beginnings.
                Some(_) => return,
            }
            parent = Some(self.table(seq)[index]);
        }
    }

    /// Empties the prefix trees. Sequences keep their pages; nobody finds them any more.
    pub fn clear_prefixes(&mut self) {
        for page in self.prefixes.clear() {
            if self.refs[page.index()] == 0 {
                self.set_free(page);
            }
        }
    }

    /// The pages of a sequence in token order: token `i` is in page `i / P` at slot `i % P`.
    #[must_use]
    pub fn table(&self, seq: SeqId) -> &[PageId] {
        &self.sequences.get(seq).pages
    }

    /// The tokens of a sequence.
    #[must_use]
    pub fn len(&self, seq: SeqId) -> usize {
        self.sequences.get(seq).len
    }

    /// Whose KV a sequence is.
    #[must_use]
    pub fn role(&self, seq: SeqId) -> Role {
        self.sequences.get(seq).role
    }

    /// Pages a sequence names, shared ones included.
    #[must_use]
    pub fn pages_of(&self, seq: SeqId) -> usize {
        self.table(seq).len()
    }

    /// Pages no other sequence names: what [`Pool::release`] adds to [`Pool::available_pages`].
    #[must_use]
    pub fn reclaimable(&self, seq: SeqId) -> usize {
        self.table(seq).iter().filter(|page| self.refs[page.index()] == 1).count()
    }

    /// Pages [`Pool::append`] would hand out for `tokens` more tokens, a copy included.
    #[must_use]
    pub fn pages_needed(&self, seq: SeqId, tokens: usize) -> usize {
        self.growth(seq, tokens).new_pages
    }

    /// Whether new sequences of so many tokens, by [`Role::index`], would fit now. A role without
    /// a model needs nothing.
    #[must_use]
    pub fn fits(&self, role_tokens: [usize; 2]) -> bool {
        let pages = Role::ALL.map(|role| self.layout.pages_for(role, role_tokens[role.index()]));
        pages[0].saturating_add(pages[1]) <= self.available_pages()
    }

    /// Pages nobody holds.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Pages in the prefix trees, held by sequences or not.
    #[must_use]
    pub fn cached_pages(&self) -> usize {
        self.prefixes.cached()
    }

    /// Pages in the prefix trees that no sequence holds: an append takes them when none is free.
    #[must_use]
    pub fn evictable_pages(&self) -> usize {
        self.prefixes.idle()
    }

    /// Pages an append can have: free or evictable.
    #[must_use]
    pub fn available_pages(&self) -> usize {
        self.free_pages() + self.evictable_pages()
    }

    /// Pages of `role`'s model, in sequences or cached. With [`Pool::free_pages`] and the other
    /// role's they are all pages.
    #[must_use]
    pub fn pages_in_use(&self, role: Role) -> usize {
        self.in_use[role.index()]
    }

    /// Recounts everything from the tables and the trees. Costs time in proportion to the pool:
    /// for tests and debug builds.
    ///
    /// # Errors
    /// What disagrees, in words for engineers.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut refs = vec![0; self.layout.pages()];
        let mut free = vec![false; self.layout.pages()];
        let mut in_use = [0; 2];
        for sequence in self.sequences.iter() {
            if sequence.pages.len() != self.layout.pages_for(sequence.role, sequence.len) {
                let (pages, len) = (sequence.pages.len(), sequence.len);
                return Err(format!("a sequence of {len} tokens has {pages} pages"));
            }
            for page in &sequence.pages {
                refs[page.index()] += 1;
                if self.owner[page.index()] != Some(sequence.role) {
                    return Err(format!("page {}: in a table of another role", page.0));
                }
            }
        }
        for page in &self.free {
            if std::mem::replace(&mut free[page.index()], true) {
                return Err(format!("page {}: twice on the free list", page.0));
            }
        }
        for page in (0..self.layout.pages() as u32).map(PageId) {
            let at = page.index();
            let held = refs[at] > 0 || self.prefixes.contains(page);
            if refs[at] != self.refs[at] {
                let (counted, kept) = (refs[at], self.refs[at]);
                return Err(format!("page {}: {counted} references, counted as {kept}", page.0));
            }
            if held == free[at] || held != self.owner[at].is_some() {
                let (free, owner) = (free[at], self.owner[at]);
                return Err(format!("page {}: held {held}, free {free}, of {owner:?}", page.0));
            }
            if let Some(role) = self.owner[at] {
                in_use[role.index()] += 1;
            }
        }
        if in_use != self.in_use {
            return Err(format!("pages in use: {in_use:?}, counted as {:?}", self.in_use));
        }
        self.prefixes.check(|page| refs[page.index()] > 0, |page| self.owner[page.index()])
    }

    fn insert(&mut self, role: Role, scratch: bool) -> SeqId {
        assert!(self.layout.page_tokens(role) > 0, "the KV pool has no {role} model");
        self.sequences.insert(role, scratch)
    }

    /// Gives an empty sequence pages that others hold.
    fn attach(&mut self, seq: SeqId, pages: &[PageId], len: usize) {
        for &page in pages {
            self.add_reference(page);
        }
        let sequence = self.sequences.get_mut(seq);
        sequence.pages.extend_from_slice(pages);
        sequence.len = len;
    }

    /// The cached pages that hold the beginning of `ids`.
    fn cached_path(&self, role: Role, ids: &[TokenId]) -> impl Iterator<Item = PageId> {
        let page_tokens = self.layout.page_tokens(role);
        assert!(page_tokens > 0, "the KV pool has no {role} model");
        ids.chunks_exact(page_tokens).scan(None, move |parent, ids| {
            *parent = self.prefixes.child(role, *parent, ids);
            *parent
        })
    }

    fn growth(&self, seq: SeqId, tokens: usize) -> Growth {
        let sequence = self.sequences.get(seq);
        let needed = self.layout.pages_for(sequence.role, sequence.len.saturating_add(tokens));
        let page_tokens = self.layout.page_tokens(sequence.role);
        let partly_filled = !sequence.len.is_multiple_of(page_tokens);
        let shared_tail = sequence.pages.last().copied().filter(|&tail| {
            let shared = self.refs[tail.index()] > 1 || self.prefixes.contains(tail);
            tokens > 0 && partly_filled && shared
        });
        let new_pages = needed - sequence.pages.len() + usize::from(shared_tail.is_some());
        Growth { new_pages, shared_tail }
    }

    fn add_reference(&mut self, page: PageId) {
        self.refs[page.index()] += 1;
        if self.refs[page.index()] == 1 {
            self.prefixes.hold(page);
        }
    }

    fn drop_reference(&mut self, page: PageId) {
        self.refs[page.index()] -= 1;
        if self.refs[page.index()] > 0 {
            return;
        }
        if self.prefixes.contains(page) {
            self.prefixes.let_go(page);
        } else {
            self.set_free(page);
        }
    }

    /// Hands out a free page, with its first reference.
    fn take_free(&mut self, role: Role) -> PageId {
        let page = self.free.pop().expect("free pages were counted before");
        debug_assert!(self.refs[page.index()] == 0 && self.owner[page.index()].is_none());
        self.owner[page.index()] = Some(role);
        self.in_use[role.index()] += 1;
        self.refs[page.index()] = 1;
        page
    }

    fn set_free(&mut self, page: PageId) {
        let role = self.owner[page.index()].take().expect("a page that is freed has an owner");
        self.in_use[role.index()] -= 1;
        self.free.push(page);
    }
}

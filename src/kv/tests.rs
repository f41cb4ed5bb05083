//! The pool against a naive model of the same interface.
//!
//! [`Mirror`] keeps for every sequence the plain list of its tokens, and for the prefix cache a
//! flat map from whole prefixes to pages with the time each became idle. Beside both it keeps a
//! pretended device: per page slot the token written there and the hash of everything before it,
//! written only through tables, lengths and the copies the pool asks for. After every operation
//! each sequence is read back through its table, and every count is recomputed from scratch.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::error::KvError;
use crate::ids::{PageId, Role, TokenId};

/// What one slot of a page holds: whose KV, at which position, of which ids up to and with it.
type Slot = Option<(Role, usize, u64)>;

/// A prefix some sequence published: whole pages of ids.
type Prefix = (Role, Vec<TokenId>);

#[derive(Debug, Clone)]
struct Cached {
    page: PageId,
    idle_since: Option<u64>,
}

#[derive(Debug, Clone)]
struct Live {
    seq: SeqId,
    role: Role,
    scratch: bool,
    ids: Vec<TokenId>,
}

#[derive(Debug, Clone)]
enum Op {
    Create { role: Role, scratch: bool },
    CreateFromPrefix { role: Role, source: usize, keep: usize, more: Vec<u32> },
    Append { which: usize, ids: Vec<u32> },
    Truncate { which: usize, drop: usize },
    Fork { which: usize },
    Release { which: usize },
    Publish { which: usize, hold_back: usize },
    ClearPrefixes,
}

#[derive(Clone)]
struct Mirror {
    pool: Pool,
    live: Vec<Live>,
    cache: BTreeMap<Prefix, Cached>,
    clock: u64,
    memory: Vec<Vec<Slot>>,
    seen: Corners,
}

/// How often the rare cases occurred, so that a test can show that it reached them.
#[derive(Debug, Clone, Copy, Default)]
struct Corners {
    /// Sequences of operations that ran to their end.
    runs: usize,
    /// Appends that did not fit.
    full: usize,
    /// Cached pages taken for other tokens.
    evicted: usize,
    /// Copies of a shared last page.
    copied: usize,
    /// Appends in place that gave up the cached prefix they wrote into.
    withdrawn: usize,
    /// Pages given up for an equal cached page.
    moved: usize,
    /// Publications that ended before a page that forks share.
    halted: usize,
    /// Tokens found in the prefix cache.
    matched: usize,
}

impl Corners {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.full += other.full;
        self.evicted += other.evicted;
        self.copied += other.copied;
        self.withdrawn += other.withdrawn;
        self.moved += other.moved;
        self.halted += other.halted;
        self.matched += other.matched;
    }

    fn rarest(self) -> usize {
        let Self { runs, full, evicted, copied, withdrawn, moved, halted, matched } = self;
        [runs, full, evicted, copied, withdrawn, moved, halted, matched]
            .into_iter()
            .min()
            .expect("eight counts")
    }
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// FNV-1a over ids: what the KV of the last one depends on.
fn history(ids: &[TokenId]) -> u64 {
    ids.iter().fold(0xcbf2_9ce4_8422_2325, |hash, id| {
        (hash ^ u64::from(id.0 + 1)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Mirror {
    fn new(page_tokens: [usize; 2], pages: usize) -> Self {
        let memory = Role::ALL.map(|role| page_tokens[role.index()]).into_iter().max();
        Self {
            pool: Pool::new(PoolLayout::with_page_tokens(page_tokens, pages)),
            live: Vec::new(),
            cache: BTreeMap::new(),
            clock: 0,
            memory: vec![vec![None; memory.expect("two roles")]; pages],
            seen: Corners::default(),
        }
    }

    fn page_tokens(&self, role: Role) -> usize {
        self.pool.layout().page_tokens(role)
    }

    /// Pages live sequences name.
    fn held(&self) -> BTreeSet<PageId> {
        self.live.iter().flat_map(|live| self.pool.table(live.seq)).copied().collect()
    }

    fn holders(&self, page: PageId) -> usize {
        self.live.iter().filter(|live| self.pool.table(live.seq).contains(&page)).count()
    }

    fn is_cached(&self, page: PageId) -> bool {
        self.cache.values().any(|cached| cached.page == page)
    }

    /// Cached prefixes that are held no longer became idle just now, the longest first.
    fn stamp_idle(&mut self) {
        let held = self.held();
        for cached in self.cache.values_mut() {
            if held.contains(&cached.page) {
                cached.idle_since = None;
            }
        }
        let mut idle: Vec<_> = self
            .cache
            .iter_mut()
            .filter(|(_, cached)| cached.idle_since.is_none() && !held.contains(&cached.page))
            .collect();
        idle.sort_by_key(|((_, ids), _)| std::cmp::Reverse(ids.len()));
        for (_, cached) in idle {
            self.clock += 1;
            cached.idle_since = Some(self.clock);
        }
    }

    /// Forgets the cached prefix that became idle first among those nothing cached continues.
    fn evict(&mut self) {
        let continued = |prefix: &Prefix| {
            self.cache.keys().any(|other| {
                other.0 == prefix.0
                    && other.1.len() > prefix.1.len()
                    && other.1.starts_with(&prefix.1)
            })
        };
        let first = self
            .cache
            .iter()
            .filter(|(prefix, cached)| cached.idle_since.is_some() && !continued(prefix))
            .min_by_key(|(_, cached)| cached.idle_since)
            .map(|(prefix, _)| prefix.clone());
        self.cache.remove(&first.expect("something can be evicted"));
        self.seen.evicted += 1;
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { role, scratch } => {
                let seq = if *scratch {
                    self.pool.create_scratch(*role)
                } else {
                    self.pool.create(*role)
                };
                self.live.push(Live { seq, role: *role, scratch: *scratch, ids: Vec::new() });
            }
            Op::CreateFromPrefix { role, source, keep, more } => {
                self.create_from_prefix(*role, *source, *keep, more);
            }
            Op::ClearPrefixes => {
                self.pool.clear_prefixes();
                self.cache.clear();
            }
            _ if self.live.is_empty() => {}
            Op::Append { which, ids } => self.append(which % self.live.len(), &tokens(ids)),
            Op::Truncate { which, drop } => {
                let at = which % self.live.len();
                let live = &mut self.live[at];
                let len = live.ids.len() - drop % (live.ids.len() + 1);
                live.ids.truncate(len);
                self.pool.truncate(live.seq, len);
            }
            Op::Fork { which } => {
                let source = self.live[which % self.live.len()].clone();
                let seq = self.pool.fork(source.seq);
                self.live.push(Live { seq, ..source });
            }
            Op::Release { which } => {
                let live = self.live.swap_remove(which % self.live.len());
                let (available, gain) =
                    (self.pool.available_pages(), self.pool.reclaimable(live.seq));
                self.pool.release(live.seq);
                assert_eq!(self.pool.available_pages(), available + gain, "reclaimable");
            }
            Op::Publish { which, hold_back } => {
                let at = which % self.live.len();
                let len = self.live[at].ids.len();
                self.publish(at, len - hold_back % (len + 1));
            }
        }
        self.stamp_idle();
        self.check();
    }

    /// Looks for the beginning of something published or live, followed by other ids.
    fn create_from_prefix(&mut self, role: Role, source: usize, keep: usize, more: &[u32]) {
        let known: Vec<&Vec<TokenId>> = self
            .cache
            .keys()
            .map(|(_, ids)| ids)
            .chain(self.live.iter().map(|live| &live.ids))
            .collect();
        let mut ids = match known.get(source % known.len().max(1)) {
            Some(ids) => ids[..ids.len() - keep % (ids.len() + 1)].to_vec(),
            None => Vec::new(),
        };
        ids.extend(tokens(more));

        let page_tokens = self.page_tokens(role);
        let expected = (1..=ids.len() / page_tokens)
            .map(|pages| pages * page_tokens)
            .take_while(|&len| self.cache.contains_key(&(role, ids[..len].to_vec())))
            .last()
            .unwrap_or(0);
        assert_eq!(self.pool.matched_tokens(role, &ids), expected);
        let (seq, matched) = self.pool.create_from_prefix(role, &ids);
        assert_eq!(matched, expected);
        ids.truncate(matched);
        self.seen.matched += matched;
        self.live.push(Live { seq, role, scratch: false, ids });
    }

    fn append(&mut self, at: usize, ids: &[TokenId]) {
        let Live { seq, role, .. } = self.live[at];
        let page_tokens = self.page_tokens(role);
        let start = self.live[at].ids.len();
        let table = self.pool.table(seq).to_vec();
        let mut needed = (start + ids.len()).div_ceil(page_tokens) - table.len();
        let tail =
            table.last().copied().filter(|_| !ids.is_empty() && !start.is_multiple_of(page_tokens));
        let forked = tail.is_some_and(|tail| self.holders(tail) > 1);
        let published = tail.is_some_and(|tail| self.is_cached(tail));
        needed += usize::from(forked || published);
        assert_eq!(self.pool.pages_needed(seq, ids.len()), needed);

        let available = self.memory.len() - self.held().len();
        let before = (self.pool.free_pages(), self.pool.cached_pages());
        match self.pool.append(seq, ids.len()) {
            Ok(append) => {
                let mut free = before.0;
                let mut copied = forked || published;
                if needed > available {
                    // Only giving up the cached last page can have made room.
                    assert!(published && !forked && needed == available + 1);
                    let prefix = self.prefix_of(tail.expect("published"));
                    let cached = self.cache.len();
                    self.cache
                        .retain(|(role, ids), _| *role != prefix.0 || !ids.starts_with(&prefix.1));
                    free += cached - self.cache.len() - 1;
                    needed -= 1;
                    copied = false;
                    self.seen.withdrawn += 1;
                }
                for _ in free..needed {
                    self.evict();
                }
                assert_eq!(append.start, start);
                assert_eq!(append.copy.is_some(), copied, "copy on write");
                if let Some(PageCopy { from, to, tokens }) = append.copy {
                    assert_eq!((Some(from), tokens), (tail, start % page_tokens));
                    let rows = self.memory[from.index()][..tokens].to_vec();
                    self.memory[to.index()][..tokens].copy_from_slice(&rows);
                    self.seen.copied += 1;
                }
                self.live[at].ids.extend_from_slice(ids);
                for position in start..start + ids.len() {
                    let page = self.pool.table(seq)[position / page_tokens];
                    assert_eq!(self.holders(page), 1, "a shared page is written");
                    assert!(!self.is_cached(page), "a cached page is written");
                    let hash = history(&self.live[at].ids[..=position]);
                    self.memory[page.index()][position % page_tokens] =
                        Some((role, position, hash));
                }
            }
            Err(error) => {
                assert_eq!(error, KvError::Full { needed_pages: needed, free_pages: available });
                // Neither the copy of a page only the cache shares nor anything cached is why.
                assert!(needed - usize::from(published && !forked) > available, "{error}");
                assert_eq!(self.pool.table(seq), table, "a failed append changes nothing");
                assert_eq!((self.pool.free_pages(), self.pool.cached_pages()), before);
                self.seen.full += 1;
            }
        }
    }

    fn prefix_of(&self, page: PageId) -> Prefix {
        let found = self.cache.iter().find(|(_, cached)| cached.page == page);
        found.expect("the page is cached").0.clone()
    }

    fn publish(&mut self, at: usize, len: usize) {
        let Live { seq, role, scratch, ids } = self.live[at].clone();
        let page_tokens = self.page_tokens(role);
        let before = self.pool.table(seq).to_vec();
        let mut expected = before.clone();
        for (index, &page) in before.iter().enumerate().take(len / page_tokens) {
            let prefix = (role, ids[..(index + 1) * page_tokens].to_vec());
            match self.cache.get(&prefix) {
                _ if scratch => break,
                Some(cached) if cached.page == page => {}
                Some(cached) if self.holders(page) == 1 => {
                    expected[index] = cached.page;
                    self.seen.moved += 1;
                }
                Some(_) => {
                    self.seen.halted += 1;
                    break;
                }
                None => {
                    self.cache.insert(prefix, Cached { page, idle_since: None });
                }
            }
        }
        self.pool.publish(seq, &ids[..len]);
        assert_eq!(self.pool.table(seq), expected, "publishing moves to equal cached pages");
    }

    /// Everything observable, recomputed.
    fn check(&self) {
        self.pool.check_invariants().unwrap();
        for live in &self.live {
            let page_tokens = self.page_tokens(live.role);
            assert_eq!(self.pool.len(live.seq), live.ids.len());
            assert_eq!(self.pool.role(live.seq), live.role);
            assert_eq!(self.pool.pages_of(live.seq), live.ids.len().div_ceil(page_tokens));
            for position in 0..live.ids.len() {
                let page = self.pool.table(live.seq)[position / page_tokens];
                assert_eq!(
                    self.memory[page.index()][position % page_tokens],
                    Some((live.role, position, history(&live.ids[..=position]))),
                    "{} at {position} of {:?}",
                    live.seq,
                    live.ids
                );
            }
        }
        for ((role, ids), cached) in &self.cache {
            assert_eq!(self.pool.matched_tokens(*role, ids), ids.len(), "{role} {ids:?}");
            let last = self.memory[cached.page.index()][self.page_tokens(*role) - 1];
            assert_eq!(last, Some((*role, ids.len() - 1, history(ids))), "cached content");
        }
        let held = self.held();
        let idle = self.cache.values().filter(|cached| !held.contains(&cached.page)).count();
        assert_eq!(self.pool.cached_pages(), self.cache.len());
        assert_eq!(self.pool.evictable_pages(), idle);
        assert_eq!(self.pool.free_pages(), self.memory.len() - held.len() - idle);
        for role in Role::ALL {
            let mut pages: BTreeSet<PageId> = BTreeSet::new();
            for live in self.live.iter().filter(|live| live.role == role) {
                pages.extend(self.pool.table(live.seq));
            }
            let cached = self.cache.iter().filter(|((owner, _), _)| *owner == role);
            pages.extend(cached.map(|(_, cached)| cached.page));
            assert_eq!(self.pool.pages_in_use(role), pages.len());
        }
    }

    /// Gives everything back; the pool must be as new.
    fn finish(mut self) -> Corners {
        while !self.live.is_empty() {
            self.apply(&Op::Release { which: 0 });
        }
        assert_eq!(self.pool.available_pages(), self.memory.len());
        self.apply(&Op::ClearPrefixes);
        assert_eq!(self.pool.free_pages(), self.memory.len());
        Corners { runs: 1, ..self.seen }
    }
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Draft), Just(Role::Base)]
}

/// Few different ids and mostly runs of one, so that prefixes meet often.
fn ids(max: usize) -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        3 => (0..2u32, 0..=max).prop_map(|(id, len)| vec![id; len]),
        1 => prop::collection::vec(0..2u32, 0..=max),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..64usize;
    prop_oneof![
        2 => (role(), prop::bool::weighted(0.2))
            .prop_map(|(role, scratch)| Op::Create { role, scratch }),
        4 => (role(), which(), 0..6usize, ids(4)).prop_map(|(role, source, keep, more)| {
            Op::CreateFromPrefix { role, source, keep, more }
        }),
        16 => (which(), prop_oneof![ids(5), ids(14)])
            .prop_map(|(which, ids)| Op::Append { which, ids }),
        8 => (which(), prop_oneof![1..4usize, 0..20usize])
            .prop_map(|(which, drop)| Op::Truncate { which, drop }),
        4 => which().prop_map(|which| Op::Fork { which }),
        6 => which().prop_map(|which| Op::Release { which }),
        8 => (which(), prop_oneof![Just(0), 0..6usize])
            .prop_map(|(which, hold_back)| Op::Publish { which, hold_back }),
        // Rare, or the cache would never fill: about once in five cases.
        1 => prop::bool::weighted(0.2)
            .prop_map(|clear| if clear { Op::ClearPrefixes } else { Op::Release { which: 0 } }),
    ]
}

#[test]
fn any_mix_of_operations_leaves_every_sequence_readable_and_every_page_accounted_for() {
    let config =
        ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() };
    let cases = (
        prop::sample::select(vec![[4, 2], [2, 4], [3, 3], [8, 4], [4, 1]]),
        prop_oneof![1..8usize, 8..32usize],
        prop::collection::vec(op(), 1..160),
    );
    let seen = Cell::new(Corners::default());
    TestRunner::new(config)
        .run(&cases, |(page_tokens, pages, ops)| {
            let mut mirror = Mirror::new(page_tokens, pages);
            for op in &ops {
                mirror.apply(op);
            }
            let mut sum = seen.get();
            sum.add(mirror.finish());
            seen.set(sum);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(seen.get().rarest() >= 50, "a rule was hardly tried: {:?}", seen.get());
}

/// Runs all sequences of `depth` operations out of a small set that still reaches every rule.
fn explore(mirror: &Mirror, depth: usize, seen: &mut Corners) {
    if depth == 0 {
        return seen.add(mirror.clone().finish());
    }
    let mut ops = vec![
        Op::Create { role: Role::Base, scratch: false },
        Op::CreateFromPrefix { role: Role::Base, source: 0, keep: 0, more: vec![] },
    ];
    // The first and the last sequence: enough to have one act on what the other shares.
    for which in BTreeSet::from([0, mirror.live.len().saturating_sub(1)]) {
        if mirror.live.is_empty() {
            break;
        }
        ops.extend([
            Op::Append { which, ids: vec![0; 3] },
            Op::Truncate { which, drop: 1 },
            Op::Fork { which },
            Op::Release { which },
            Op::Publish { which, hold_back: 0 },
        ]);
    }
    for op in &ops {
        let mut next = mirror.clone();
        next.apply(op);
        explore(&next, depth - 1, seen);
    }
}

#[test]
fn every_short_sequence_of_operations_agrees_with_the_naive_model() {
    // Pages of two tokens, three or five of them, one id: everything meets everything.
    let mut seen = Corners::default();
    for pages in [3, 5] {
        let mut mirror = Mirror::new([2, 2], pages);
        for op in [
            Op::Create { role: Role::Base, scratch: false },
            Op::Append { which: 0, ids: vec![0; 3] },
            Op::Fork { which: 0 },
        ] {
            mirror.apply(&op);
        }
        explore(&mirror, 5, &mut seen);
    }
    assert!(seen.runs > 100_000 && seen.rarest() > 0, "a rule was not tried: {seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_lone_request_never_meets_a_full_pool_that_passed_the_capacity_check(
        context in 1..40u32,
        suffix in 1..10u32,
        // Which model, how far it rolls back, how much it appends, whether it publishes.
        steps in prop::collection::vec((role(), 0..12usize, 0..12usize, any::<bool>()), 1..80),
    ) {
        let page_tokens = [8, 4];
        let pages =
            PoolLayout::with_page_tokens(page_tokens, 0).request_pages(context, suffix);
        let layout = PoolLayout::with_page_tokens(page_tokens, pages);
        prop_assert_eq!(layout.check_capacity(context, suffix), Ok(()));
        let short = PoolLayout::with_page_tokens(page_tokens, pages - 1);
        prop_assert!(short.check_capacity(context, suffix).is_err());

        let mut pool = Pool::new(layout);
        let (context, suffix) = (context as usize, suffix as usize);
        let branch = Role::ALL.map(|role| pool.create(role));
        // Suffixes that are being scored all the time leave no page to spare.
        for role in Role::ALL {
            let scratch = pool.create_scratch(role);
            prop_assert!(pool.append(scratch, suffix).is_ok());
        }
        let mut ids = [Vec::new(), Vec::new()];
        let mut next = 0;
        for (role, back, more, publish) in steps {
            let (seq, ids) = (branch[role.index()], &mut ids[role.index()]);
            ids.truncate(ids.len().saturating_sub(back));
            pool.truncate(seq, ids.len());
            let more = more.min(context - ids.len());
            prop_assert!(pool.append(seq, more).is_ok());
            // Never the same ids twice: the cache is as full of other things as it can be.
            ids.extend((next..next + more as u32).map(TokenId));
            next += more as u32;
            if publish {
                pool.publish(seq, ids);
            }
            pool.check_invariants().map_err(TestCaseError::fail)?;
        }
    }
}

/// A pool of the base model alone, pages of 4 tokens.
fn base_pool(pages: usize) -> Pool {
    Pool::new(PoolLayout::with_page_tokens([0, 4], pages))
}

/// A sequence with these ids, published as far as whole pages go.
fn published(pool: &mut Pool, ids: &[u32]) -> SeqId {
    let seq = pool.create(Role::Base);
    let _ = pool.append(seq, ids.len()).unwrap();
    pool.publish(seq, &tokens(ids));
    seq
}

#[test]
fn a_full_pool_takes_cached_prefixes_before_it_refuses() {
    let mut pool = base_pool(4);
    let cached = published(&mut pool, &[1; 8]);
    pool.release(cached);
    assert_eq!((pool.free_pages(), pool.evictable_pages()), (2, 2));
    assert!(pool.fits([0, 16]) && !pool.fits([0, 17]));

    let seq = pool.create(Role::Base);
    let _ = pool.append(seq, 16).unwrap();
    assert_eq!((pool.free_pages(), pool.cached_pages()), (0, 0));
    assert_eq!(pool.append(seq, 1), Err(KvError::Full { needed_pages: 1, free_pages: 0 }));
    assert_eq!(pool.len(seq), 16);
}

#[test]
fn the_prefix_that_has_been_idle_longest_goes_first_and_its_end_before_its_beginning() {
    let mut pool = base_pool(6);
    let (older, newer) = (tokens(&[1; 8]), tokens(&[2; 8]));
    let seqs = [published(&mut pool, &[1; 8]), published(&mut pool, &[2; 8])];
    for seq in seqs {
        pool.release(seq);
    }
    // A hit makes the older one the newer one.
    let (hit, matched) = pool.create_from_prefix(Role::Base, &older);
    assert_eq!(matched, 8);
    pool.release(hit);

    let seq = pool.create(Role::Base);
    let mut left = Vec::new();
    for _ in 0..6 {
        let _ = pool.append(seq, 4).unwrap();
        left.push([&older, &newer].map(|ids| pool.matched_tokens(Role::Base, ids)));
    }
    assert_eq!(left, [[8, 8], [8, 8], [8, 4], [8, 0], [4, 0], [0, 0]]);
}

#[test]
fn a_cached_prefix_that_a_sequence_holds_is_never_evicted() {
    let mut pool = base_pool(3);
    let seq = published(&mut pool, &[1; 8]);
    let other = pool.create(Role::Base);
    assert_eq!(pool.append(other, 8), Err(KvError::Full { needed_pages: 2, free_pages: 1 }));
    assert_eq!(pool.matched_tokens(Role::Base, &tokens(&[1; 8])), 8);
    assert_eq!((pool.pages_of(seq), pool.reclaimable(seq)), (2, 2));
}

#[test]
fn two_requests_that_wrote_the_same_prompt_share_its_pages_once_both_are_published() {
    let mut pool = base_pool(8);
    let first = published(&mut pool, &[1; 9]);
    assert_eq!(pool.free_pages(), 5);
    let second = published(&mut pool, &[1; 9]);
    assert_eq!(pool.table(first)[..2], pool.table(second)[..2]);
    assert_ne!(pool.table(first)[2], pool.table(second)[2]);
    assert_eq!(pool.free_pages(), 4);
    assert_eq!(pool.reclaimable(second), 1);
}

#[test]
fn one_request_that_fills_the_pool_may_roll_back_into_its_published_pages_and_go_on() {
    // The cached copy of the last page must not cost the request the page it does not have.
    let mut pool = base_pool(2);
    let seq = published(&mut pool, &[1; 8]);
    pool.truncate(seq, 3);
    let append = pool.append(seq, 5).unwrap();
    assert_eq!(append, Append { copy: None, start: 3 });
    assert_eq!(pool.cached_pages(), 0);
    pool.check_invariants().unwrap();
}

#[test]
fn a_preempted_request_finds_its_pages_again_if_nobody_needed_them() {
    let mut pool = base_pool(4);
    let seq = published(&mut pool, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let pages = pool.table(seq)[..2].to_vec();
    pool.release(seq);
    let (resumed, matched) =
        pool.create_from_prefix(Role::Base, &tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9]));
    assert_eq!((matched, pool.table(resumed)), (8, &pages[..]));
}

#[test]
fn the_two_models_never_find_each_others_prefixes() {
    let mut pool = Pool::new(PoolLayout::with_page_tokens([4, 4], 8));
    let seq = published(&mut pool, &[1; 8]);
    assert_eq!(pool.matched_tokens(Role::Base, &tokens(&[1; 8])), 8);
    assert_eq!(pool.matched_tokens(Role::Draft, &tokens(&[1; 8])), 0);
    assert_eq!((pool.pages_in_use(Role::Base), pool.pages_in_use(Role::Draft)), (2, 0));
    pool.release(seq);
}

#[test]
fn every_page_serves_either_model() {
    let mut pool = Pool::new(PoolLayout::with_page_tokens([8, 4], 6));
    for role in [Role::Draft, Role::Base, Role::Draft] {
        let seq = pool.create(role);
        let _ = pool.append(seq, 6 * pool.layout().page_tokens(role)).unwrap();
        assert_eq!((pool.free_pages(), pool.pages_in_use(role)), (0, 6));
        pool.release(seq);
    }
}

#[test]
fn a_scratch_sequence_leaves_nothing_behind() {
    let mut pool = base_pool(4);
    let scratch = pool.create_scratch(Role::Base);
    let _ = pool.append(scratch, 8).unwrap();
    pool.publish(scratch, &tokens(&[1; 8]));
    let fork = pool.fork(scratch);
    pool.publish(fork, &tokens(&[1; 8]));
    pool.release(scratch);
    pool.release(fork);
    assert_eq!((pool.cached_pages(), pool.free_pages()), (0, 4));
}

#[test]
fn an_absurd_length_is_full_and_not_an_overflow() {
    let mut pool = base_pool(4);
    let seq = published(&mut pool, &[1; 5]);
    assert!(matches!(pool.append(seq, usize::MAX), Err(KvError::Full { .. })));
    assert!(!pool.fits([usize::MAX; 2]));
    assert_eq!(pool.len(seq), 5);
}

#[test]
#[should_panic(expected = "has been released")]
fn a_handle_that_outlived_its_sequence_is_caught_even_if_its_slot_is_taken_again() {
    let mut pool = base_pool(4);
    let dead = pool.create(Role::Base);
    pool.release(dead);
    let _alive = pool.create(Role::Base);
    let _ = pool.len(dead);
}

#[test]
#[should_panic(expected = "published with other ids")]
fn publishing_other_ids_for_a_published_page_is_caught() {
    let mut pool = base_pool(4);
    let seq = published(&mut pool, &[1; 4]);
    pool.publish(seq, &tokens(&[2; 4]));
}

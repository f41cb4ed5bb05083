//! The prefix tree: pages whose content a later request may share, found by their token ids.
//!
//! One tree per model. A node is one page: its edge is the page's own ids, the path from the root
//! is everything the KV in it depends on. A node is *held* while a live sequence names its page and
//! *idle* otherwise; idle leaves are evicted in the order in which they became idle, counted and
//! not clocked, so the same calls always evict the same pages.
//!
//! The one invariant: every ancestor of a held node is held, because sequences share beginnings.
//! So all descendants of an idle node are idle and any idle page can be had by evicting leaves.
//! Read next: [`super::pool`], which says what is held.

use std::collections::BTreeSet;

use crate::ids::{PageId, Role, TokenId};

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Node {
    role: Role,
    /// `None` for a node at the root.
    parent: Option<PageId>,
    /// The ids of this page.
    ids: Box<[TokenId]>,
    /// Ordered by their ids.
    children: Vec<PageId>,
    /// When the last sequence let go of the page; `None` while it is held.
    idle_since: Option<u64>,
}

/// Both models' prefix trees and the order of eviction.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct PrefixIndex {
    /// By page: every page is at most one node.
    nodes: Vec<Option<Box<Node>>>,
    /// First pages by [`Role::index`], ordered by their ids.
    roots: [Vec<PageId>; 2],
    /// Idle nodes without children; the first one is evicted first.
    idle_leaves: BTreeSet<(u64, PageId)>,
    cached: usize,
    idle: usize,
    /// Counts the times a page became idle.
    clock: u64,
}

impl PrefixIndex {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            nodes: std::iter::repeat_with(|| None).take(pages).collect(),
            roots: [Vec::new(), Vec::new()],
            idle_leaves: BTreeSet::new(),
            cached: 0,
            idle: 0,
            clock: 0,
        }
    }

    /// Pages in the trees.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }

    /// Pages in the trees that no sequence holds.
    pub(super) fn idle(&self) -> usize {
        self.idle
    }

    /// Whether the page is in a tree.
    pub(super) fn contains(&self, page: PageId) -> bool {
        self.nodes[page.index()].is_some()
    }

    /// The page that holds `ids` after the path that ends at `parent`.
    pub(super) fn child(
        &self,
        role: Role,
        parent: Option<PageId>,
        ids: &[TokenId],
    ) -> Option<PageId> {
        let siblings = self.siblings(role, parent);
        self.position(siblings, ids).ok().map(|at| siblings[at])
    }

    /// Enters a page that a sequence holds, with the ids in it, below `parent`.
    pub(super) fn insert(
        &mut self,
        role: Role,
        parent: Option<PageId>,
        page: PageId,
        ids: &[TokenId],
    ) {
        debug_assert!(!self.contains(page), "page {} is in the tree already", page.0);
        debug_assert!(parent.is_none_or(|parent| self.node(parent).idle_since.is_none()));
        let Err(at) = self.position(self.siblings(role, parent), ids) else {
            unreachable!("the caller looks for the ids before it enters them");
        };
        self.siblings_mut(role, parent).insert(at, page);
        let node = Node { role, parent, ids: ids.into(), children: Vec::new(), idle_since: None };
        self.nodes[page.index()] = Some(Box::new(node));
        self.cached += 1;
    }

    /// A sequence holds the page again.
    pub(super) fn hold(&mut self, page: PageId) {
        if let Some(since) = self.node_mut(page).idle_since.take() {
            self.idle_leaves.remove(&(since, page));
            self.idle -= 1;
        }
    }

    /// The last sequence let go of the page.
    pub(super) fn let_go(&mut self, page: PageId) {
        self.clock += 1;
        let since = self.clock;
        let node = self.node_mut(page);
        debug_assert!(node.idle_since.is_none(), "page {} was idle already", page.0);
        node.idle_since = Some(since);
        if node.children.is_empty() {
            self.idle_leaves.insert((since, page));
        }
        self.idle += 1;
    }

    /// Takes the idle leaf that has been idle longest out of its tree.
    pub(super) fn evict(&mut self) -> Option<PageId> {
        let (_, page) = self.idle_leaves.first().copied()?;
        self.detach(page);
        Some(page)
    }

    /// Takes a page and everything below it out of its tree; returns the pages below it, all idle.
    pub(super) fn withdraw(&mut self, page: PageId) -> Vec<PageId> {
        // Parents first; taken out in the opposite order, so that each is a leaf when it goes.
        let mut subtree = vec![page];
        let mut next = 0;
        while let Some(&at) = subtree.get(next) {
            subtree.extend_from_slice(&self.node(at).children);
            next += 1;
        }
        for &page in subtree.iter().rev() {
            self.detach(page);
        }
        subtree.swap_remove(0);
        subtree
    }

    /// Empties both trees; returns the pages that were in them, in page order.
    pub(super) fn clear(&mut self) -> Vec<PageId> {
        let pages = (0..self.nodes.len() as u32).map(PageId);
        let cached = pages.filter(|&page| self.nodes[page.index()].take().is_some()).collect();
        self.roots.iter_mut().for_each(Vec::clear);
        self.idle_leaves.clear();
        self.cached = 0;
        self.idle = 0;
        cached
    }

    /// Removes a leaf.
    fn detach(&mut self, page: PageId) {
        let node = self.node(page);
        debug_assert!(node.children.is_empty(), "page {} has children", page.0);
        let at = self.position(self.siblings(node.role, node.parent), &node.ids);
        let at = at.expect("a node is its parent's child");
        let node = self.nodes[page.index()].take().expect("the page is in a tree");
        self.siblings_mut(node.role, node.parent).remove(at);
        self.cached -= 1;
        if let Some(since) = node.idle_since {
            self.idle_leaves.remove(&(since, page));
            self.idle -= 1;
        }
        if let Some(parent) = node.parent {
            let above = self.node(parent);
            if let (Some(since), true) = (above.idle_since, above.children.is_empty()) {
                self.idle_leaves.insert((since, parent));
            }
        }
    }

    /// Where `ids` is among siblings, or where it would be.
    fn position(&self, siblings: &[PageId], ids: &[TokenId]) -> Result<usize, usize> {
        siblings.binary_search_by(|&page| (*self.node(page).ids).cmp(ids))
    }

    fn siblings(&self, role: Role, parent: Option<PageId>) -> &[PageId] {
        match parent {
            Some(parent) => &self.node(parent).children,
            None => &self.roots[role.index()],
        }
    }

    fn siblings_mut(&mut self, role: Role, parent: Option<PageId>) -> &mut Vec<PageId> {
        match parent {
            Some(parent) => &mut self.node_mut(parent).children,
            None => &mut self.roots[role.index()],
        }
    }

    fn node(&self, page: PageId) -> &Node {
        self.nodes[page.index()].as_deref().expect("the page is in a tree")
    }

    fn node_mut(&mut self, page: PageId) -> &mut Node {
        self.nodes[page.index()].as_deref_mut().expect("the page is in a tree")
    }

    /// Recounts everything from the nodes. `held` tells whether a sequence names a page, `owner`
    /// whose page it is.
    pub(super) fn check(
        &self,
        held: impl Fn(PageId) -> bool,
        owner: impl Fn(PageId) -> Option<Role>,
    ) -> Result<(), String> {
        let (mut cached, mut idle, mut leaves) = (0, 0, 0);
        let mut children = self.roots[0].len() + self.roots[1].len();
        for page in (0..self.nodes.len() as u32).map(PageId) {
            let Some(node) = self.nodes[page.index()].as_deref() else { continue };
            let fail = |what: &str| Err(format!("prefix tree, page {}: {what}", page.0));
            cached += 1;
            children += node.children.len();
            if owner(page) != Some(node.role) {
                return fail("belongs to another role than its node");
            }
            if self.child(node.role, node.parent, &node.ids) != Some(page) {
                return fail("its parent does not find it");
            }
            if held(page) != node.idle_since.is_none() {
                return fail("held and idle disagree");
            }
            if held(page) && node.parent.is_some_and(|parent| !held(parent)) {
                return fail("held below a page that is idle");
            }
            let Some(since) = node.idle_since else { continue };
            idle += 1;
            if node.children.is_empty() {
                leaves += 1;
                if !self.idle_leaves.contains(&(since, page)) {
                    return fail("an idle leaf that cannot be evicted");
                }
            }
        }
        let counted = (cached, idle, leaves, children);
        let kept = (self.cached, self.idle, self.idle_leaves.len(), self.cached);
        if counted != kept {
            return Err(format!(
                "prefix tree: cached, idle, idle leaves, children: counted {counted:?}, \
                 kept {kept:?}"
            ));
        }
        Ok(())
    }
}

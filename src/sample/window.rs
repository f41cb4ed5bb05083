//! Tokens proposed beyond the tip of a text, and which of them stay.
//!
//! The base model draws at the tip and after every proposed token, each with the random number that
//! place has in any case; a proposed token stays if it is what the base drew there. The rule is
//! exact because what is emitted is what the base drew: the tokens are those of plain decoding,
//! greedy or sampled, whatever was proposed. A draft that draws with the base's random numbers
//! agrees where the tokens' intervals of the two inverse cumulative distributions overlap.

use crate::ids::TokenId;

/// Tokens proposed beyond the tip: a chain, or a tree whose nodes come after their parents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    ids: Vec<TokenId>,
    /// The node each node follows; `None` follows the tip.
    parents: Vec<Option<usize>>,
}

impl Window {
    /// One token after another.
    #[must_use]
    pub fn chain(ids: Vec<TokenId>) -> Self {
        let parents = (0..ids.len()).map(|i| i.checked_sub(1)).collect();
        Self { ids, parents }
    }

    /// The nodes' tokens.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether nothing is proposed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Nodes where the window is a chain, else 0: a tree is no continuation of the tail.
    #[must_use]
    pub fn chain_len(&self) -> usize {
        if self.is_chain() { self.len() } else { 0 }
    }

    /// Whether every node follows the one before it.
    #[must_use]
    pub fn is_chain(&self) -> bool {
        self.parents.iter().enumerate().all(|(i, parent)| *parent == i.checked_sub(1))
    }

    /// Adds a node, or finds the equal one that is there.
    pub fn add(&mut self, parent: Option<usize>, id: TokenId) -> usize {
        self.child(parent, id).unwrap_or_else(|| {
            self.ids.push(id);
            self.parents.push(parent);
            self.len() - 1
        })
    }

    /// Keeps the first `nodes` nodes.
    pub fn truncate(&mut self, nodes: usize) {
        self.ids.truncate(nodes);
        self.parents.truncate(nodes);
    }

    /// The nodes from the tip to `node`, itself included.
    #[must_use]
    pub fn path(&self, node: usize) -> Vec<usize> {
        let mut path: Vec<_> =
            std::iter::successors(Some(node), |node| self.parents[*node]).collect();
        path.reverse();
        path
    }

    /// For each node the bits of the nodes it sees, itself included; at most 64 nodes.
    #[must_use]
    pub fn masks(&self) -> Vec<u64> {
        let mut masks: Vec<u64> = vec![];
        for (i, parent) in self.parents.iter().enumerate() {
            masks.push(parent.map_or(0, |parent| masks[parent]) | 1 << i);
        }
        masks
    }

    fn child(&self, parent: Option<usize>, id: TokenId) -> Option<usize> {
        let nodes = self.ids.iter().zip(&self.parents);
        nodes.into_iter().position(|(own, follows)| *own == id && *follows == parent)
    }

    /// The path of nodes that are what the base drew: `drawn[0]` at the tip, `drawn[i + 1]` after
    /// node `i`.
    ///
    /// # Panics
    /// If `drawn` does not hold one token more than there are nodes.
    #[must_use]
    pub fn accept(&self, drawn: &[TokenId]) -> Vec<usize> {
        assert_eq!(drawn.len(), self.len() + 1, "one draw at the tip and one after every node");
        let mut path = vec![];
        while let Some(node) = {
            let last = path.last().copied();
            self.child(last, drawn[last.map_or(0, |node| node + 1)])
        } {
            path.push(node);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::chi_square::{
        WINDOWS, assert_law, assert_not_law, base, distribution, drafted, key,
    };
    use crate::sample::{Key, draw, uniform};
    use proptest::prelude::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    type Rule = fn(&Window, &[TokenId]) -> Vec<TokenId>;

    /// The tokens of a path of nodes and the base's draw after it.
    fn emitted(window: &Window, path: &[usize], drawn: &[TokenId]) -> Vec<TokenId> {
        let next = drawn[path.last().map_or(0, |node| node + 1)];
        path.iter().map(|node| window.ids()[*node]).chain([next]).collect()
    }

    fn right(window: &Window, drawn: &[TokenId]) -> Vec<TokenId> {
        emitted(window, &window.accept(drawn), drawn)
    }

    fn first_always_kept(window: &Window, drawn: &[TokenId]) -> Vec<TokenId> {
        let mut path = window.accept(drawn);
        if path.is_empty() {
            path.push(0);
        }
        emitted(window, &path, drawn)
    }

    /// Replaces a token by what the base drew one place earlier.
    fn one_place_off(window: &Window, drawn: &[TokenId]) -> Vec<TokenId> {
        let path = window.accept(drawn);
        let kept = path.iter().map(|node| window.ids()[*node]);
        kept.chain([drawn[path.last().map_or(0, |node| *node)]]).collect()
    }

    /// A window after the token `previous`, whose places have the numbers of `at`.
    type Propose = fn(usize, &dyn Fn(usize) -> Key) -> Window;

    fn by_a_draft(previous: usize, at: &dyn Fn(usize) -> Key) -> Window {
        let mut previous = previous;
        let chain = (0..2).map(|i| {
            let token = draw(&distribution(&drafted(previous)), uniform(&at(i)));
            previous = token.index();
            token
        });
        Window::chain(chain.collect())
    }

    fn looked_up(_: usize, at: &dyn Fn(usize) -> Key) -> Window {
        Window::chain((0..2).map(|i| TokenId(1 + at(i).position % 2)).collect())
    }

    /// The draft's chain, and beside each of its tokens the one numbered next.
    fn as_a_tree(previous: usize, at: &dyn Fn(usize) -> Key) -> Window {
        let mut window = by_a_draft(previous, at);
        for place in 0..2 {
            let beside = TokenId((window.ids()[place].0 + 1) % 5);
            window.add(place.checked_sub(1), beside);
        }
        window
    }

    /// How often each triple is emitted by windows one after another.
    fn triples(rule: Rule, propose: Propose) -> Vec<u64> {
        let mut counts = vec![0; 125];
        for request in 0..WINDOWS {
            let start = Key { seed: u64::from(request), ..key(0) };
            let mut text: Vec<TokenId> = vec![];
            while text.len() < 3 {
                let at = |i: usize| start.advanced_by((text.len() + i) as u32);
                let previous = text.last().map_or(0, |t| t.index());
                let window = propose(previous, &at);
                let after = |token: usize, depth: usize| {
                    draw(&distribution(&base(token)), uniform(&at(depth)))
                };
                let nodes = (0..window.len())
                    .map(|node| after(window.ids()[node].index(), window.path(node).len()));
                let drawn: Vec<_> = std::iter::once(after(previous, 0)).chain(nodes).collect();
                text.extend(rule(&window, &drawn));
            }
            counts[text[0].index() * 25 + text[1].index() * 5 + text[2].index()] += 1;
        }
        counts
    }

    fn joint_law() -> Vec<f64> {
        let of = |a: usize, b: usize, c: usize| {
            f64::from(base(0)[a]) * f64::from(base(a)[b]) * f64::from(base(b)[c])
        };
        (0..125).map(|i| of(i / 25, i / 5 % 5, i % 5)).collect()
    }

    #[test]
    fn chains_trees_and_lookups_emit_the_joint_law_of_the_base() {
        for propose in [by_a_draft as Propose, as_a_tree, looked_up] {
            assert_law(&triples(right, propose), &joint_law());
        }
    }

    #[test]
    fn wrong_rules_fail_the_same_test() {
        for rule in [first_always_kept as Rule, one_place_off] {
            for propose in [by_a_draft as Propose, as_a_tree, looked_up] {
                assert_not_law(&triples(rule, propose), &joint_law());
            }
        }
    }

    #[test]
    fn a_draft_that_draws_with_the_bases_numbers_agrees_where_intervals_overlap() {
        let (p, q) = (base(0), drafted(0));
        let intervals = |law: [f32; 5]| {
            let mut to = 0.0;
            law.map(|share| {
                let from = to;
                to += f64::from(share);
                (from, to)
            })
        };
        let shared = |(a, b): ((f64, f64), (f64, f64))| (a.1.min(b.1) - a.0.max(b.0)).max(0.0);
        let overlap: f64 = intervals(p).into_iter().zip(intervals(q)).map(shared).sum();
        let independent: f64 = p.iter().zip(q).map(|(p, q)| f64::from(p * q)).sum();
        assert!(overlap > independent, "{overlap} against {independent}");
        let (p, q) = (distribution(&p), distribution(&q));
        let agrees = |window: &u32| {
            let u = uniform(&key(*window));
            draw(&p, u) == draw(&q, u)
        };
        let kept = (0..WINDOWS).filter(agrees).count() as u64;
        assert_law(&[kept, u64::from(WINDOWS) - kept], &[overlap, 1.0 - overlap]);
    }

    #[test]
    fn the_path_the_base_drew_is_accepted_and_nothing_else() {
        let mut tree = Window::chain(ids(&[4, 5]));
        let side = tree.add(Some(0), TokenId(6));
        tree.add(None, TokenId(4));
        assert_eq!((side, tree.len(), tree.is_chain()), (2, 3, false), "4 was there already");
        assert_eq!(tree.accept(&ids(&[4, 6, 0, 9])), [0, 2]);
        assert_eq!(tree.accept(&ids(&[4, 5, 0, 9])), [0, 1]);
        assert!(tree.accept(&ids(&[6, 6, 0, 9])).is_empty());
        assert_eq!(tree.path(2), [0, 2]);
    }

    proptest! {
        #[test]
        fn of_a_chain_the_prefix_the_base_drew_stays(
            window in prop::collection::vec(0..3_u32, 0..8),
            drawn in prop::collection::vec(0..3_u32, 9),
        ) {
            let (window, mut drawn) = (ids(&window), ids(&drawn));
            drawn.truncate(window.len() + 1);
            let chain = Window::chain(window.clone());
            prop_assert!(chain.is_chain());
            let prefix = window.iter().zip(&drawn).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(chain.accept(&drawn), (0..prefix).collect::<Vec<_>>());
        }
    }
}

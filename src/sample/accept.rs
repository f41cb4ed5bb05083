//! How much of a drafted window survives verification, token by token.
//!
//! The rule is exact (Leviathan et al. 2023, §2.3): whatever the draft proposes, the emitted tokens
//! are distributed as if the base model had sampled alone. Both sides must be distributions *after*
//! temperature and truncation. Where the base's own draws are at hand no probabilities are needed:
//! [`super::Window`].
//!
//! [`accepts_token`] and [`residual`] are the rule at one node. A chain walks them along its
//! tokens; a tree would walk them along the siblings of a node, the residual being the next `p`.

use crate::ids::TokenId;

use super::distribution::{Distribution, Entry, draw};
use super::philox::{Key, Purpose, uniform};

/// What verification leaves of a window: a prefix of the drafted tokens and one token more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// How many drafted tokens are kept.
    pub prefix: usize,
    /// The base model's token after them: a replacement, or a bonus if all were kept.
    pub next: TokenId,
}

/// The random numbers of one chain of `K` tokens, each named by its own position.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainUniforms {
    /// `[K]`: whether token `i` is kept.
    pub accept: Vec<f32>,
    /// `[K + 1]`: the replacement of token `i`; the last one draws the bonus token.
    pub next: Vec<f32>,
}

impl ChainUniforms {
    /// The numbers of `k` drafted tokens, the first at the position of `first`.
    ///
    /// Purposes are set here: accept and residual for drafted tokens, and draw for the bonus token,
    /// which therefore uses the number that plain decoding would use there.
    #[must_use]
    pub fn from_key(first: &Key, k: usize) -> Self {
        let number =
            |i: usize, purpose| uniform(&first.advanced_by(i as u32).with_purpose(purpose));
        let mut next: Vec<f32> = (0..k).map(|i| number(i, Purpose::Residual)).collect();
        next.push(number(k, Purpose::Draw));
        Self { accept: (0..k).map(|i| number(i, Purpose::Accept)).collect(), next }
    }
}

/// Keeps the longest acceptable prefix of `draft` and draws the token after it.
///
/// `q_draft[i]` is what `draft[i]` was drawn from, `p_base[i]` what the base model says at the same
/// place, `p_base[K]` what it says after the whole window.
///
/// # Panics
/// If the lengths are not `K` tokens, `K + 1` and `K` distributions and the numbers for `K`: the
/// caller mixed up two windows.
#[must_use]
pub fn accept_chain(
    draft: &[TokenId],
    p_base: &[Distribution<'_>],
    q_draft: &[Distribution<'_>],
    uniforms: &ChainUniforms,
) -> Accepted {
    let k = draft.len();
    let lengths = (p_base.len(), q_draft.len(), uniforms.accept.len(), uniforms.next.len());
    assert_eq!(lengths, (k + 1, k, k, k + 1), "lengths of a window of {k} drafted tokens");
    for (i, &token) in draft.iter().enumerate() {
        let (p, q) = (&p_base[i], &q_draft[i]);
        if !accepts_token(token, p, q, uniforms.accept[i]) {
            let u = uniforms.next[i];
            let next = residual(p, q).map_or_else(|| draw(p, u), |rest| draw(&rest, u));
            return Accepted { prefix: i, next };
        }
    }
    Accepted { prefix: k, next: draw(&p_base[k], uniforms.next[k]) }
}

/// Whether a token drawn from `q` is kept: with probability `min(1, p / q)`, when `u · q < p`.
///
/// A token that `q` cannot give was not drawn from it and is refused.
#[must_use]
pub fn accepts_token(token: TokenId, p: &Distribution<'_>, q: &Distribution<'_>, u: f32) -> bool {
    let (p, q) = (p.probability(token), q.probability(token));
    q > 0.0 && f64::from(u) * q < p
}

/// What a rejected token is replaced from: `max(p - q, 0)`, renormalised.
///
/// Masses are `floor((p - q) · 2⁵²)`. `None` if they sum to less than 2⁻³⁰ of probability: then
/// `p` and `q` are equal but for rounding, and `p` itself is the right source.
#[must_use]
pub fn residual(p: &Distribution<'_>, q: &Distribution<'_>) -> Option<Distribution<'static>> {
    const UNITS: f64 = (1_u64 << 52) as f64;
    const TOTAL_MIN: u64 = 1 << 22;
    let mut others = q.entries().iter().peekable();
    let mut entries = Vec::new();
    for &Entry { id, mass } in p.entries() {
        while others.next_if(|other| other.id < id).is_some() {}
        let other = others.next_if(|other| other.id == id).map_or(0.0, |e| q.ratio(e.mass));
        // A negative difference becomes zero: the cast saturates.
        let mass = ((p.ratio(mass) - other) * UNITS) as u64;
        if mass > 0 {
            entries.push(Entry { id, mass });
        }
    }
    let total: u64 = entries.iter().map(|entry| entry.mass).sum();
    (total >= TOTAL_MIN).then(|| Distribution::from_entries(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Role;
    use crate::sample::Window;
    use crate::sample::chi_square::{
        WINDOWS, assert_law, assert_not_law, base, distribution, drafted, key,
    };
    use proptest::prelude::*;

    type Rule = fn(TokenId, &Distribution<'_>, &Distribution<'_>, f32, f32) -> Option<TokenId>;

    /// The rule of `accept_chain` at one node: `None` keeps the token.
    fn right(
        token: TokenId,
        p: &Distribution<'_>,
        q: &Distribution<'_>,
        u: f32,
        next: f32,
    ) -> Option<TokenId> {
        let one = ChainUniforms { accept: vec![u], next: vec![next, 0.0] };
        let rows = [p.clone(), p.clone()];
        let accepted = accept_chain(&[token], &rows, std::slice::from_ref(q), &one);
        (accepted.prefix == 0).then_some(accepted.next)
    }

    fn inverted_ratio(
        token: TokenId,
        p: &Distribution<'_>,
        q: &Distribution<'_>,
        u: f32,
        next: f32,
    ) -> Option<TokenId> {
        let kept = u * p.prob_of(token) < q.prob_of(token);
        (!kept).then(|| residual(p, q).map_or(token, |rest| draw(&rest, next)))
    }

    fn replaced_from_p(
        token: TokenId,
        p: &Distribution<'_>,
        q: &Distribution<'_>,
        u: f32,
        next: f32,
    ) -> Option<TokenId> {
        (!accepts_token(token, p, q, u)).then(|| draw(p, next))
    }

    fn always_kept(
        _: TokenId,
        _: &Distribution<'_>,
        _: &Distribution<'_>,
        _: f32,
        _: f32,
    ) -> Option<TokenId> {
        None
    }

    /// Counts of the first emitted token under `rule`, after the token `previous`.
    fn first_tokens(rule: Rule, previous: usize) -> Vec<u64> {
        let (p, q) = (distribution(&base(previous)), distribution(&drafted(previous)));
        let mut counts = vec![0; 5];
        for window in 0..WINDOWS {
            let key = key(window);
            let token = draw(&q, uniform(&Key { role: Role::Draft, ..key }));
            let u = uniform(&key.with_purpose(Purpose::Accept));
            let next = uniform(&key.with_purpose(Purpose::Residual));
            counts[rule(token, &p, &q, u, next).unwrap_or(token).index()] += 1;
        }
        counts
    }

    #[test]
    fn the_emitted_token_is_distributed_as_the_base_model_alone() {
        for previous in 0..5 {
            assert_law(&first_tokens(right, previous), &base(previous).map(f64::from));
        }
    }

    #[test]
    fn wrong_acceptance_rules_fail_the_same_test() {
        for rule in [inverted_ratio as Rule, replaced_from_p, always_kept] {
            assert_not_law(&first_tokens(rule, 0), &base(0).map(f64::from));
        }
    }

    /// Emits three tokens with windows of two drafted tokens, starting after token 0.
    fn three_tokens(request: u32) -> [usize; 3] {
        let mut emitted: Vec<usize> = Vec::new();
        let start = Key { seed: u64::from(request), ..key(0) };
        while emitted.len() < 3 {
            let first = start.advanced_by(emitted.len() as u32);
            let last = emitted.last().copied().unwrap_or(0);
            let (mut draft, mut q, mut p) = (vec![], vec![], vec![distribution(&base(last))]);
            let mut previous = last;
            for i in 0..2 {
                let row = distribution(&drafted(previous));
                let token = draw(&row, uniform(&Key { role: Role::Draft, ..first.advanced_by(i) }));
                previous = token.index();
                draft.push(token);
                q.push(row);
                p.push(distribution(&base(previous)));
            }
            let accepted = accept_chain(&draft, &p, &q, &ChainUniforms::from_key(&first, 2));
            emitted.extend(draft[..accepted.prefix].iter().map(|t| t.index()));
            emitted.push(accepted.next.index());
        }
        [emitted[0], emitted[1], emitted[2]]
    }

    #[test]
    fn whole_windows_emit_the_joint_law_of_the_base_model() {
        let mut counts = vec![0; 125];
        for request in 0..WINDOWS {
            let [a, b, c] = three_tokens(request);
            counts[a * 25 + b * 5 + c] += 1;
        }
        let law: Vec<f64> = (0..125)
            .map(|i| {
                let [a, b, c] = [i / 25, i / 5 % 5, i % 5];
                f64::from(base(0)[a]) * f64::from(base(a)[b]) * f64::from(base(b)[c])
            })
            .collect();
        assert_law(&counts, &law);
        // The drafts' own law fails, so the test can tell the models apart.
        let drafts: Vec<f64> = (0..125)
            .map(|i| {
                let [a, b, c] = [i / 25, i / 5 % 5, i % 5];
                f64::from(drafted(0)[a]) * f64::from(drafted(a)[b]) * f64::from(drafted(b)[c])
            })
            .collect();
        assert_not_law(&counts, &drafts);
    }

    #[test]
    fn the_kept_share_is_the_overlap_of_the_two_distributions() {
        let (p, q) = (base(0), drafted(0));
        let overlap: f64 = p.iter().zip(q).map(|(&p, q)| f64::from(p.min(q))).sum();
        let (p, q) = (distribution(&p), distribution(&q));
        let kept = (0..WINDOWS)
            .filter(|&window| {
                let key = key(window);
                let token = draw(&q, uniform(&Key { role: Role::Draft, ..key }));
                accepts_token(token, &p, &q, uniform(&key.with_purpose(Purpose::Accept)))
            })
            .count() as u64;
        assert_law(&[kept, u64::from(WINDOWS) - kept], &[overlap, 1.0 - overlap]);
    }

    #[test]
    fn equal_distributions_keep_every_token_and_leave_no_residual() {
        let p = distribution(&base(0));
        for token in 0..5 {
            assert!(accepts_token(TokenId(token), &p, &p, 1.0 - f32::EPSILON / 2.0));
        }
        assert_eq!(residual(&p, &p), None);
    }

    #[test]
    fn a_token_the_base_cannot_give_is_replaced_and_one_the_draft_cannot_give_is_refused() {
        let (p, q) = (distribution(&base(1)), distribution(&drafted(1)));
        assert!(!accepts_token(TokenId(2), &p, &q, 0.0));
        assert!(!accepts_token(TokenId(4), &p, &distribution(&drafted(0)), 0.0));
        let rest = residual(&p, &q).unwrap();
        let exact = [0.0, 0.4, 0.0, 0.15, 0.1].map(|r: f32| r / 0.65);
        for (id, exact) in (0..).zip(exact) {
            assert!((rest.prob_of(TokenId(id)) - exact).abs() < 1e-6);
        }
    }

    #[test]
    fn a_looked_up_draft_is_a_point_and_stays_exact() {
        let (p, q) = (distribution(&base(0)), Distribution::point(TokenId(1)));
        let mut counts = vec![0; 5];
        for window in 0..WINDOWS {
            let u = ChainUniforms::from_key(&key(window), 1);
            let rows = [p.clone(), p.clone()];
            let accepted = accept_chain(&[TokenId(1)], &rows, std::slice::from_ref(&q), &u);
            counts[if accepted.prefix == 1 { 1 } else { accepted.next.index() }] += 1;
        }
        assert_law(&counts, &base(0).map(f64::from));
    }

    #[test]
    fn every_position_of_a_chain_has_its_own_numbers() {
        let chain = ChainUniforms::from_key(&key(10), 3);
        assert_eq!(chain.next[3], uniform(&key(13)));
        assert_eq!(chain.accept[1], uniform(&key(11).with_purpose(Purpose::Accept)));
        let later = ChainUniforms::from_key(&key(11), 2);
        assert_eq!(chain.accept[1..], later.accept);
        assert_eq!(chain.next[1..], later.next);
    }

    #[test]
    #[should_panic(expected = "lengths of a window of 1 drafted tokens")]
    fn rows_of_another_window_are_refused() {
        let p = distribution(&base(0));
        let uniforms = ChainUniforms::from_key(&key(0), 1);
        let one = std::slice::from_ref(&p);
        let _ = accept_chain(&[TokenId(0)], one, one, &uniforms);
    }

    proptest! {
        #[test]
        fn greedy_windows_reproduce_plain_greedy_decoding(
            draft in prop::collection::vec(0..3_u32, 0..8),
            base in prop::collection::vec(0..3_u32, 8),
        ) {
            let draft: Vec<TokenId> = draft.into_iter().map(TokenId).collect();
            let base: Vec<TokenId> = base.into_iter().take(draft.len() + 1).map(TokenId).collect();
            prop_assume!(base.len() == draft.len() + 1);
            let prefix = Window::chain(draft.clone()).accept(&base).len();
            let accepted = Accepted { prefix, next: base[prefix] };
            let mut emitted = draft[..accepted.prefix].to_vec();
            emitted.push(accepted.next);
            prop_assert_eq!(&emitted[..], &base[..emitted.len()]);
            prop_assert!(accepted.prefix == draft.len() || accepted.next != draft[accepted.prefix]);
            // The sampled rule on point masses is the greedy rule.
            let points: Vec<_> = base.iter().map(|&id| Distribution::point(id)).collect();
            let drafts: Vec<_> = draft.iter().map(|&id| Distribution::point(id)).collect();
            let uniforms = ChainUniforms::from_key(&key(0), draft.len());
            prop_assert_eq!(accept_chain(&draft, &points, &drafts, &uniforms), accepted);
        }
    }
}

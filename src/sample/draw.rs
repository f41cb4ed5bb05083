//! From a row of logits to a token.
//!
//! The order is Hugging Face's: bias and penalties on raw logits, temperature, top-k, top-p, min-p,
//! then one uniform number through the inverse cumulative distribution in order of token id.
//! Equal logits or probabilities rank by id, the lower first, and so does the boundary of top-k:
//! exactly `k` tokens stay. The likeliest token always stays.
//!
//! No full sort: top-k is one pass against a rising bar, top-p a quickselect over the few tokens
//! that can matter. [`Scratch`] owns all memory. Read next: [`super::distribution`].

use crate::ids::TokenId;

use super::distribution::{Distribution, Entry, MASS_ONE, draw, exp_nonpositive, mass};
use super::params::SamplingParams;
use super::penalty::{self, History, Marks};
use super::philox::{Key, uniform};
use super::stats::{argmax, cleaned, maximum, stats};

/// Memory that [`process`] and [`sample`] reuse; one per thread, for any vocabulary.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    marks: Marks,
    ranked: Vec<Ranked>,
    weights: Vec<f32>,
    candidates: Vec<Entry>,
    entries: Vec<Entry>,
}

/// A token that may survive top-k.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    id: TokenId,
    logit: f32,
}

/// A drawn token and what the raw logits say about it, at temperature 1 and without truncation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Entropy of the row, in nats.
    pub entropy_nats: f32,
    /// Probability of the likeliest token.
    pub top1_prob: f32,
}

/// The distribution that `params` makes of one row of logits, `[V]`.
///
/// Greedy parameters give the likeliest token probability 1. Logits that are not finite are treated
/// as in [`super::stats`]; a row without any finite logit gives token 0 probability 1. Parameters
/// outside their ranges ([`SamplingParams::validate`]) never panic but may truncate oddly.
#[must_use]
pub fn process<'a>(
    logits: &[f32],
    params: &SamplingParams,
    history: &History<'_>,
    scratch: &'a mut Scratch,
) -> Distribution<'a> {
    let Scratch { logits: edited, marks, ranked, weights, candidates, entries } = scratch;
    let logits = if params.edits_logits() {
        edited.clear();
        edited.extend_from_slice(logits);
        penalty::apply(edited, params, history, marks);
        edited.as_slice()
    } else {
        logits
    };
    entries.clear();
    let max = maximum(logits);
    if params.is_greedy() || max == f32::NEG_INFINITY {
        entries.push(Entry { id: argmax(logits), mass: MASS_ONE });
        return Distribution::from_entries(entries.as_slice());
    }
    let scale = Scale { max, inverse: 1.0 / params.temperature };
    let k = params.top_k as usize;
    let nucleus = if k > 0 && k < logits.len() {
        select_top_k(logits, k, ranked);
        ranked.sort_unstable_by_key(|token| token.id);
        let masses = ranked.iter().map(|token| (token.id, mass(scale.weight(token.logit))));
        entries.extend(masses.filter(|(_, mass)| *mass > 0).map(|(id, mass)| Entry { id, mass }));
        Nucleus::of(entries.iter().map(|entry| entry.mass).sum(), params.top_p)
    } else {
        let nucleus = Nucleus::of(weigh(logits, scale, weights), params.top_p);
        let bar = nucleus.bar(logits.len());
        let masses = weights.iter().zip(0..).map(|(&weight, id)| (TokenId(id), mass(weight)));
        entries.extend(masses.filter(|(_, mass)| *mass > bar).map(|(id, mass)| Entry { id, mass }));
        nucleus
    };
    if params.top_p < 1.0 {
        nucleus.keep(entries, candidates);
    }
    if params.min_p > 0.0 {
        let bar = f64::from(params.min_p.min(1.0)) * MASS_ONE as f64;
        entries.retain(|entry| entry.mass as f64 >= bar);
    }
    Distribution::from_entries(entries.as_slice())
}

/// Draws one token with the random number named by `key` (purpose [`super::Purpose::Draw`]).
#[must_use]
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    history: &History<'_>,
    key: &Key,
    scratch: &mut Scratch,
) -> Sampled {
    let stats = stats(logits);
    let id = if params.is_greedy() && !params.edits_logits() {
        stats.top1.0
    } else {
        draw(&process(logits, params, history, scratch), uniform(key))
    };
    Sampled {
        id,
        logprob: stats.logprob_of(logits, id),
        entropy_nats: stats.entropy_nats,
        top1_prob: stats.top1.1,
    }
}

/// Temperature, relative to the largest logit: the likeliest token weighs exactly 1.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    inverse: f32,
}

impl Scale {
    /// `exp((logit - max) / T)`: a subtraction, a multiplication, never fused.
    #[inline]
    fn weight(self, logit: f32) -> f32 {
        exp_nonpositive((cleaned(logit) - self.max) * self.inverse)
    }
}

/// Weights of the whole vocabulary, `[V]`, and the sum of their masses.
fn weigh(logits: &[f32], scale: Scale, weights: &mut Vec<f32>) -> u64 {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| scale.weight(logit)));
    weights.iter().map(|&weight| mass(weight)).sum()
}

/// Leaves in `ranked` the `k` largest logits, in no order; of equals at the boundary the lower ids.
fn select_top_k(logits: &[f32], k: usize, ranked: &mut Vec<Ranked>) {
    let room = 2 * k.max(256);
    let cut = |ranked: &mut Vec<Ranked>| {
        ranked.select_nth_unstable_by(k - 1, |a, b| {
            b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id))
        });
        ranked.truncate(k);
        ranked[k - 1].logit
    };
    ranked.clear();
    let mut bar = None;
    for (&logit, id) in logits.iter().zip(0..) {
        let logit = cleaned(logit);
        // Ids rise, so a later token that only equals the bar has lost against k lower ids.
        if bar.is_none_or(|bar| logit > bar) {
            ranked.push(Ranked { id: TokenId(id), logit });
            if ranked.len() == room {
                bar = Some(cut(ranked));
            }
        }
    }
    if ranked.len() > k {
        cut(ranked);
    }
}

/// The fewest likeliest tokens whose masses reach `target`, which is a share of `total`.
#[derive(Clone, Copy)]
struct Nucleus {
    total: u64,
    target: u64,
}

impl Nucleus {
    fn of(total: u64, top_p: f32) -> Self {
        let target = (f64::from(top_p) * total as f64).ceil() as u64;
        Self { total, target: target.clamp(1, total) }
    }

    /// A mass that no token of the nucleus is at or below, given `count` tokens in all.
    ///
    /// Tokens at or below it sum to at most `total - target`, so the rest reaches the target. For
    /// language models this leaves out nearly the whole vocabulary; zero when nothing may go.
    fn bar(self, count: usize) -> u64 {
        (self.total - self.target) / count as u64
    }

    /// Keeps the nucleus of `entries`, whose masses reach the target, without reordering them.
    fn keep(self, entries: &mut Vec<Entry>, candidates: &mut Vec<Entry>) {
        candidates.clear();
        candidates.extend_from_slice(entries);
        let last = self.last_of(candidates);
        entries.retain(|entry| by_rank(entry, &last).is_le());
    }

    /// The least likely token of the nucleus, by quickselect on running sums.
    fn last_of(self, candidates: &mut [Entry]) -> Entry {
        // Those left of the window outrank it and lack `missing` of the target; it reaches that.
        let (mut window, mut missing) = (candidates, self.target);
        while window.len() > 1 {
            let half = window.len() / 2;
            window.select_nth_unstable_by(half, by_rank);
            let (upper, lower) = window.split_at_mut(half);
            let sum: u64 = upper.iter().map(|entry| entry.mass).sum();
            if sum >= missing {
                window = upper;
            } else {
                missing -= sum;
                window = lower;
            }
        }
        window[0]
    }
}

/// The likelier first; of equals, the lower id.
fn by_rank(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    b.mass.cmp(&a.mass).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests;

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
use super::stats::{CHUNK, argmax, cleaned, maximum, stats};

/// Memory that [`process`] and [`sample`] reuse; one per thread, for any vocabulary.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    marks: Marks,
    ranked: Vec<Ranked>,
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
    let Scratch { logits: edited, marks, ranked, entries } = scratch;
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
    if k > 0 && k < logits.len() {
        select_top_k(logits, k, ranked);
        ranked.sort_unstable_by_key(|token| token.id);
        entries.extend(
            ranked.iter().map(|token| Entry { id: token.id, mass: scale.mass(token.logit) }),
        );
        entries.retain(|entry| entry.mass > 0);
    } else {
        weigh(logits, scale, entries);
    }
    if params.top_p < 1.0 {
        keep_nucleus(entries, params.top_p);
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
    /// `exp((logit - max) / T)` as a mass. A subtraction, a multiplication, never fused.
    #[inline]
    fn mass(self, logit: f32) -> u64 {
        mass(exp_nonpositive((cleaned(logit) - self.max) * self.inverse))
    }
}

/// Masses of the whole vocabulary; tokens without mass are left out.
fn weigh(logits: &[f32], scale: Scale, entries: &mut Vec<Entry>) {
    let mut masses = [0_u64; CHUNK];
    for (chunk, first) in logits.chunks(CHUNK).zip((0_u32..).step_by(CHUNK)) {
        for (mass, &logit) in masses.iter_mut().zip(chunk) {
            *mass = scale.mass(logit);
        }
        let found = masses[..chunk.len()].iter().zip(first..);
        entries.extend(
            found.filter(|(mass, _)| **mass > 0).map(|(&mass, id)| Entry { id: TokenId(id), mass }),
        );
    }
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

/// Keeps the fewest likeliest entries whose masses reach `top_p` of the total, ascending by id.
fn keep_nucleus(entries: &mut Vec<Entry>, top_p: f32) {
    let total: u64 = entries.iter().map(|entry| entry.mass).sum();
    let target = ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total);
    // Everything at or below this bar sums to at most `total - target`, so the nucleus is reached
    // without it. For language models this removes nearly the whole vocabulary.
    let bar = (total - target) / entries.len() as u64;
    entries.retain(|entry| entry.mass > bar);
    let len = nucleus_len(entries, target);
    entries.truncate(len);
    entries.sort_unstable_by_key(|entry| entry.id);
}

/// Moves the likeliest entries that together reach `target` to the front and counts them.
fn nucleus_len(entries: &mut [Entry], target: u64) -> usize {
    // entries[..low] outrank the rest and lack `missing` of the target; entries[low..high] have it.
    let (mut low, mut high, mut missing) = (0, entries.len(), target);
    while high - low > 1 {
        let half = (high - low) / 2;
        let window = &mut entries[low..high];
        window.select_nth_unstable_by(half, |a, b| b.mass.cmp(&a.mass).then(a.id.cmp(&b.id)));
        let upper: u64 = window[..half].iter().map(|entry| entry.mass).sum();
        if upper >= missing {
            high = low + half;
        } else {
            missing -= upper;
            low += half;
        }
    }
    high
}

#[cfg(test)]
mod tests;

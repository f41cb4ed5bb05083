//! What a row of logits says about certainty: likeliest token, log-sum-exp, entropy.
//!
//! All sums are integer sums of fixed-point terms (see [`super::distribution`]), so their order is
//! free. Non-finite logits are an error of the forward pass; here NaN counts as minus infinity and
//! plus infinity as the largest `f32`, so that no input panics.

use crate::ids::TokenId;

use super::distribution::{MASS_ONE, exp_nonpositive, mass};

/// Logits handled at a time, in separate loops that vectorise.
const CHUNK: usize = 64;

/// The softmax of one row of logits at temperature 1, summarised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// `ln Σ exp(logit)`, in nats.
    pub logsumexp: f64,
    /// Shannon entropy, in nats.
    pub entropy_nats: f32,
    /// The likeliest token (the lowest id among equals) and its probability.
    pub top1: (TokenId, f32),
}

impl Stats {
    /// Natural logarithm of the probability of `id` in the row the statistics were taken from.
    ///
    /// Minus infinity for a token outside the row or of probability zero.
    #[must_use]
    pub fn logprob_of(&self, logits: &[f32], id: TokenId) -> f32 {
        match logits.get(id.index()).map(|&l| cleaned(l)) {
            Some(logit) if logit > f32::NEG_INFINITY => (f64::from(logit) - self.logsumexp) as f32,
            _ => f32::NEG_INFINITY,
        }
    }
}

/// NaN as minus infinity, plus infinity as the largest finite number.
#[inline]
pub(super) fn cleaned(logit: f32) -> f32 {
    let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    if logit > f32::MAX { f32::MAX } else { logit }
}

/// The largest logit after cleaning; minus infinity for an empty row.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    // One running maximum per lane compiles to vector maxima; NaN loses every comparison.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut chunks = logits.chunks_exact(lanes.len());
    for chunk in &mut chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let rest = chunks.remainder().iter().copied();
    cleaned(lanes.into_iter().chain(rest).fold(f32::NEG_INFINITY, |m, l| if l > m { l } else { m }))
}

/// The likeliest token; of equals, the lowest id. A row without any finite logit gives token 0.
#[must_use]
pub fn argmax(logits: &[f32]) -> TokenId {
    let max = maximum(logits);
    let index = logits.iter().position(|&logit| cleaned(logit) == max).unwrap_or(0);
    TokenId(index as u32)
}

/// Summarises one row of logits, `[V]`.
///
/// A row without any finite logit is taken as certain of token 0.
#[must_use]
pub fn stats(logits: &[f32]) -> Stats {
    let max = maximum(logits);
    let top = argmax(logits);
    if max == f32::NEG_INFINITY {
        return Stats { logsumexp: f64::from(max), entropy_nats: 0.0, top1: (top, 1.0) };
    }
    let (mut total, mut spread) = (0_u64, 0_u64);
    let (mut gaps, mut weights) = ([0.0_f32; CHUNK], [0.0_f32; CHUNK]);
    for chunk in logits.chunks(CHUNK) {
        for ((gap, weight), &logit) in gaps.iter_mut().zip(&mut weights).zip(chunk) {
            let difference = cleaned(logit) - max;
            // Beyond -87 the weight is zero; the bound keeps zero times infinity away.
            *gap = if difference > -88.0 { -difference } else { 88.0 };
            *weight = exp_nonpositive(-*gap);
        }
        for (&gap, &weight) in gaps.iter().zip(&weights[..chunk.len()]) {
            total += mass(weight);
            // x·exp(-x) never exceeds 1/e.
            spread += mass(weight * gap);
        }
    }
    let one = MASS_ONE as f64;
    let log_total = (total as f64 / one).ln();
    Stats {
        logsumexp: f64::from(max) + log_total,
        // H = ln Z + Σ w·(max - logit) / Z, with Z and w relative to the largest logit.
        entropy_nats: (log_total + spread as f64 / total as f64) as f32,
        top1: (top, (one / total as f64) as f32),
    }
}

/// The `n` likeliest tokens of one row of logits and their log-probabilities, in nats, likeliest
/// first; of equals, the lower id first. Fewer where the row is shorter.
#[must_use]
pub fn likeliest(logits: &[f32], n: usize) -> Vec<(TokenId, f32)> {
    let summary = stats(logits);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| {
        cleaned(logits[*b as usize]).total_cmp(&cleaned(logits[*a as usize])).then(a.cmp(b))
    };
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids.into_iter().map(|id| (TokenId(id), summary.logprob_of(logits, TokenId(id)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_likeliest_come_in_order_and_equals_by_id() {
        let logits = [1.0, 3.0, f32::NAN, 3.0, 2.0];
        let ids = |n| likeliest(&logits, n).into_iter().map(|t| t.0.0).collect::<Vec<_>>();
        assert_eq!(ids(3), [1, 3, 4]);
        assert_eq!(ids(9), [1, 3, 4, 0, 2], "a row gives what it has");
        assert!(ids(0).is_empty());
        let z: f64 = [1.0_f64, 3.0, 3.0, 2.0].iter().map(|l| l.exp()).sum();
        assert!((f64::from(likeliest(&logits, 1)[0].1) - (3.0 - z.ln())).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn the_statistics_equal_their_definitions_in_double_precision(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..400),
        ) {
            let z: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let entropy: f64 = logits
                .iter()
                .map(|&l| f64::from(l).exp() / z)
                .map(|p| if p > 0.0 { -p * p.ln() } else { 0.0 })
                .sum();
            let stats = stats(&logits);
            prop_assert!((stats.logsumexp - z.ln()).abs() < 1e-5);
            prop_assert!((f64::from(stats.entropy_nats) - entropy).abs() < 1e-5);
            for (id, &logit) in logits.iter().enumerate() {
                let exact = f64::from(logit) - z.ln();
                let got = f64::from(stats.logprob_of(&logits, TokenId(id as u32)));
                prop_assert!((got - exact).abs() < 1e-5);
            }
            let top = f64::from(stats.top1.1).ln();
            prop_assert!((top - f64::from(stats.logprob_of(&logits, stats.top1.0))).abs() < 1e-5);
        }

        #[test]
        fn the_order_of_the_vocabulary_does_not_change_a_single_bit(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..400).prop_shuffle(),
        ) {
            let mut sorted = logits.clone();
            sorted.sort_by(f32::total_cmp);
            let (a, b) = (stats(&logits), stats(&sorted));
            prop_assert_eq!(a.logsumexp.to_bits(), b.logsumexp.to_bits());
            prop_assert_eq!(a.entropy_nats.to_bits(), b.entropy_nats.to_bits());
        }
    }

    #[test]
    fn ties_go_to_the_lower_id_and_the_two_zeros_are_equal() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), TokenId(1));
        assert_eq!(argmax(&[-1.0, -0.0, 0.0]), TokenId(1));
        let mut row = vec![0.0; 1000];
        row[700] = 1.0;
        row[701] = 1.0;
        assert_eq!(argmax(&row), TokenId(700));
    }

    #[test]
    fn uniform_logits_have_the_entropy_of_their_count() {
        let stats = stats(&[0.25; 1024]);
        assert!((f64::from(stats.entropy_nats) - 1024_f64.ln()).abs() < 1e-6);
        assert_eq!(stats.top1, (TokenId(0), 1.0 / 1024.0));
    }

    #[test]
    fn no_logit_panics() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(argmax(&[]), TokenId(0));
        assert_eq!(argmax(&[nan, -inf]), TokenId(0));
        assert_eq!(argmax(&[nan, 1.0, inf, inf]), TokenId(2));
        assert_eq!(stats(&[nan, 1.0, -inf]).top1, (TokenId(1), 1.0));
        assert_eq!(stats(&[nan, nan]).top1, (TokenId(0), 1.0));
        assert_eq!(stats(&[1.0, inf]).top1, (TokenId(1), 1.0));
        assert_eq!(stats(&[]).entropy_nats, 0.0);
    }
}

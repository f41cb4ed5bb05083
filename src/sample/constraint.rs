//! Drawing under a constraint that says which tokens may come next, such as a grammar.
//!
//! The constraint decides what is possible, the model's probabilities what is taken: all other
//! tokens are as if their logits were minus infinity. What a draw reports of the row (log-
//! probability, entropy) is still that of the raw row.

use super::draw::{Sampled, Scratch, sample};
use super::params::SamplingParams;
use super::penalty::History;
use super::philox::Key;
use super::stats::stats;
use crate::ids::TokenId;
use std::sync::Arc;

/// Follows a text token by token and says what may come next.
pub trait Constraint: Send {
    /// The tokens that may come next: bit `id % 32` of word `id / 32`.
    ///
    /// # Errors
    /// When the constraint cannot be followed any further.
    fn allowed(&mut self) -> Result<Vec<u32>, String>;

    /// These tokens came.
    ///
    /// # Errors
    /// When one of them was not allowed.
    fn push(&mut self, ids: &[TokenId]) -> Result<(), String>;

    /// The last `n` tokens did not come after all.
    ///
    /// # Errors
    /// When fewer came.
    fn forget(&mut self, n: usize) -> Result<(), String>;

    /// Another that stands where this one does.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// Makes [`Constraint`]s that stand at their beginning. Cloning shares it.
#[derive(Clone)]
pub struct Grammar(Arc<dyn Fn() -> Box<dyn Constraint> + Send + Sync>);

impl Grammar {
    /// A grammar whose constraints `begin` makes.
    pub fn new(begin: impl Fn() -> Box<dyn Constraint> + Send + Sync + 'static) -> Self {
        Self(Arc::new(begin))
    }

    /// A constraint at its beginning.
    #[must_use]
    pub fn begin(&self) -> Box<dyn Constraint> {
        self.0()
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

/// Draws one token of `logits` for which `allowed` holds, as [`sample`] would if all others were
/// impossible. Where none is allowed, token 0 is drawn.
#[must_use]
pub fn sample_allowed(
    logits: &[f32],
    allowed: impl Fn(TokenId) -> bool,
    params: &SamplingParams,
    history: &History<'_>,
    key: &Key,
    scratch: &mut Scratch,
) -> Sampled {
    let mask = |(id, logit): (u32, &f32)| match allowed(TokenId(id)) {
        true => *logit,
        false => f32::NEG_INFINITY,
    };
    let masked: Vec<f32> = (0..).zip(logits).map(mask).collect();
    let id = sample(&masked, params, history, key, scratch).id;
    let raw = stats(logits);
    Sampled {
        id,
        logprob: raw.logprob_of(logits, id),
        entropy_nats: raw.entropy_nats,
        top1_prob: raw.top1.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BranchId, Role};
    use crate::sample::Purpose;

    fn draw(temperature: f32, position: u32, allowed: &[u32]) -> Sampled {
        let logits = [0.5f32, 2.0, 1.0, 3.0, -1.0];
        let params = SamplingParams { temperature, ..SamplingParams::greedy() };
        let (branch, role, purpose) = (BranchId::ROOT, Role::Base, Purpose::Draw);
        let key = Key { seed: 7, branch, position, role, purpose };
        let history = History { prompt: &[], generated: &[] };
        let holds = |id: TokenId| allowed.contains(&id.0);
        sample_allowed(&logits, holds, &params, &history, &key, &mut Scratch::default())
    }

    #[test]
    fn only_what_is_allowed_is_drawn_and_the_rest_shares_its_odds() {
        assert_eq!(draw(0.0, 0, &[0, 2, 4]).id, TokenId(2));
        let mut counts = [0; 5];
        (0..4000).for_each(|position| counts[draw(1.0, position, &[0, 1]).id.index()] += 1);
        assert_eq!(counts[2] + counts[3] + counts[4], 0);
        // exp(0.5) against exp(2): 18.2 % and 81.8 %, with a standard deviation of 0.6 %.
        assert!((0.16..0.205).contains(&(f64::from(counts[0]) / 4000.0)), "{counts:?}");
    }

    #[test]
    fn what_is_reported_is_that_of_the_raw_row() {
        let sum: f64 = [0.5f64, 2.0, 1.0, 3.0, -1.0].iter().map(|l| l.exp()).sum();
        let drawn = draw(0.0, 0, &[1]);
        assert!((f64::from(drawn.logprob) - (2.0 - sum.ln())).abs() < 1e-5);
        assert!((f64::from(drawn.top1_prob) - 3.0f64.exp() / sum).abs() < 1e-5);
    }
}

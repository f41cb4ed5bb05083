//! Gates: when the draft does not write, and when the base is not asked.
//!
//! *Before drafting*: a draft that hesitates over its first token (high entropy) leaves the step to
//! the base (GlimpRouter, arXiv 2601.05110). *Instead of scoring*: a step the draft was sure of is
//! kept unscored, unless it hesitates in words or says what the step before it said (TrigReason).
//! *Merging*: the end of a step counts only after so many tokens, so that short steps are scored
//! together. All of them trade the judge's look for time: off unless asked for.

use super::command::TokenStats;
use crate::ids::TokenId;
use serde::{Deserialize, Serialize};

/// Bounds of the gates; what is absent is off.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Gates {
    /// The base writes a step whose first drafted token came from more entropy than this, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_max: Option<f32>,
    /// A step is kept unscored whose tokens were, in the geometric mean, at least so likely the
    /// draft's likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence_min: Option<f32>,
    /// The delimiter ends a drafted step from so many tokens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_tokens: Option<u32>,
}

impl Gates {
    /// Whether any is on.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether the draft was sure of the tokens of `stats`.
    #[must_use]
    pub fn is_sure(&self, stats: &[TokenStats]) -> bool {
        self.confidence_min.is_some_and(|min| confidence(stats).is_some_and(|c| c >= min))
    }
}

/// The geometric mean of the probabilities of the likeliest tokens, `None` if none was measured.
#[must_use]
pub fn confidence(stats: &[TokenStats]) -> Option<f32> {
    let logs: Option<Vec<f32>> = stats.iter().map(|s| s.top1.map(f32::ln)).collect();
    let logs = logs.filter(|logs| !logs.is_empty())?;
    Some((logs.iter().sum::<f32>() / logs.len() as f32).exp())
}

/// Whether any of `phrases` occurs in `ids`.
#[must_use]
pub fn says_any(ids: &[TokenId], phrases: &[Vec<TokenId>]) -> bool {
    phrases.iter().any(|phrase| {
        !phrase.is_empty() && ids.windows(phrase.len()).any(|window| window == phrase.as_slice())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(top1: f32) -> TokenStats {
        TokenStats { top1: Some(top1), ..TokenStats::default() }
    }

    #[test]
    fn one_unsure_token_lowers_the_mean_and_an_unmeasured_one_ends_it() {
        let mean = confidence(&[stats(0.9), stats(0.4)]).unwrap();
        assert!((mean - 0.6).abs() < 1e-6, "{mean}");
        assert_eq!(confidence(&[]), None);
        assert_eq!(confidence(&[stats(0.9), TokenStats::default()]), None);
        let gates = Gates { confidence_min: Some(0.6), ..Gates::default() };
        assert!(gates.is_sure(&[stats(0.7)]) && !gates.is_sure(&[stats(0.5)]));
        assert!(!Gates::default().is_sure(&[stats(1.0)]), "off");
    }

    #[test]
    fn a_phrase_is_found_whole_or_not_at_all() {
        let ids = [3, 1, 4, 1, 5].map(TokenId);
        let phrase = |ids: &[u32]| vec![ids.iter().copied().map(TokenId).collect::<Vec<_>>()];
        assert!(says_any(&ids, &phrase(&[4, 1])));
        assert!(!says_any(&ids, &phrase(&[4, 5])));
        assert!(!says_any(&ids, &phrase(&[])), "nothing is no phrase");
    }
}

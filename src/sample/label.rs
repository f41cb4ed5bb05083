//! Reading a judge's verdict off the logits of a label set.
//!
//! A judge answers with one token of a small set, usually the digits 0 to 9. The logits of those
//! tokens alone become probabilities, the probabilities one score, and the score a decision. Sums
//! run in label order, so the same logits give the same score everywhere.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::distribution::exp_nonpositive;
use super::stats::{cleaned, maximum};

/// The cut-off of [`Readout::Prob`] where none is given: accept what is more likely good than not.
pub const CUTOFF: f32 = 0.5;

/// How the probabilities of the digits become one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readout {
    /// The likeliest digit, as if the judge had written it greedily (SpecReason's code).
    #[default]
    Greedy,
    /// The expected digit.
    #[serde(alias = "average")]
    Mean,
    /// The probability that the digit reaches the threshold.
    Prob,
}

impl Readout {
    /// The name used on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::Mean => "mean",
            Self::Prob => "prob",
        }
    }
}

impl std::fmt::Display for Readout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A read-out that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("score read-out {0:?} does not exist; expected greedy, mean (or average) or prob")]
pub struct ParseReadoutError(String);

impl FromStr for Readout {
    type Err = ParseReadoutError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "greedy" => Ok(Self::Greedy),
            "mean" | "average" => Ok(Self::Mean),
            "prob" => Ok(Self::Prob),
            other => Err(ParseReadoutError(other.to_owned())),
        }
    }
}

/// The softmax over a label set, in label order.
///
/// Logits that are not finite are treated as in [`super::stats`]; if none is finite, every label
/// is equally likely.
#[must_use]
pub fn softmax_labels(logits: &[f32]) -> Vec<f32> {
    let max = maximum(logits);
    if max == f32::NEG_INFINITY {
        return vec![1.0 / logits.len() as f32; logits.len()];
    }
    let mut probs: Vec<f32> = logits.iter().map(|&l| exp_nonpositive(cleaned(l) - max)).collect();
    let total: f32 = probs.iter().sum();
    probs.iter_mut().for_each(|p| *p /= total);
    probs
}

/// One score from the probabilities of the digits 0, 1, 2 …, in that order.
///
/// Greedy: the likeliest digit, the lower of equals. Mean: the expectation, in digits. Prob: the
/// probability that the digit is at least `threshold`, exactly 1 (0) if every (no) digit is.
#[must_use]
pub fn score(readout: Readout, probs: &[f32], threshold: f32) -> f32 {
    let digits = || probs.iter().zip(0_u16..).map(|(&p, digit)| (p, f32::from(digit)));
    match readout {
        Readout::Greedy => {
            let best = digits().fold((f32::NEG_INFINITY, 0.0), |best, label| {
                if label.0 > best.0 { label } else { best }
            });
            best.1
        }
        Readout::Mean => digits().map(|(p, digit)| p * digit).sum(),
        Readout::Prob => {
            // Sums of rounded probabilities miss 1 by a few ulp; degenerate thresholds must not.
            if digits().all(|(_, digit)| digit >= threshold) {
                return 1.0;
            }
            let reached = digits().filter(|&(_, digit)| digit >= threshold);
            reached.map(|(p, _)| p).sum::<f32>().min(1.0)
        }
    }
}

/// Whether a step with this score is kept.
///
/// `score` is what [`score`] returned for the same read-out and threshold. `cutoff` only concerns
/// [`Readout::Prob`] (usually [`CUTOFF`]), which never keeps a step of probability 0. A score that
/// is not a number keeps nothing.
#[must_use]
pub fn accepts(readout: Readout, score: f32, threshold: f32, cutoff: f32) -> bool {
    match readout {
        Readout::Greedy | Readout::Mean => score >= threshold,
        Readout::Prob => score > 0.0 && score >= cutoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBS: [f32; 10] = [0.0, 0.0, 0.1, 0.0, 0.0, 0.1, 0.0, 0.3, 0.3, 0.2];

    #[test]
    fn the_three_readouts_equal_hand_computed_scores() {
        assert_eq!(score(Readout::Greedy, &PROBS, 7.0), 7.0);
        assert!((score(Readout::Mean, &PROBS, 7.0) - 7.0).abs() < 1e-6);
        assert!((score(Readout::Prob, &PROBS, 7.0) - 0.8).abs() < 1e-6);
        assert!((score(Readout::Prob, &PROBS, 5.5) - 0.8).abs() < 1e-6);
        assert!((score(Readout::Prob, &PROBS, 9.0) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn label_probabilities_equal_the_softmax_in_double_precision() {
        let logits = [1.5, -3.0, 0.0, 7.25, 7.0, -20.0, 2.0, 3.0, 6.5, 0.25_f32];
        let z: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (p, l) in softmax_labels(&logits).into_iter().zip(logits) {
            assert!((f64::from(p) - f64::from(l).exp() / z).abs() < 1e-7);
        }
    }

    #[test]
    fn threshold_zero_keeps_every_step_and_an_impossible_one_none() {
        for seed in 0..1000_u32 {
            let logits: Vec<f32> =
                (0..10).map(|i| (seed.wrapping_mul(2_654_435_761) >> i) as f32 * 1e-9).collect();
            let probs = softmax_labels(&logits);
            for readout in [Readout::Greedy, Readout::Mean, Readout::Prob] {
                for cutoff in [0.0, CUTOFF, 1.0] {
                    let kept = |t: f32| accepts(readout, score(readout, &probs, t), t, cutoff);
                    assert!(kept(0.0), "{readout} {probs:?}");
                    assert!(!kept(10.0) && !kept(f32::INFINITY), "{readout} {probs:?}");
                }
            }
        }
    }

    #[test]
    fn equal_digits_read_as_the_lower_one() {
        assert_eq!(score(Readout::Greedy, &[0.1, 0.4, 0.1, 0.4], 0.0), 1.0);
    }

    #[test]
    fn bad_logits_never_panic_and_never_pass_by_accident() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(softmax_labels(&[]), Vec::<f32>::new());
        assert_eq!(softmax_labels(&[nan, -inf]), [0.5, 0.5]);
        assert_eq!(softmax_labels(&[nan, 3.0]), [0.0, 1.0]);
        assert_eq!(softmax_labels(&[inf, 3.0]), [1.0, 0.0]);
        for readout in [Readout::Greedy, Readout::Mean, Readout::Prob] {
            assert!(!accepts(readout, nan, 0.0, 0.0));
        }
    }

    #[test]
    fn names_round_trip_and_average_means_mean() {
        for readout in [Readout::Greedy, Readout::Mean, Readout::Prob] {
            assert_eq!(readout.name().parse(), Ok(readout));
            let json = serde_json::to_string(&readout).unwrap();
            assert_eq!(json, format!("\"{readout}\""));
            assert_eq!(serde_json::from_str::<Readout>(&json).unwrap(), readout);
        }
        assert_eq!("average".parse(), Ok(Readout::Mean));
        assert_eq!(serde_json::from_str::<Readout>("\"average\"").unwrap(), Readout::Mean);
        let error = "median".parse::<Readout>().unwrap_err().to_string();
        assert!(error.contains("\"median\"") && error.contains("expected greedy"), "{error}");
    }
}

//! Pearson's test against a closed-form law, for the tests of this module only, and the two toy
//! models whose windows are put to it.

use super::{Distribution, Key, Purpose};
use crate::ids::{BranchId, Role, TokenId};

/// Windows drawn for one test.
pub(super) const WINDOWS: u32 = 100_000;

/// The random number of a place.
pub(super) fn key(position: u32) -> Key {
    Key { seed: 3, branch: BranchId(1), position, role: Role::Base, purpose: Purpose::Draw }
}

/// Of ids 0, 1, … by weight.
pub(super) fn distribution(weights: &[f32]) -> Distribution<'static> {
    let weights: Vec<_> = weights.iter().zip(0..).map(|(&w, id)| (TokenId(id), w)).collect();
    Distribution::from_weights(&weights).unwrap()
}

/// What the base says after a token, as language models do.
pub(super) fn base(previous: usize) -> [f32; 5] {
    [
        [0.30, 0.25, 0.20, 0.15, 0.10],
        [0.05, 0.50, 0.00, 0.25, 0.20],
        [0.90, 0.02, 0.02, 0.03, 0.03],
        [0.20, 0.20, 0.20, 0.20, 0.20],
        [0.00, 0.10, 0.60, 0.30, 0.00],
    ][previous]
}

/// A draft that overlaps the base badly, with support the base lacks and the reverse.
pub(super) fn drafted(previous: usize) -> [f32; 5] {
    [
        [0.10, 0.10, 0.50, 0.30, 0.00],
        [0.40, 0.10, 0.30, 0.10, 0.10],
        [0.20, 0.20, 0.20, 0.20, 0.20],
        [0.00, 0.00, 0.00, 0.90, 0.10],
        [0.25, 0.25, 0.25, 0.25, 0.00],
    ][previous]
}

/// Smallest expected count of a cell; rarer outcomes are pooled into one.
const EXPECTED_MIN: f64 = 5.0;

/// Standard normal deviate of the statistic (Wilson-Hilferty): about N(0, 1) if the law holds.
///
/// An outcome of probability zero that was seen gives infinity.
pub(super) fn deviate(counts: &[u64], law: &[f64]) -> f64 {
    assert_eq!(counts.len(), law.len());
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut statistic, mut cells) = (0.0, 0);
    let mut cell = |seen: f64, expected: f64| {
        statistic += (seen - expected).powi(2) / expected;
        cells += 1;
    };
    let (mut rare_seen, mut rare_expected) = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(law) {
        let (seen, expected) = (count as f64, p * draws);
        if expected >= EXPECTED_MIN {
            cell(seen, expected);
        } else {
            rare_seen += seen;
            rare_expected += expected;
        }
    }
    if rare_expected > 0.0 {
        cell(rare_seen, rare_expected);
    } else if rare_seen > 0.0 {
        return f64::INFINITY;
    }
    if cells < 2 {
        return 0.0;
    }
    let freedom = f64::from(cells - 1);
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// Asserts that `counts` could come from `law`: one false alarm in about 30,000 seeds.
#[track_caller]
pub(super) fn assert_law(counts: &[u64], law: &[f64]) {
    let z = deviate(counts, law);
    assert!(z < 4.0, "z = {z}: counts {counts:?} against law {law:?}");
}

/// Asserts that `counts` cannot come from `law`.
#[track_caller]
pub(super) fn assert_not_law(counts: &[u64], law: &[f64]) {
    let z = deviate(counts, law);
    assert!(z > 8.0, "z = {z}: a wrong rule passed; counts {counts:?}, law {law:?}");
}

#[test]
fn the_deviate_matches_tabulated_critical_values() {
    // Upper 2.5 % points of chi-square (normal deviate 1.96): 5.024 for 1 degree, 20.483 for 10.
    let off = (5.024_f64 * 10_000.0 / 4.0).sqrt().round() as u64;
    assert!((deviate(&[5_000 + off, 5_000 - off], &[0.5, 0.5]) - 1.96).abs() < 0.1);
    let mut counts = vec![100_000_u64; 11];
    let off = (20.483_f64 * 100_000.0 / 2.0).sqrt().round() as u64;
    counts[0] += off;
    counts[1] -= off;
    assert!((deviate(&counts, &[1.0 / 11.0; 11]) - 1.96).abs() < 0.02);
}

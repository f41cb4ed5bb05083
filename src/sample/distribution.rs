//! A distribution over tokens as integers, and the one way to draw from it.
//!
//! A token's weight `exp(x)`, `x ≤ 0`, is stored as `round(exp(x) · 2⁴⁰)`, its *mass*. Integer sums
//! do not depend on their order, so sequential loops and parallel scans agree to the last bit, and
//! so do top-p cut-offs and drawn tokens. Tokens rarer than 2⁻⁴¹ of the likeliest have no mass:
//! together less than 1e-7 of a vocabulary of 152,064.
//!
//! Read next: [`super::draw`] builds distributions, [`super::accept`] compares them.

use std::borrow::Cow;

use crate::ids::TokenId;

/// The mass of the likeliest token: weight 1.0.
pub const MASS_ONE: u64 = 1 << 40;

/// `exp(x)` for `x ≤ 0` within 2 ulp; zero below -87, where results would become subnormal.
///
/// Only IEEE additions and multiplications in a stated order, none fused: it vectorises, and a
/// kernel that repeats it (`__fmul_rn`, `__fadd_rn`) gets the same bits. The system's `exp` would
/// differ between machines.
#[inline]
#[must_use]
pub fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 = 355/512 + LN_2_LOW; n · 355/512 is exact for every n met here.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor to r⁷: |r| ≤ ln(2)/2, so the first term left out is below 6e-9.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x > -87.0 { series * power } else { 0.0 }
}

/// The mass of a weight in `[0, 1]`: `weight · 2⁴⁰`, rounded to nearest, ties to even.
#[inline]
#[must_use]
pub fn mass(weight: f32) -> u64 {
    // Above 2⁵² the last mantissa bit of an f64 is the unit, so the addition rounds to an integer
    // and the bit pattern counts it. A cast would give the same number but does not vectorise.
    const UNITS: f64 = (1_u64 << 52) as f64;
    (f64::from(weight) * MASS_ONE as f64 + UNITS).to_bits() - UNITS.to_bits()
}

/// One token of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The token.
    pub id: TokenId,
    /// Its unnormalised probability; never zero inside a [`Distribution`].
    pub mass: u64,
}

/// A distribution over the tokens that survived truncation, ascending by token id.
///
/// It always holds at least one token. Probabilities are `mass / total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution<'a> {
    entries: Cow<'a, [Entry]>,
    total: u64,
}

impl<'a> Distribution<'a> {
    /// Wraps entries that are non-empty, ascending by id, of positive mass and a total below 2⁶³.
    pub(super) fn from_entries(entries: impl Into<Cow<'a, [Entry]>>) -> Self {
        let entries = entries.into();
        debug_assert!(!entries.is_empty() && entries.iter().all(|e| e.mass > 0));
        debug_assert!(entries.is_sorted_by(|a, b| a.id < b.id));
        let total = entries.iter().map(|e| e.mass).sum();
        Self { entries, total }
    }

    /// The distribution that always gives `id`: what a greedy or a looked-up draft proposes.
    #[must_use]
    pub fn point(id: TokenId) -> Self {
        Self::from_entries(vec![Entry { id, mass: MASS_ONE }])
    }

    /// A distribution from weights by id, in any order and scale.
    ///
    /// Weights that are zero, negative or not finite are left out, and so are those below 2⁻⁴¹ of
    /// the largest; of a repeated id the first counts. `None` if nothing is left.
    #[must_use]
    pub fn from_weights(weights: &[(TokenId, f32)]) -> Option<Distribution<'static>> {
        let usable = |w: f32| w.is_finite() && w > 0.0;
        let top = weights.iter().map(|&(_, w)| w).filter(|&w| usable(w)).fold(0.0, f32::max);
        let mut entries: Vec<Entry> = weights
            .iter()
            .filter(|&&(_, w)| usable(w))
            .map(|&(id, w)| Entry { id, mass: mass(w / top) })
            .filter(|e| e.mass > 0)
            .collect();
        entries.sort_by_key(|e| e.id);
        entries.dedup_by_key(|e| e.id);
        (!entries.is_empty()).then(|| Distribution::from_entries(entries))
    }

    /// The same distribution, owning its entries.
    #[must_use]
    pub fn into_owned(self) -> Distribution<'static> {
        Distribution { entries: Cow::Owned(self.entries.into_owned()), total: self.total }
    }

    /// The entries, ascending by id.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The sum of all masses.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many tokens can be drawn.
    #[must_use]
    pub fn support(&self) -> usize {
        self.entries.len()
    }

    /// The probability of `id`; 0 for a token that was truncated or does not exist.
    #[must_use]
    pub fn prob_of(&self, id: TokenId) -> f32 {
        self.probability(id) as f32
    }

    /// Tokens and their probabilities, ascending by id.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, f32)> + '_ {
        self.entries.iter().map(|e| (e.id, self.ratio(e.mass) as f32))
    }

    pub(super) fn probability(&self, id: TokenId) -> f64 {
        match self.entries.binary_search_by_key(&id, |e| e.id) {
            Ok(index) => self.ratio(self.entries[index].mass),
            Err(_) => 0.0,
        }
    }

    /// `mass / total`, correctly rounded operations only, so that a kernel can repeat it.
    pub(super) fn ratio(&self, mass: u64) -> f64 {
        mass as f64 / self.total as f64
    }
}

/// The token at `u` in `[0, 1)` of the inverse cumulative distribution, in order of token id.
///
/// With `n = floor(u · 2²⁴)`: the first token whose running sum of masses, its own included,
/// exceeds `floor(n · total / 2²⁴)`. Values outside `[0, 1)` are clamped, NaN counts as 0.
#[must_use]
pub fn draw(distribution: &Distribution<'_>, u: f32) -> TokenId {
    const STEPS: u64 = 1 << 24;
    let n = ((u * STEPS as f32) as u64).min(STEPS - 1);
    let target = (u128::from(n) * u128::from(distribution.total) / u128::from(STEPS)) as u64;
    let mut sum = 0;
    for entry in distribution.entries.iter() {
        sum += entry.mass;
        if sum > target {
            return entry.id;
        }
    }
    unreachable!("the target is below the total, and the total is the sum of a non-empty list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_ulp_everywhere() {
        let mut worst = 0.0_f64;
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * 2_f64.powi(exact.log2().floor() as i32);
            worst = worst.max((f64::from(exp_nonpositive(x)) - exact).abs() / ulp);
        }
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-88.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn a_mass_is_the_rounded_fixed_point_number() {
        for step in 0..30_000 {
            let weight = exp_nonpositive(step as f32 * -1e-3);
            let exact = (f64::from(weight) * MASS_ONE as f64).round_ties_even() as u64;
            assert_eq!(mass(weight), exact);
        }
        assert_eq!(mass(1.0), MASS_ONE);
        assert_eq!(mass(0.0), 0);
    }

    #[test]
    fn the_ends_of_the_unit_interval_give_the_first_and_the_last_token() {
        let weights = [(TokenId(9), 1.0), (TokenId(3), 2.0), (TokenId(5), 1.0)];
        let distribution = Distribution::from_weights(&weights).unwrap();
        for (u, id) in [
            (0.0, 3),
            (0.499_999_97, 3),
            (0.5, 5),
            (0.75, 9),
            (0.999_999_94, 9),
            (1.0, 9),
            (-1.0, 3),
            (f32::NAN, 3),
        ] {
            assert_eq!(draw(&distribution, u), TokenId(id), "at {u}");
        }
        assert_eq!(distribution.prob_of(TokenId(3)), 0.5);
        assert_eq!(distribution.prob_of(TokenId(4)), 0.0);
    }

    #[test]
    fn unusable_weights_are_left_out() {
        let bad = [(TokenId(0), f32::NAN), (TokenId(1), -1.0), (TokenId(2), f32::INFINITY)];
        assert_eq!(Distribution::from_weights(&bad), None);
        let one = Distribution::from_weights(&[(TokenId(0), f32::NAN), (TokenId(7), 0.1)]);
        assert_eq!(one, Some(Distribution::point(TokenId(7))));
    }
}

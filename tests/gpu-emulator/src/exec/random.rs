//! A small seeded generator: the order of CTAs and warps, the same on every host.

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator for one purpose under one seed.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mut random = Self(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        random
    }

    /// The next 64 bits.
    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// A seeded order of `0..count`: ascending for seed 0, descending for seed 1, else shuffled.
#[derive(Debug, Clone)]
pub(crate) struct Permutation {
    count: u64,
    factor: u64,
    start: u64,
}

impl Permutation {
    /// The order under `seed`.
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        let (factor, start) = match seed {
            0 => (1, 0),
            1 => (count - 1, count - 1),
            _ => {
                let mut random = Random::new(seed, 0x0c7a);
                let mut factor = 1 + random.below(count);
                while gcd(factor, count) != 1 {
                    factor = 1 + random.below(count);
                }
                (factor, random.below(count))
            }
        };
        Self { count, factor, start }
    }

    /// The element at `position`.
    pub(crate) fn at(&self, position: u64) -> u64 {
        let product = u128::from(position) * u128::from(self.factor) + u128::from(self.start);
        (product % u128::from(self.count)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_visits_every_cta_once() {
        for count in [1, 2, 3, 12, 97, 1000] {
            for seed in 0..20 {
                let order = Permutation::new(count, seed);
                let mut seen: Vec<u64> = (0..count).map(|i| order.at(i)).collect();
                if seed == 1 {
                    assert!(seen.is_sorted_by(|a, b| a > b), "seed 1 descends");
                }
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..count));
            }
        }
    }
}

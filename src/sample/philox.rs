//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
//!
//! A number is a function of *what it is for*, never of how many were drawn before. A fork, another
//! batch or a resumed request therefore sees the same numbers; no generator state exists to save.
//! The packing documented at [`Key`] is a contract: kernels repeat it word for word.

use crate::ids::{BranchId, Role};

/// What a random number decides. The discriminants are part of the packing and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// The token drawn from a model's own distribution.
    Draw = 0,
    /// Whether a drafted token is kept.
    Accept = 1,
    /// The token that replaces a rejected one.
    Residual = 2,
    /// A policy's coin, such as whether a step is offered to the draft at all.
    Gate = 3,
    /// A choice between branches.
    Select = 4,
}

/// The name of one random number.
///
/// Philox has a key of two 32-bit words and a counter of four. They are packed as
///
/// | word | holds |
/// |---|---|
/// | `key[0]` | low 32 bits of `seed` |
/// | `key[1]` | high 32 bits of `seed` |
/// | `counter[0]` | `position` |
/// | `counter[1]` | `branch` |
/// | `counter[2]` | role (draft 0, base 1) in bits 0-7, purpose in bits 8-15, zero above |
/// | `counter[3]` | block: 0 for [`uniform`] and [`uniforms4`]; larger values are reserved |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The request's seed.
    pub seed: u64,
    /// The branch that draws.
    pub branch: BranchId,
    /// Index in the shared tail of the token being decided.
    pub position: u32,
    /// The model whose distribution is drawn from.
    pub role: Role,
    /// What the number decides.
    pub purpose: Purpose,
}

impl Key {
    /// The same place and model, for another purpose.
    #[must_use]
    pub fn with_purpose(self, purpose: Purpose) -> Self {
        Self { purpose, ..self }
    }

    /// The same number one or more tokens later; positions wrap at 2³².
    #[must_use]
    pub fn advanced_by(self, tokens: u32) -> Self {
        Self { position: self.position.wrapping_add(tokens), ..self }
    }

    /// The four random words of this key, packed as the type's table says.
    fn words(&self) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let what = self.role.index() as u32 | u32::from(self.purpose as u8) << 8;
        philox4x32_10([self.position, self.branch.0, what, 0], key)
    }
}

/// The Philox4x32 bijection with ten rounds.
#[must_use]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const KEY_INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let [mut c, mut k] = [counter, [key[0], key[1], 0, 0]];
    for _ in 0..10 {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (second >> 32) as u32 ^ c[1] ^ k[0],
            second as u32,
            (first >> 32) as u32 ^ c[3] ^ k[1],
            first as u32,
        ];
        k[0] = k[0].wrapping_add(KEY_INCREMENTS[0]);
        k[1] = k[1].wrapping_add(KEY_INCREMENTS[1]);
    }
    c
}

/// A random word as a number in `[0, 1)`: its upper 24 bits times 2⁻²⁴, exact in `f32`.
#[must_use]
pub fn uniform_from_word(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// The number named by `key`, in `[0, 1)`: the first of [`uniforms4`].
#[must_use]
pub fn uniform(key: &Key) -> f32 {
    uniform_from_word(key.words()[0])
}

/// Four independent numbers in `[0, 1)` under one name, from the four words of one block.
#[must_use]
pub fn uniforms4(key: &Key) -> [f32; 4] {
    key.words().map(uniform_from_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::chi_square::assert_law;

    const KEY: Key = Key {
        seed: 7,
        branch: BranchId(0),
        position: 0,
        role: Role::Draft,
        purpose: Purpose::Draw,
    };

    /// The vectors published with Random123 (`kat_vectors`, philox4x32, 10 rounds).
    #[test]
    fn the_published_known_answers_are_reproduced() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, answer) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn the_packing_is_the_documented_one() {
        let key = Key {
            seed: 0x1122_3344_5566_7788,
            branch: BranchId(9),
            position: 1234,
            role: Role::Base,
            purpose: Purpose::Gate,
        };
        let words = philox4x32_10([1234, 9, 0x0301, 0], [0x5566_7788, 0x1122_3344]);
        assert_eq!(uniforms4(&key), words.map(|w| ((w >> 8) as f64 / 16_777_216.0) as f32));
        assert_eq!(uniform(&key), uniforms4(&key)[0]);
    }

    #[test]
    fn every_field_of_the_key_changes_the_number() {
        let others = [
            Key { seed: 8, ..KEY },
            Key { seed: 7 | 1 << 32, ..KEY },
            Key { branch: BranchId(1), ..KEY },
            Key { position: 1, ..KEY },
            Key { role: Role::Base, ..KEY },
            Key { purpose: Purpose::Accept, ..KEY },
        ];
        for other in others {
            assert_ne!(uniform(&KEY), uniform(&other), "{other:?}");
        }
    }

    #[test]
    fn uniforms_stay_below_one_and_fill_the_interval_evenly() {
        assert_eq!(uniform_from_word(0), 0.0);
        assert_eq!(uniform_from_word(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
        let mut counts = vec![0_u64; 50];
        for position in 0..100_000 {
            counts[(uniform(&KEY.advanced_by(position)) * 50.0) as usize] += 1;
        }
        assert_law(&counts, &[0.02; 50]);
    }
}

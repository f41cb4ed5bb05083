//! Correct rounding for every format and direction.
//!
//! Sums, products and fused sums of narrow values are formed in f64 rounded to odd: a value that
//! does not fit keeps its last bit set, so rounding it again to a format at least two bits narrower
//! is rounding the exact value once. [`round`] is that second rounding, in integers, for any
//! format up to f64.
//! Where to read next: `float32`, `float16` and `convert`, which use it.

use crate::ptx::ir::Rounding;

/// A binary floating-point format with infinities and NaNs like IEEE's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    /// Stored mantissa bits.
    pub(super) mantissa: u32,
    /// Exponent bits.
    pub(super) exponent: u32,
}

pub(super) const F16: Format = Format { mantissa: 10, exponent: 5 };
pub(super) const BF16: Format = Format { mantissa: 7, exponent: 8 };
pub(super) const TF32: Format = Format { mantissa: 10, exponent: 8 };
pub(super) const F32: Format = Format { mantissa: 23, exponent: 8 };
pub(super) const F64: Format = Format { mantissa: 52, exponent: 11 };
pub(super) const E4M3: Format = Format { mantissa: 3, exponent: 4 };
pub(super) const E5M2: Format = Format { mantissa: 2, exponent: 5 };

impl Format {
    const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    const fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }
}

/// The bits of `(-1)^negative * significand * 2^exponent` in `format`.
#[inline]
pub(super) fn round(
    negative: bool,
    significand: u64,
    exponent: i32,
    format: Format,
    rounding: Rounding,
) -> u64 {
    let sign = if negative { format.sign() } else { 0 };
    if significand == 0 {
        return sign;
    }
    let zeros = significand.leading_zeros();
    let significand = significand << zeros;
    // The value is 1.xxx * 2^top.
    let top = exponent - zeros as i32 + 63;
    let smallest = 2 - (1 << (format.exponent - 1));
    let (field, shift) = if top >= smallest {
        ((top - smallest + 1) as u64, 63 - format.mantissa)
    } else {
        (0, 63 - format.mantissa + (smallest - top).unsigned_abs())
    };
    let (kept, rest, half) = match shift {
        0..=63 => {
            let rest = significand & ((1u64 << shift) - 1);
            (significand >> shift, rest, if shift == 0 { 1 } else { 1u64 << (shift - 1) })
        }
        64 => (0, significand, 1 << 63),
        // Everything is below half of the smallest step.
        _ => (0, 1, 2),
    };
    let up = match rounding {
        Rounding::Nearest | Rounding::Stochastic => rest > half || (rest == half && kept & 1 == 1),
        Rounding::NearestAway => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
    };
    // A carry runs over into the exponent, which is what it should do.
    let base = if field > 0 { (field - 1) << format.mantissa } else { 0 };
    let bits = base.saturating_add(kept).saturating_add(u64::from(up));
    if bits < format.infinity() {
        return sign | bits;
    }
    let overflows_to_infinity = match rounding {
        Rounding::Zero => false,
        Rounding::Down => negative,
        Rounding::Up => !negative,
        _ => true,
    };
    sign | (format.infinity() - u64::from(!overflows_to_infinity))
}

/// The bits of a finite or infinite `value` in `format`; a NaN becomes `nan`.
#[inline]
pub(super) fn round_f64(value: f64, format: Format, rounding: Rounding, nan: u64) -> u64 {
    if value.is_nan() {
        return nan;
    }
    let bits = value.to_bits();
    let negative = bits >> 63 != 0;
    if value.is_infinite() {
        return format.infinity() | if negative { format.sign() } else { 0 };
    }
    let field = (bits >> 52 & 0x7FF) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    round(negative, significand, exponent, format, rounding)
}

/// `a + b` as the nearest f64 and what is missing to the exact sum.
#[inline(always)]
pub(super) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let shadow = sum - a;
    (sum, (a - (sum - shadow)) + (b - shadow))
}

/// `value`, which misses `error` to the exact result, moved to the odd neighbour if it is inexact.
#[inline(always)]
pub(super) fn to_odd(value: f64, error: f64) -> f64 {
    let bits = value.to_bits();
    // An even value beside the exact one becomes odd by one step toward the exact one.
    let inexact = (error != 0.0) & (bits & 1 == 0) & (value.abs() < f64::INFINITY);
    let outward = (error > 0.0) == value.is_sign_positive();
    let step = if outward { 1 } else { u64::MAX };
    if inexact { f64::from_bits(bits.wrapping_add(step)) } else { value }
}

/// An f64 that is exact or rounded to odd as an f32 rounded to odd, without branches.
#[inline(always)]
pub(super) fn f32_to_odd(value: f64) -> f32 {
    let near = value as f32;
    let error = value - f64::from(near);
    let bits = near.to_bits();
    // An overflow to infinity is even and steps back to the largest finite value, which is odd.
    let inexact = (error != 0.0) & (bits & 1 == 0) & (value.abs() < f64::INFINITY);
    let outward = (error > 0.0) == near.is_sign_positive();
    let step = if outward { 1 } else { u32::MAX };
    if inexact { f32::from_bits(bits.wrapping_add(step)) } else { near }
}

/// `a + b`, rounded to odd.
#[inline(always)]
pub(super) fn sum_to_odd(a: f64, b: f64) -> f64 {
    let (sum, error) = two_sum(a, b);
    to_odd(sum, error)
}

/// `a / b`, rounded to odd; for operands of at most 24 significant bits.
#[inline(always)]
pub(super) fn quotient_to_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a);
    let error = if b < 0.0 { -rest } else { rest };
    if quotient.is_finite() && b.is_finite() { to_odd(quotient, error) } else { quotient }
}

/// The square root of `a`, rounded to odd; for an operand of at most 24 significant bits.
#[inline(always)]
pub(super) fn root_to_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if root.is_finite() { to_odd(root, (-root).mul_add(root, a)) } else { root }
}

/// `value`, which misses `error` to the exact result, rounded in another direction than nearest.
#[inline]
pub(super) fn redirect(value: f64, error: f64, rounding: Rounding) -> f64 {
    if value.is_infinite() && error != 0.0 {
        // Rounding to nearest overflowed a finite result.
        let stays = match rounding {
            Rounding::Zero => false,
            Rounding::Down => value < 0.0,
            Rounding::Up => value > 0.0,
            _ => true,
        };
        return if stays { value } else { f64::MAX.copysign(value) };
    }
    // A rounded-off zero knows its sign only from the error.
    let sign_like = if value == 0.0 { error } else { value };
    match rounding {
        Rounding::Down if error < 0.0 => value.next_down(),
        Rounding::Up if error > 0.0 => value.next_up(),
        Rounding::Zero if error < 0.0 && sign_like > 0.0 => value.next_down(),
        Rounding::Zero if error > 0.0 && sign_like < 0.0 => value.next_up(),
        _ => value,
    }
}

/// The sign of an exact sum of zero when rounding down: minus, unless both were plus.
#[inline(always)]
pub(super) fn zero_sum(sum: f64, a: f64, b: f64, rounding: Rounding) -> f64 {
    let both_plus = a.is_sign_positive() & b.is_sign_positive();
    if (sum == 0.0) & (rounding == Rounding::Down) & !both_plus { -0.0 } else { sum }
}

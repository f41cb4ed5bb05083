//! Elementary functions in f64 without branches, so that loops over them become vector code.
//!
//! They serve the `.approx` instructions: far more exact than those promise (about 2^-45 relative),
//! and the same on every processor.

/// 2 to the power of `x`, for f32-sized arguments; anything that would leave f32 far behind is
/// clamped on the way.
#[inline(always)]
pub(super) fn exp2(x: f64) -> f64 {
    let clamped = if x > 400.0 { 400.0 } else { x };
    let clamped = if clamped < -400.0 { -400.0 } else { clamped };
    // Adding 1.5 * 2^52 leaves the nearest integer in the low bits.
    let shifted = clamped + 6_755_399_441_055_744.0;
    let whole = shifted - 6_755_399_441_055_744.0;
    let part = clamped - whole;
    // The terms ln(2)^k / k!, evens and odds apart so that half of them can overlap.
    let square = part * part;
    let odd = 4.445_538_271_870_811e-10;
    let odd = odd * square + 1.017_808_600_923_969_9e-7;
    let odd = odd * square + 1.525_273_380_405_984e-5;
    let odd = odd * square + 0.001_333_355_814_642_844_3;
    let odd = odd * square + 0.055_504_108_664_821_58;
    let odd = odd * square + std::f64::consts::LN_2;
    let even = 7.054_911_620_801_122e-9;
    let even = even * square + 1.321_548_679_014_431e-6;
    let even = even * square + 0.000_154_035_303_933_816_1;
    let even = even * square + 0.009_618_129_107_628_477;
    let even = even * square + 0.240_226_506_959_100_7;
    let sum = odd * part + even * square;
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let value = (sum + 1.0) * scale;
    if x.is_nan() { x } else { value }
}

/// The logarithm to base 2.
#[inline(always)]
pub(super) fn log2(x: f64) -> f64 {
    /// f64's exponent of sqrt(1/2), with the mantissa below.
    const PIVOT: u64 = 0x3FE6_A09E_667F_3BCD;
    let bits = x.to_bits();
    // The mantissa in [sqrt(1/2), sqrt(2)), and the exponent that goes with it.
    let exponent_bits = bits.wrapping_sub(PIVOT) & !((1u64 << 52) - 1);
    let mantissa = f64::from_bits(bits.wrapping_sub(exponent_bits));
    // The exponent is a small integer in the top bits; shifting it down and adding a constant
    // makes it a float without a conversion.
    let biased = (exponent_bits >> 52).wrapping_add(1024) & 0xFFF;
    let exponent = f64::from_bits(0x4330_0000_0000_0000 | biased) - 4_503_599_627_371_520.0;
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let sum = 1.0 / 21.0;
    let sum = sum * square + 1.0 / 19.0;
    let sum = sum * square + 1.0 / 17.0;
    let sum = sum * square + 1.0 / 15.0;
    let sum = sum * square + 1.0 / 13.0;
    let sum = sum * square + 1.0 / 11.0;
    let sum = sum * square + 1.0 / 9.0;
    let sum = sum * square + 1.0 / 7.0;
    let sum = sum * square + 1.0 / 5.0;
    let sum = sum * square + 1.0 / 3.0;
    let sum = sum * square + 1.0;
    let value = exponent + sum * z * (2.0 * std::f64::consts::LOG2_E);
    let value = if x == f64::INFINITY { x } else { value };
    let value = if x == 0.0 { f64::NEG_INFINITY } else { value };
    if x < 0.0 || x.is_nan() { f64::NAN } else { value }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    let power = exp2(x.abs() * (2.0 * std::f64::consts::LOG2_E));
    let value = 1.0 - 2.0 / (power + 1.0);
    let small = x.abs() * (1.0 - x * x * (1.0 / 3.0));
    let value = if x.abs() < 1e-3 { small } else { value };
    if x.is_nan() { x } else { value.copysign(x) }
}

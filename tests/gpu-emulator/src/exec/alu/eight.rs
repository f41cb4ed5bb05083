//! 8-bit floats: e4m3 (no infinity, largest 448) and e5m2 (largest 57344). Conversions to them
//! saturate to the largest finite value.

use super::rounding::{E4M3, E5M2, round_f64};
use crate::ptx::ir::{Rounding, Type};

/// The bits of a value that is exact or rounded to odd.
pub(super) fn encode(value: f64, ty: Type, relu: bool) -> u8 {
    // Not `value < 0`: -0 becomes +0 too.
    if relu && value.is_sign_negative() && !value.is_nan() {
        return 0;
    }
    let (format, largest) = if ty == Type::E4m3 { (E4M3, 0x7E) } else { (E5M2, 0x7B) };
    if value.is_nan() {
        return 0x7F;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = if ty == Type::E4m3 && value.abs() >= 256.0 {
        // The top binade of e4m3 lies where others have infinities: round in the one below.
        let halved = round_f64(value.abs() / 2.0, format, Rounding::Nearest, 0) + 8;
        halved.min(largest)
    } else {
        round_f64(value.abs(), format, Rounding::Nearest, 0).min(largest)
    };
    sign | magnitude as u8
}

/// The value of the bits.
pub(super) fn decode(bits: u8, ty: Type) -> f32 {
    let (mantissa_bits, bias) = if ty == Type::E4m3 { (3, 7) } else { (2, 15) };
    let magnitude = bits & 0x7F;
    let mantissa = f32::from(magnitude & ((1 << mantissa_bits) - 1));
    let exponent = i32::from(magnitude >> mantissa_bits);
    let special = if ty == Type::E4m3 { magnitude == 0x7F } else { magnitude >= 0x7C };
    let one = f32::from(1u8 << mantissa_bits);
    let value = if special {
        if ty == Type::E4m3 || magnitude > 0x7C { f32::NAN } else { f32::INFINITY }
    } else if exponent == 0 {
        mantissa / one * 2f32.powi(1 - bias)
    } else {
        (1.0 + mantissa / one) * 2f32.powi(exponent - bias)
    };
    if bits & 0x80 != 0 { -value } else { value }
}

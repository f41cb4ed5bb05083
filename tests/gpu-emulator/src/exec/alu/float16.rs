//! f16 and bf16 arithmetic, alone and in pairs: exact in f64 (rounded to odd), then rounded once.

use super::approximate;
use super::both_ways;
use super::rounding::{BF16, F16, f32_to_odd, round_f64, sum_to_odd};
use crate::exec::registers::{LANES, Plane, Registers};
use crate::ptx::ir::{FloatMode, FloatOp, FloatType, FloatUnaryOp, Operand, Rounding};

both_ways! {
    pub(crate) fn two(r: &mut Registers, mask: u32, op: FloatOp, ty: FloatType, mode: FloatMode,
        dst: u32, a: Operand, b: Operand) = two_lanes;
    pub(crate) fn one(r: &mut Registers, mask: u32, op: FloatUnaryOp, ty: FloatType,
        mode: FloatMode, dst: u32, a: Operand) = one_lanes;
    pub(crate) fn fma(r: &mut Registers, mask: u32, ty: FloatType, mode: FloatMode, dst: u32,
        abc: [Operand; 3]) = fma_lanes;
}

/// The NaN that arithmetic produces in both formats.
pub(super) const NAN: u16 = 0x7FFF;

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    F16,
    Bf16,
}

impl Half {
    /// The value of the bits, exactly.
    #[inline(always)]
    pub(super) fn decode(self, bits: u16) -> f32 {
        match self {
            Self::F16 => decode_f16(bits),
            Self::Bf16 => f32::from_bits(u32::from(bits) << 16),
        }
    }

    /// The bits of a value that is exact or rounded to odd.
    #[inline(always)]
    pub(super) fn encode(self, value: f64, rounding: Rounding) -> u16 {
        let format = if self == Self::F16 { F16 } else { BF16 };
        round_f64(value, format, rounding, NAN.into()) as u16
    }

    /// The nearest to an f32.
    #[inline(always)]
    pub(super) fn nearest(self, value: f32) -> u16 {
        match self {
            Self::F16 => nearest_f16(value),
            Self::Bf16 => nearest_bf16(value),
        }
    }

    /// Whether the bits are a NaN.
    #[inline(always)]
    pub(super) fn is_nan(self, bits: u16) -> bool {
        bits & 0x7FFF > if self == Self::F16 { 0x7C00 } else { 0x7F80 }
    }

    /// f16 subnormals become zeros of their sign; bf16 has no flushing forms.
    #[inline(always)]
    fn flush(self, bits: u16) -> u16 {
        if self == Self::F16 && bits & 0x7C00 == 0 { bits & 0x8000 } else { bits }
    }
}

/// The value of an f16, without branches.
#[inline(always)]
fn decode_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    // Moving the exponent's bias from 15 to 127 by a product gets subnormals right.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23);
    let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

/// The nearest f16, ties to even, without branches.
#[inline(always)]
pub(super) fn nearest_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7FFF_FFFF);
    // Below 2^-14 a half added rounds at the right place.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_add(0xC800_0FFF).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    // 65520 is the first that rounds to infinity.
    let value = if magnitude >= 0x477F_F000 { 0x7C00 } else { finite as u16 };
    if magnitude > 0x7F80_0000 { NAN } else { sign | value }
}

/// The nearest bf16, ties to even, without branches.
#[inline(always)]
pub(super) fn nearest_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF).wrapping_add(bits >> 16 & 1) >> 16;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 { NAN } else { rounded as u16 }
}

/// A format known at compile time, so that loops over it have no choices inside.
trait Format {
    const HALF: Half;
}

struct F16Format;
struct Bf16Format;

impl Format for F16Format {
    const HALF: Half = Half::F16;
}

impl Format for Bf16Format {
    const HALF: Half = Half::Bf16;
}

/// Runs `$body` with `$format` standing for the format of a type.
macro_rules! for_format {
    ($ty:expr, $format:ident, $body:expr) => {
        if matches!($ty, FloatType::F16 | FloatType::F16x2) {
            type $format = F16Format;
            $body
        } else {
            type $format = Bf16Format;
            $body
        }
    };
}

fn is_packed(ty: FloatType) -> bool {
    matches!(ty, FloatType::F16x2 | FloatType::Bf16x2)
}

/// What the modes do to a result.
#[inline(always)]
fn finish<F: Format>(mode: FloatMode, bits: u16) -> u16 {
    let bits = if mode.ftz { F::HALF.flush(bits) } else { bits };
    let one = if F::HALF == Half::F16 { 0x3C00 } else { 0x3F80 };
    let is_nan = F::HALF.is_nan(bits);
    let clamps = mode.sat || mode.relu;
    let bits = if clamps && bits & 0x8000 != 0 { 0 } else { bits };
    let bits = if mode.sat && bits > one { one } else { bits };
    let nan = if mode.sat { 0 } else { NAN };
    if is_nan { nan } else { bits }
}

/// A plane of halves, lower or upper, as values.
#[inline(always)]
fn values<F: Format>(r: &Registers, mode: FloatMode, operand: Operand, shift: u32) -> Values {
    let words = r.words(operand);
    let mut out = [0f64; LANES];
    for i in 0..LANES {
        let bits = (words[i] >> shift) as u16;
        let bits = if mode.ftz { F::HALF.flush(bits) } else { bits };
        out[i] = f64::from(F::HALF.decode(bits));
    }
    out
}

type Values = [f64; LANES];

/// Writes `f(shift)` for the one half or both.
#[inline(always)]
fn write_halves(
    r: &mut Registers,
    mask: u32,
    ty: FloatType,
    dst: u32,
    f: impl Fn(&Registers, u32) -> Plane,
) {
    let mut out = f(r, 0);
    if is_packed(ty) {
        let high = f(r, 16);
        for i in 0..LANES {
            out[i] |= high[i] << 16;
        }
    }
    r.write_words(dst, mask, &out);
}

/// Results that are exact or rounded to odd, rounded and finished.
#[inline(always)]
fn rounded<F: Format>(mode: FloatMode, exact: Values) -> Plane {
    let mut out = [0u32; LANES];
    for i in 0..LANES {
        out[i] = finish::<F>(mode, F::HALF.nearest(f32_to_odd(exact[i]))).into();
    }
    out
}

#[inline(always)]
fn two_lanes(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    for_format!(
        ty,
        F,
        match op {
            FloatOp::Min | FloatOp::Max =>
                extremes::<F>(r, mask, op == FloatOp::Max, ty, mode, dst, a, b),
            FloatOp::Mul => write_halves(r, mask, ty, dst, |r, shift| {
                combined::<F>(r, mode, [a, b], shift, |a, b| a * b)
            }),
            FloatOp::Sub => write_halves(r, mask, ty, dst, |r, shift| {
                combined::<F>(r, mode, [a, b], shift, |a, b| sum_to_odd(a, -b))
            }),
            _ => write_halves(r, mask, ty, dst, |r, shift| {
                combined::<F>(r, mode, [a, b], shift, sum_to_odd)
            }),
        }
    );
}

#[inline(always)]
fn combined<F: Format>(
    r: &Registers,
    mode: FloatMode,
    [a, b]: [Operand; 2],
    shift: u32,
    f: impl Fn(f64, f64) -> f64,
) -> Plane {
    let (mut a, b) = (values::<F>(r, mode, a, shift), values::<F>(r, mode, b, shift));
    for i in 0..LANES {
        a[i] = f(a[i], b[i]);
    }
    rounded::<F>(mode, a)
}

#[inline(always)]
fn extremes<F: Format>(
    r: &mut Registers,
    mask: u32,
    max: bool,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    write_halves(r, mask, ty, dst, |r, shift| {
        let (mut a, b) = (r.words(a), r.words(b));
        for i in 0..LANES {
            let (x, y) = ((a[i] >> shift) as u16, (b[i] >> shift) as u16);
            a[i] = extreme::<F>(max, mode, x, y).into();
        }
        a
    });
}

/// The smaller or larger, on bits; see `float32::extreme`.
#[inline(always)]
fn extreme<F: Format>(max: bool, mode: FloatMode, a: u16, b: u16) -> u16 {
    let flushed = |bits| if mode.ftz { F::HALF.flush(bits) } else { bits };
    let (a, b) = (flushed(a), flushed(b));
    let sign = if mode.xorsign_abs { (a ^ b) & 0x8000 } else { 0 };
    let (a_nan, b_nan) = (F::HALF.is_nan(a), F::HALF.is_nan(b));
    let kept = if mode.xorsign_abs { 0x7FFF } else { 0xFFFF };
    let (a, b) = (a & kept, b & kept);
    // Sign and magnitude as a number that orders like the value, -0 below +0.
    let order = |bits: u16| {
        let bits = bits as i16;
        bits ^ (bits >> 15 & 0x7FFF)
    };
    let a_less = order(a) < order(b);
    let chosen = if a_less == max { b } else { a };
    let chosen = if b_nan { a } else { chosen };
    let chosen = if a_nan { b } else { chosen } | sign;
    let nan = (a_nan & b_nan) | (mode.nan & (a_nan | b_nan));
    if nan { NAN } else { chosen }
}

#[inline(always)]
fn fma_lanes(
    r: &mut Registers,
    mask: u32,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    [a, b, c]: [Operand; 3],
) {
    for_format!(
        ty,
        F,
        write_halves(r, mask, ty, dst, |r, shift| {
            let (mut a, b) = (values::<F>(r, mode, a, shift), values::<F>(r, mode, b, shift));
            let c = values::<F>(r, mode, c, shift);
            for i in 0..LANES {
                a[i] = sum_to_odd(a[i] * b[i], c[i]);
            }
            rounded::<F>(mode, a)
        })
    );
}

#[inline(always)]
fn one_lanes(
    r: &mut Registers,
    mask: u32,
    op: FloatUnaryOp,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
) {
    for_format!(
        ty,
        F,
        match op {
            FloatUnaryOp::Neg => changed::<F>(r, mask, ty, mode, dst, a, |bits| bits ^ 0x8000),
            FloatUnaryOp::Abs => changed::<F>(r, mask, ty, mode, dst, a, |bits| bits & 0x7FFF),
            FloatUnaryOp::Ex2Approx => computed::<F>(r, mask, ty, mode, dst, a, approximate::exp2),
            // The parser lets no other function of halves through.
            _ => computed::<F>(r, mask, ty, mode, dst, a, approximate::tanh),
        }
    );
}

/// A change of bits.
#[inline(always)]
fn changed<F: Format>(
    r: &mut Registers,
    mask: u32,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    f: impl Fn(u16) -> u16,
) {
    write_halves(r, mask, ty, dst, |r, shift| {
        r.words(a).map(|word| {
            let bits = (word >> shift) as u16;
            f(if mode.ftz { F::HALF.flush(bits) } else { bits }).into()
        })
    });
}

/// A function of values.
#[inline(always)]
fn computed<F: Format>(
    r: &mut Registers,
    mask: u32,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    f: impl Fn(f64) -> f64,
) {
    write_halves(r, mask, ty, dst, |r, shift| {
        let mut values = values::<F>(r, mode, a, shift);
        for value in &mut values {
            *value = f(*value);
        }
        rounded::<F>(mode, values)
    });
}

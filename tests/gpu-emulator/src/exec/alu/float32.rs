//! f32 arithmetic. Rounding to nearest is the processor's own; the directed roundings are exact
//! results rounded once. Every NaN that arithmetic makes is 0x7FFFFFFF.

use super::approximate;
use super::both_ways;
use super::lanes::{long1, long2, long3, map2, map3};
use super::rounding::{quotient_to_odd, root_to_odd, sum_to_odd, zero_sum};
use crate::exec::registers::Registers;
use crate::ptx::ir::{FloatMode, FloatOp, FloatUnaryOp, Operand, Rounding};

both_ways! {
    pub(crate) fn two(r: &mut Registers, mask: u32, op: FloatOp, mode: FloatMode, dst: u32,
        a: Operand, b: Operand) = two_lanes;
    pub(crate) fn one(r: &mut Registers, mask: u32, op: FloatUnaryOp, mode: FloatMode, dst: u32,
        a: Operand) = one_lanes;
    pub(crate) fn fma(r: &mut Registers, mask: u32, mode: FloatMode, dst: u32,
        abc: [Operand; 3]) = fma_lanes;
    pub(crate) fn three(r: &mut Registers, mask: u32, op: FloatOp, mode: FloatMode, dst: u32,
        abc: [Operand; 3]) = three_lanes;
}

/// The NaN that arithmetic produces.
pub(super) const NAN: u32 = 0x7FFF_FFFF;

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub(super) fn flush(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7F80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

#[inline(always)]
pub(super) fn canonical(value: f32) -> f32 {
    // On the bits, and out of the optimiser's sight: to it one NaN is as good as another.
    let bits = value.to_bits();
    f32::from_bits(std::hint::select_unpredictable(bits & 0x7fff_ffff > 0x7f80_0000, NAN, bits))
}

/// Clamps to [0, 1]; NaN and -0 become +0.
#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { if value < 1.0 { value } else { 1.0 } } else { 0.0 }
}

/// What the modes do to a result.
#[inline(always)]
fn finish(mode: FloatMode, mut value: f32) -> f32 {
    if mode.ftz {
        value = flush(value);
    }
    if mode.sat {
        value = saturate(value);
    }
    if mode.relu && value <= 0.0 {
        value = 0.0;
    }
    canonical(value)
}

#[inline(always)]
fn input(mode: FloatMode, value: f32) -> f32 {
    if mode.ftz { flush(value) } else { value }
}

fn is_plain(mode: FloatMode) -> bool {
    !(mode.ftz || mode.sat || mode.relu) && mode.rounding == Rounding::Nearest
}

/// An f64 that is exact or rounded to odd, rounded to f32 without branches: the nearest, moved one
/// step if it lies on the wrong side.
#[inline(always)]
pub(super) fn narrow(value: f64, rounding: Rounding) -> f32 {
    let near = value as f32;
    let error = value - f64::from(near);
    let negative = near.is_sign_negative();
    let wrong = match rounding {
        Rounding::Down => error < 0.0,
        Rounding::Up => error > 0.0,
        Rounding::Zero => {
            if negative {
                error > 0.0
            } else {
                error < 0.0
            }
        }
        _ => false,
    };
    // One step away from zero is one more in the bits.
    let step = if (error < 0.0) == negative { 1 } else { u32::MAX };
    f32::from_bits(if wrong { near.to_bits().wrapping_add(step) } else { near.to_bits() })
}

#[inline(always)]
fn two_lanes(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    let flag = is_plain(mode);
    match op {
        FloatOp::Add if flag => map2(r, mask, dst, a, b, |a: f32, b: f32| canonical(a + b)),
        FloatOp::Sub if flag => map2(r, mask, dst, a, b, |a: f32, b: f32| canonical(a - b)),
        FloatOp::Mul if flag => map2(r, mask, dst, a, b, |a: f32, b: f32| canonical(a * b)),
        FloatOp::Div if flag => map2(r, mask, dst, a, b, |a: f32, b: f32| canonical(a / b)),
        FloatOp::Min | FloatOp::Max => {
            let max = op == FloatOp::Max;
            long2(r, mask, dst, a, b, |a: f32, b: f32| extreme(mode, max, a, b));
        }
        FloatOp::Copysign => {
            // The sign of `a`, the magnitude of `b`.
            map2(r, mask, dst, a, b, |a: u32, b: u32| (a & 1 << 31) | (b & !(1 << 31)));
        }
        FloatOp::DivApprox => long2(r, mask, dst, a, b, |a: f32, b: f32| {
            let quotient = f64::from(input(mode, a)) / f64::from(input(mode, b));
            finish(mode, quotient as f32)
        }),
        _ => directed_two(r, mask, op, mode, dst, a, b),
    }
}

/// Any rounding, any flag.
#[inline(always)]
fn directed_two(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    let rounding = mode.rounding;
    if rounding == Rounding::Nearest {
        return long2(r, mask, dst, a, b, |a: f32, b: f32| {
            let (a, b) = (input(mode, a), input(mode, b));
            let value = match op {
                FloatOp::Add => a + b,
                FloatOp::Sub => a - b,
                FloatOp::Mul => a * b,
                _ => a / b,
            };
            finish(mode, value)
        });
    }
    long2(r, mask, dst, a, b, |a: f32, b: f32| {
        let (a, b) = (f64::from(input(mode, a)), f64::from(input(mode, b)));
        let exact = match op {
            FloatOp::Add => zero_sum(sum_to_odd(a, b), a, b, rounding),
            FloatOp::Sub => zero_sum(sum_to_odd(a, -b), a, -b, rounding),
            FloatOp::Mul => a * b,
            _ => quotient_to_odd(a, b),
        };
        finish(mode, narrow(exact, rounding))
    });
}

/// The smaller or larger of two; -0 is below +0, a NaN loses unless the mode says it wins.
#[inline(always)]
pub(super) fn extreme(mode: FloatMode, max: bool, a: f32, b: f32) -> f32 {
    let (mut a, mut b) = (input(mode, a), input(mode, b));
    let sign = (a.to_bits() ^ b.to_bits()) & 1 << 31;
    if mode.xorsign_abs {
        (a, b) = (a.abs(), b.abs());
    }
    let (below, above) = if a < b { (a, b) } else { (b, a) };
    let chosen = if max { above } else { below };
    let same =
        f32::from_bits(if max { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() });
    let mut value = if a == b { same } else { chosen };
    if mode.xorsign_abs {
        value = f32::from_bits(value.to_bits() | sign);
    }
    if a.is_nan() {
        value = if mode.xorsign_abs { f32::from_bits(b.to_bits() | sign) } else { b };
    } else if b.is_nan() {
        value = if mode.xorsign_abs { f32::from_bits(a.to_bits() | sign) } else { a };
    }
    if mode.nan && (a.is_nan() || b.is_nan()) {
        value = f32::NAN;
    }
    canonical(value)
}

#[inline(always)]
fn three_lanes(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    mode: FloatMode,
    dst: u32,
    abc: [Operand; 3],
) {
    let max = op == FloatOp::Max;
    long3(r, mask, dst, abc, |a: f32, b: f32, c: f32| {
        extreme(mode, max, extreme(mode, max, a, b), c)
    });
}

#[inline(always)]
fn fma_lanes(r: &mut Registers, mask: u32, mode: FloatMode, dst: u32, abc: [Operand; 3]) {
    if is_plain(mode) {
        return map3(r, mask, dst, abc, |a: f32, b: f32, c: f32| canonical(a.mul_add(b, c)));
    }
    let rounding = mode.rounding;
    if rounding == Rounding::Nearest {
        return long3(r, mask, dst, abc, |a: f32, b: f32, c: f32| {
            finish(mode, input(mode, a).mul_add(input(mode, b), input(mode, c)))
        });
    }
    long3(r, mask, dst, abc, |a: f32, b: f32, c: f32| {
        let product = f64::from(input(mode, a)) * f64::from(input(mode, b));
        let c = f64::from(input(mode, c));
        let exact = zero_sum(sum_to_odd(product, c), product, c, rounding);
        finish(mode, narrow(exact, rounding))
    });
}

/// A function computed in f64 and rounded.
#[inline(always)]
fn through_f64(
    r: &mut Registers,
    mask: u32,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    f: impl Fn(f64) -> f64,
) {
    long1(r, mask, dst, a, |a: f32| finish(mode, f(f64::from(input(mode, a))) as f32));
}

#[inline(always)]
fn one_lanes(
    r: &mut Registers,
    mask: u32,
    op: FloatUnaryOp,
    mode: FloatMode,
    dst: u32,
    a: Operand,
) {
    let directed = mode.rounding != Rounding::Nearest;
    match op {
        FloatUnaryOp::Neg => long1(r, mask, dst, a, |a: f32| -input(mode, a)),
        FloatUnaryOp::Abs => long1(r, mask, dst, a, |a: f32| input(mode, a).abs()),
        FloatUnaryOp::Rcp if directed => long1(r, mask, dst, a, |a: f32| {
            let exact = quotient_to_odd(1.0, f64::from(input(mode, a)));
            finish(mode, narrow(exact, mode.rounding))
        }),
        FloatUnaryOp::Sqrt if directed => long1(r, mask, dst, a, |a: f32| {
            finish(mode, narrow(root_to_odd(f64::from(input(mode, a))), mode.rounding))
        }),
        FloatUnaryOp::Rcp | FloatUnaryOp::RcpApprox => {
            long1(r, mask, dst, a, |a: f32| finish(mode, 1.0 / input(mode, a)));
        }
        FloatUnaryOp::Sqrt | FloatUnaryOp::SqrtApprox => {
            long1(r, mask, dst, a, |a: f32| finish(mode, input(mode, a).sqrt()));
        }
        FloatUnaryOp::RsqrtApprox => through_f64(r, mask, mode, dst, a, |a| 1.0 / a.sqrt()),
        FloatUnaryOp::Ex2Approx => through_f64(r, mask, mode, dst, a, approximate::exp2),
        FloatUnaryOp::Lg2Approx => through_f64(r, mask, mode, dst, a, approximate::log2),
        FloatUnaryOp::TanhApprox => through_f64(r, mask, mode, dst, a, approximate::tanh),
        FloatUnaryOp::SinApprox => through_f64(r, mask, mode, dst, a, f64::sin),
        FloatUnaryOp::CosApprox => through_f64(r, mask, mode, dst, a, f64::cos),
    }
}

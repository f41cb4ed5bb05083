//! f64 arithmetic. Rounding to nearest is the processor's own; a directed result is the nearest
//! one moved by the sign of its error.

use super::both_ways;
use super::lanes::{long1, long2, long3};
use super::rounding::{redirect, two_sum, zero_sum};
use crate::exec::registers::Registers;
use crate::ptx::ir::{FloatMode, FloatOp, FloatUnaryOp, Operand, Rounding};

both_ways! {
    pub(crate) fn two(r: &mut Registers, mask: u32, op: FloatOp, mode: FloatMode, dst: u32,
        a: Operand, b: Operand) = two_lanes;
    pub(crate) fn one(r: &mut Registers, mask: u32, op: FloatUnaryOp, mode: FloatMode, dst: u32,
        a: Operand) = one_lanes;
    pub(crate) fn fma(r: &mut Registers, mask: u32, mode: FloatMode, dst: u32,
        abc: [Operand; 3]) = fma_lanes;
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
    let nearest = mode.rounding == Rounding::Nearest;
    match op {
        FloatOp::Add if nearest => long2(r, mask, dst, a, b, |a: f64, b: f64| a + b),
        FloatOp::Sub if nearest => long2(r, mask, dst, a, b, |a: f64, b: f64| a - b),
        FloatOp::Mul if nearest => long2(r, mask, dst, a, b, |a: f64, b: f64| a * b),
        FloatOp::Div | FloatOp::DivApprox if nearest => {
            long2(r, mask, dst, a, b, |a: f64, b: f64| a / b);
        }
        FloatOp::Min => long2(r, mask, dst, a, b, |a: f64, b: f64| extreme(false, a, b)),
        FloatOp::Max => long2(r, mask, dst, a, b, |a: f64, b: f64| extreme(true, a, b)),
        FloatOp::Copysign => long2(r, mask, dst, a, b, |a: f64, b: f64| b.copysign(a)),
        FloatOp::Add => long2(r, mask, dst, a, b, |a, b| add(a, b, mode.rounding)),
        FloatOp::Sub => long2(r, mask, dst, a, b, |a, b: f64| add(a, -b, mode.rounding)),
        FloatOp::Mul => long2(r, mask, dst, a, b, |a, b| multiply(a, b, mode.rounding)),
        FloatOp::Div | FloatOp::DivApprox => {
            long2(r, mask, dst, a, b, |a, b| divide(a, b, mode.rounding));
        }
    }
}

/// The smaller or larger; -0 is below +0, a NaN loses.
fn extreme(max: bool, a: f64, b: f64) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    let a_below = a < b || (a == b && a.is_sign_negative());
    if a_below == max { b } else { a }
}

fn add(a: f64, b: f64, rounding: Rounding) -> f64 {
    let (sum, error) = two_sum(a, b);
    if sum.is_nan() || !(a.is_finite() && b.is_finite()) {
        return sum;
    }
    if sum.is_infinite() {
        // The exact sum is finite, so the error has the other sign.
        return redirect(sum, -sum, rounding);
    }
    zero_sum(redirect(sum, error, rounding), a, b, rounding)
}

/// Far from overflow and underflow, so that the error of a product or quotient is exact.
const SCALE: f64 = 1.606_938_044_258_990_3e60; // 2^200

/// A factor that brings `value` near 1 in steps of 2^200, exactly.
fn toward_one(mut value: f64) -> (f64, i32) {
    let mut steps = 0;
    while value.abs() < 1.0 / SCALE && value != 0.0 {
        value *= SCALE;
        steps -= 1;
    }
    while value.abs() > SCALE && value.is_finite() {
        value /= SCALE;
        steps += 1;
    }
    (value, steps)
}

/// `value * 2^(-200 steps)`.
fn scaled(mut value: f64, steps: i32) -> f64 {
    for _ in 0..steps.abs() {
        value = if steps > 0 { value / SCALE } else { value * SCALE };
    }
    value
}

fn multiply(a: f64, b: f64, rounding: Rounding) -> f64 {
    let product = a * b;
    if product.is_nan() || !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return product;
    }
    if product.is_infinite() {
        return redirect(product, -product, rounding);
    }
    let ((near_a, i), (near_b, j)) = (toward_one(a), toward_one(b));
    let error = near_a.mul_add(near_b, -scaled(product, i + j));
    signed_redirect(product, error, (a < 0.0) != (b < 0.0), rounding)
}

/// As [`redirect`], keeping the sign of an underflown zero.
fn signed_redirect(value: f64, error: f64, negative: bool, rounding: Rounding) -> f64 {
    let out = redirect(value, error, rounding);
    if out == 0.0 && negative { -0.0 } else { out }
}

fn divide(a: f64, b: f64, rounding: Rounding) -> f64 {
    let quotient = a / b;
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return quotient;
    }
    let negative = (a < 0.0) != (b < 0.0);
    if quotient.is_infinite() {
        return redirect(quotient, -quotient, rounding);
    }
    let ((near_a, i), (near_b, j)) = (toward_one(a), toward_one(b));
    let rest = (-scaled(quotient, i - j)).mul_add(near_b, near_a);
    let error = if near_b < 0.0 { -rest } else { rest };
    signed_redirect(quotient, error, negative, rounding)
}

fn root(a: f64, rounding: Rounding) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 {
        return root;
    }
    // Scaling by 4^k keeps the root exact to scale.
    let (near, near_root) = if a < 1e-200 {
        (a * SCALE * SCALE, root * SCALE)
    } else if a > 1e200 {
        (a / SCALE / SCALE, root / SCALE)
    } else {
        (a, root)
    };
    redirect(root, (-near_root).mul_add(near_root, near), rounding)
}

#[inline(always)]
fn fma_lanes(r: &mut Registers, mask: u32, mode: FloatMode, dst: u32, abc: [Operand; 3]) {
    if mode.rounding == Rounding::Nearest {
        long3(r, mask, dst, abc, |a: f64, b: f64, c: f64| a.mul_add(b, c));
    } else {
        long3(r, mask, dst, abc, |a, b, c| fused(a, b, c, mode.rounding));
    }
}

/// A fused multiply-add with the sign of its error found by error-free transformations; they are
/// exact unless the product underflows, where the result is the nearest instead.
fn fused(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let near = a.mul_add(b, c);
    if near.is_nan() || !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return near;
    }
    if near.is_infinite() {
        return redirect(near, -near, rounding);
    }
    let product = a * b;
    let rest = a.mul_add(b, -product);
    let (alpha, low) = two_sum(c, rest);
    let (beta, mid) = two_sum(product, alpha);
    let error = ((beta - near) + mid) + low;
    zero_sum(redirect(near, error, rounding), product, c, rounding)
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
    let rounding = mode.rounding;
    match op {
        FloatUnaryOp::Neg => long1(r, mask, dst, a, |a: f64| -a),
        FloatUnaryOp::Abs => long1(r, mask, dst, a, f64::abs),
        FloatUnaryOp::Rcp if rounding != Rounding::Nearest => {
            long1(r, mask, dst, a, |a| divide(1.0, a, rounding));
        }
        FloatUnaryOp::Sqrt if rounding != Rounding::Nearest => {
            long1(r, mask, dst, a, |a| root(a, rounding));
        }
        FloatUnaryOp::Rcp | FloatUnaryOp::RcpApprox => {
            long1(r, mask, dst, a, |a: f64| 1.0 / input(mode, a));
        }
        FloatUnaryOp::RsqrtApprox => long1(r, mask, dst, a, |a: f64| 1.0 / input(mode, a).sqrt()),
        // The parser lets no other function of f64 through.
        _ => long1(r, mask, dst, a, |a: f64| a.sqrt()),
    }
}

/// Only the approximations of f64 flush.
#[inline(always)]
fn input(mode: FloatMode, value: f64) -> f64 {
    if mode.ftz && value.is_subnormal() { 0f64.copysign(value) } else { value }
}

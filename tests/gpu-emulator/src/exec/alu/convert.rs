//! `cvt`: the common conversions as vector loops, every other one lane by lane through exact
//! integers.

use super::both_ways;
use super::eight;
use super::float16::{Half, nearest_bf16, nearest_f16};
use super::float32::{NAN, canonical, flush, narrow, saturate};
use super::lanes::{Lane, long1, long2, map1};
use super::rounding::{F32, F64, Format, TF32, round, round_f64};
use crate::exec::registers::{LANES, Registers};
use crate::ptx::ir::{Convert, Operand, Register, Rounding, Type};

both_ways! {
    pub(crate) fn execute(r: &mut Registers, mask: u32, convert: Convert, dst: Register,
        a: Operand, b: Option<Operand>) = execute_lanes;
}

#[inline(always)]
fn execute_lanes(
    r: &mut Registers,
    mask: u32,
    convert: Convert,
    dst: Register,
    a: Operand,
    b: Option<Operand>,
) {
    if let Some(b) = b {
        return pair(r, mask, convert, dst, a, b);
    }
    if !common(r, mask, convert, dst, a) {
        general(r, mask, convert, dst, a);
    }
}

/// Conversions frequent enough for a loop of their own; `false` if this is none.
#[inline(always)]
fn common(r: &mut Registers, mask: u32, convert: Convert, dst: Register, a: Operand) -> bool {
    let Convert { to, from, rounding, ftz, sat, relu, satfinite, .. } = convert;
    if (to, from) == (Type::F32, Type::F32) && !relu && !satfinite {
        long1(r, mask, dst.plane, a, |a: f32| {
            let a = if ftz { flush(a) } else { a };
            let a = if convert.to_integer { to_integral(a, rounding) } else { a };
            canonical(if sat { saturate(a) } else { a })
        });
        return true;
    }
    if ftz || sat || relu || satfinite {
        return false;
    }
    let plane = dst.plane;
    let nearest = matches!(rounding, None | Some(Rounding::Nearest));
    match (to, from, dst.bits) {
        (Type::U64 | Type::S64, Type::U32, 64) => map1(r, mask, plane, a, |a: u32| u64::from(a)),
        (Type::U64 | Type::S64, Type::S32, 64) => map1(r, mask, plane, a, |a: i32| i64::from(a)),
        (Type::U32 | Type::S32, Type::U64 | Type::S64 | Type::U32 | Type::S32, 32) => {
            map1(r, mask, plane, a, |a: u32| a);
        }
        (Type::U32 | Type::S32, Type::U16, 32) => map1(r, mask, plane, a, |a: u16| u32::from(a)),
        (Type::U32 | Type::S32, Type::S16, 32) => map1(r, mask, plane, a, |a: i16| i32::from(a)),
        (Type::U16 | Type::S16, Type::U32 | Type::S32 | Type::U64 | Type::S64, 16) => {
            map1(r, mask, plane, a, |a: u16| a);
        }
        (Type::U32 | Type::S32, Type::U8, 32) => map1(r, mask, plane, a, |a: u32| a & 0xFF),
        (Type::U32 | Type::S32, Type::S8, 32) => map1(r, mask, plane, a, |a: i32| a << 24 >> 24),
        (Type::U16 | Type::S16, Type::U8, 16) => map1(r, mask, plane, a, |a: u16| a & 0xFF),
        (Type::U16 | Type::S16, Type::S8, 16) => map1(r, mask, plane, a, |a: i16| a << 8 >> 8),
        (Type::U64 | Type::S64, Type::U16, 64) => map1(r, mask, plane, a, |a: u16| u64::from(a)),
        (Type::F32, Type::S8, _) => map1(r, mask, plane, a, |a: i32| (a << 24 >> 24) as f32),
        (Type::F32, Type::U8, _) => map1(r, mask, plane, a, |a: u32| (a & 0xFF) as f32),
        (Type::F32, Type::S16, _) => map1(r, mask, plane, a, |a: i16| f32::from(a)),
        (Type::F32, Type::U16, _) => map1(r, mask, plane, a, |a: u16| f32::from(a)),
        (Type::F64, Type::S32, _) => map1(r, mask, plane, a, |a: i32| f64::from(a)),
        (Type::F64, Type::U32, _) => map1(r, mask, plane, a, |a: u32| f64::from(a)),
        (Type::F32, Type::S32, _) if nearest => map1(r, mask, plane, a, |a: i32| a as f32),
        (Type::F32, Type::U32, _) if nearest => map1(r, mask, plane, a, |a: u32| a as f32),
        (Type::F64, Type::F32, _) => {
            map1(r, mask, plane, a, |a: f32| if a.is_nan() { f64::NAN } else { f64::from(a) })
        }
        (Type::F32, Type::F64, _) if nearest => {
            long1(r, mask, plane, a, |a: f64| canonical(a as f32));
        }
        (Type::F32, Type::F64, _) => {
            let rounding = rounding.unwrap_or(Rounding::Nearest);
            long1(r, mask, plane, a, |a: f64| canonical(narrow(a, rounding)));
        }
        (Type::F32, Type::F16, _) => {
            long1(r, mask, plane, a, |a: u16| canonical(Half::F16.decode(a)));
        }
        (Type::F32, Type::Bf16, _) => {
            long1(r, mask, plane, a, |a: u16| canonical(Half::Bf16.decode(a)));
        }
        (Type::F16, Type::F32, _) if nearest => long1(r, mask, plane, a, nearest_f16),
        (Type::Bf16, Type::F32, _) if nearest => long1(r, mask, plane, a, nearest_bf16),
        (Type::S32, Type::F32, 32) => return to_int(r, mask, rounding, plane, a, |a| a as i32),
        (Type::U32, Type::F32, 32) => return to_int(r, mask, rounding, plane, a, |a| a as u32),
        _ => return false,
    }
    true
}

#[inline(always)]
fn to_integral(value: f32, rounding: Option<Rounding>) -> f32 {
    match rounding {
        Some(Rounding::Zero) => value.trunc(),
        Some(Rounding::Down) => value.floor(),
        Some(Rounding::Up) => value.ceil(),
        _ => value.round_ties_even(),
    }
}

/// f32 to an integer of 32 bits: clamped, NaN to 0, as Rust's `as` does.
#[inline(always)]
fn to_int<D: Lane + Default>(
    r: &mut Registers,
    mask: u32,
    rounding: Option<Rounding>,
    plane: u32,
    a: Operand,
    f: impl Fn(f32) -> D,
) -> bool {
    long1(r, mask, plane, a, |a: f32| f(to_integral(a, rounding)));
    true
}

/// Two f32 into a pair: `a` above `b`.
#[inline(always)]
fn pair(r: &mut Registers, mask: u32, convert: Convert, dst: Register, a: Operand, b: Operand) {
    let Convert { to, rounding, relu, satfinite, .. } = convert;
    let plain = !relu && !satfinite && rounding == Some(Rounding::Nearest);
    let join = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
    match to {
        Type::Bf16x2 if plain => {
            long2(r, mask, dst.plane, a, b, |a: f32, b: f32| join(nearest_bf16(a), nearest_bf16(b)))
        }
        Type::F16x2 if plain => {
            long2(r, mask, dst.plane, a, b, |a: f32, b: f32| join(nearest_f16(a), nearest_f16(b)))
        }
        Type::Bf16x2 | Type::F16x2 => {
            let half = if to == Type::F16x2 { Half::F16 } else { Half::Bf16 };
            long2(r, mask, dst.plane, a, b, |a: f32, b: f32| {
                join(half_from(half, convert, a.into()), half_from(half, convert, b.into()))
            });
        }
        _ => {
            let ty = if to == Type::E4m3x2 { Type::E4m3 } else { Type::E5m2 };
            long2(r, mask, dst.plane, a, b, |a: f32, b: f32| {
                let high = u16::from(eight::encode(a.into(), ty, relu));
                high << 8 | u16::from(eight::encode(b.into(), ty, relu))
            });
        }
    }
}

/// A 16-bit float with every modifier.
fn half_from(half: Half, convert: Convert, value: f64) -> u16 {
    let rounding = convert.rounding.unwrap_or(Rounding::Nearest);
    let mut value = value;
    if convert.relu && value <= 0.0 {
        value = 0.0;
    }
    if convert.sat {
        value = clamp_to_one(value);
    }
    let mut bits = half.encode(value, rounding);
    let infinity = half.nearest(f32::INFINITY);
    if convert.satfinite && bits & 0x7FFF == infinity {
        bits -= 1;
    }
    bits
}

/// Clamps to [0, 1]; NaN becomes +0.
fn clamp_to_one(value: f64) -> f64 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// Where a value is between reading and writing.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

/// Any conversion, lane by lane.
fn general(r: &mut Registers, mask: u32, convert: Convert, dst: Register, a: Operand) {
    let Convert { to, from, relu, .. } = convert;
    let mut out = [0u64; LANES];
    let wide_source = from.bits() == 64;
    for (lane, out) in out.iter_mut().enumerate() {
        let bits = if wide_source { r.long(a, lane) } else { u64::from(r.word(a, lane)) };
        *out = match (to, from) {
            (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) => {
                let ty = if from == Type::E4m3x2 { Type::E4m3 } else { Type::E5m2 };
                let half = |byte: u64| {
                    let value = nearest_f16(eight::decode(byte as u8, ty));
                    u64::from(if relu && value >> 15 != 0 { 0 } else { value })
                };
                half(bits) | half(bits >> 8) << 16
            }
            (Type::E4m3x2 | Type::E5m2x2, _) => {
                let ty = if to == Type::E4m3x2 { Type::E4m3 } else { Type::E5m2 };
                let byte = |half: u64| {
                    let value = Half::F16.decode(half as u16);
                    u64::from(eight::encode(value.into(), ty, relu))
                };
                byte(bits) | byte(bits >> 16) << 8
            }
            _ => from_value(convert, dst, to_value(bits, from, convert.ftz)),
        };
    }
    if dst.bits == 64 {
        r.write_longs(dst.plane, mask, &out);
    } else {
        let keep = if dst.bits >= 32 { u32::MAX } else { (1 << dst.bits) - 1 };
        r.write_words(dst.plane, mask, &out.map(|value| value as u32 & keep));
    }
}

fn to_value(bits: u64, from: Type, ftz: bool) -> Value {
    match from {
        Type::U8 => Value::Int((bits as u8).into()),
        Type::S8 => Value::Int((bits as i8).into()),
        Type::U16 => Value::Int((bits as u16).into()),
        Type::S16 => Value::Int((bits as i16).into()),
        Type::U32 => Value::Int((bits as u32).into()),
        Type::S32 => Value::Int((bits as i32).into()),
        Type::U64 => Value::Int(bits.into()),
        Type::S64 => Value::Int((bits as i64).into()),
        Type::F16 => Value::Float(Half::F16.decode(bits as u16).into()),
        Type::Bf16 => Value::Float(Half::Bf16.decode(bits as u16).into()),
        Type::F64 => Value::Float(f64::from_bits(bits)),
        _ => {
            let value = f32::from_bits(bits as u32);
            Value::Float(if ftz { flush(value) } else { value }.into())
        }
    }
}

fn from_value(convert: Convert, dst: Register, value: Value) -> u64 {
    if convert.to.is_float() {
        to_float(convert, value)
    } else {
        extend(convert, dst, to_bits(convert, value))
    }
}

/// The integer of type `to`, clamped from floats always and from integers when asked.
fn to_bits(convert: Convert, value: Value) -> i128 {
    let Convert { to, from, .. } = convert;
    let (least, most) = range(to);
    match value {
        Value::Int(value) if convert.sat => value.clamp(least, most),
        Value::Int(value) => value,
        Value::Float(value) if value.is_nan() => {
            // Zero, unless a 64-bit type is involved: then the top bit of the result.
            let wide = from == Type::F64 || to.bits() == 64;
            if wide { 1 << (to.bits() - 1) } else { 0 }
        }
        Value::Float(value) => {
            // Beyond 2^127 `as` clamps, which `clamp` would do anyway.
            (integral(value, convert.rounding) as i128).clamp(least, most)
        }
    }
}

fn integral(value: f64, rounding: Option<Rounding>) -> f64 {
    match rounding {
        Some(Rounding::Zero) => value.trunc(),
        Some(Rounding::Down) => value.floor(),
        Some(Rounding::Up) => value.ceil(),
        _ => value.round_ties_even(),
    }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Cuts to the type, then extends to the register by the type's sign.
fn extend(convert: Convert, dst: Register, value: i128) -> u64 {
    let unused = 64 - convert.to.bits().min(u32::from(dst.bits));
    if convert.to.is_signed() {
        (((value as u64) << unused) as i64 >> unused) as u64
    } else {
        (value as u64) << unused >> unused
    }
}

/// The bits of a value in a float type.
fn to_float(convert: Convert, value: Value) -> u64 {
    let rounding = convert.rounding.unwrap_or(Rounding::Nearest);
    let value = match value {
        // Integers of 64 bits do not fit an f64, so they are rounded from themselves.
        Value::Int(value) => {
            let format = match convert.to {
                Type::F16 => super::rounding::F16,
                Type::Bf16 => super::rounding::BF16,
                Type::F64 => F64,
                _ => F32,
            };
            let bits = round(value < 0, value.unsigned_abs() as u64, 0, format, rounding);
            return if convert.sat { saturate_bits(convert.to, bits) } else { bits };
        }
        Value::Float(value) if convert.to_integer => integral(value, convert.rounding),
        Value::Float(value) => value,
    };
    match convert.to {
        Type::F16 => half_from(Half::F16, convert, value).into(),
        Type::Bf16 => half_from(Half::Bf16, convert, value).into(),
        Type::Tf32 => to_tf32(convert, value),
        Type::F64 if convert.sat => clamp_to_one(value).to_bits(),
        Type::F64 if value.is_nan() => f64::NAN.to_bits(),
        Type::F64 => value.to_bits(),
        _ => to_f32(convert, value, rounding),
    }
}

fn saturate_bits(ty: Type, bits: u64) -> u64 {
    match ty {
        Type::F64 => clamp_to_one(f64::from_bits(bits)).to_bits(),
        Type::F32 => saturate(f32::from_bits(bits as u32)).to_bits().into(),
        ty => {
            let half = if ty == Type::F16 { Half::F16 } else { Half::Bf16 };
            half.nearest(saturate(half.decode(bits as u16))).into()
        }
    }
}

fn to_f32(convert: Convert, value: f64, rounding: Rounding) -> u64 {
    let narrowed = round_f64(value, F32, rounding, NAN.into()) as u32;
    let mut narrowed = f32::from_bits(narrowed);
    if convert.ftz {
        narrowed = flush(narrowed);
    }
    if convert.sat {
        narrowed = saturate(narrowed);
    }
    if convert.relu && narrowed <= 0.0 {
        narrowed = 0.0;
    }
    narrowed.to_bits().into()
}

/// f32 with the mantissa cut to ten bits.
fn to_tf32(convert: Convert, value: f64) -> u64 {
    const SPARE: u32 = F32.mantissa - TF32.mantissa;
    let value = if convert.relu && value <= 0.0 { 0.0 } else { value };
    let rounding = convert.rounding.unwrap_or(Rounding::NearestAway);
    let format: Format = TF32;
    let bits = round_f64(value, format, rounding, u64::from(NAN) >> SPARE) << SPARE;
    let infinite = bits & 0x7FFF_FFFF == 0x7F80_0000;
    match (value.is_nan(), convert.satfinite && infinite) {
        (true, _) => NAN.into(),
        (_, true) => bits - (1 << SPARE),
        _ => bits,
    }
}

/// `cvt.pack`: two saturated integers, `a` above `b`, and for 8 bits the low half of `c` above
/// both.
pub(super) fn pack(
    r: &mut Registers,
    mask: u32,
    to: Type,
    dst: u32,
    a: Operand,
    b: Operand,
    c: Option<Operand>,
) {
    let (least, most) = range(to);
    let bits = to.bits();
    let (a, b) = (i32::read(r, a), i32::read(r, b));
    let c = c.map_or([0; LANES], |c| r.words(c));
    let part = |value: i32| (i128::from(value).clamp(least, most) as u32) & ((1 << bits) - 1);
    let mut out = [0u32; LANES];
    for i in 0..LANES {
        let rest = if bits == 8 { c[i] << 16 } else { 0 };
        out[i] = part(b[i]) | part(a[i]) << bits | rest;
    }
    r.write_words(dst, mask, &out);
}

//! Integer arithmetic: wrapping, and never faulting. Dividing by zero gives all ones, and the
//! remainder is then the dividend, as the hardware's division routine leaves it.

use super::both_ways;
use super::lanes::{halves2, map1, map2, map3};
use crate::exec::registers::Registers;
use crate::ptx::ir::{IntOp, IntType, IntUnaryOp, MadOp, Operand};

both_ways! {
    pub(crate) fn two(r: &mut Registers, mask: u32, op: IntOp, ty: IntType, dst: u32, a: Operand,
        b: Operand) = two_lanes;
    pub(crate) fn one(r: &mut Registers, mask: u32, op: IntUnaryOp, ty: IntType, dst: u32,
        a: Operand) = one_lanes;
    pub(crate) fn mul_wide(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand,
        b: Operand) = mul_wide_lanes;
    pub(crate) fn mad(r: &mut Registers, mask: u32, op: MadOp, ty: IntType, dst: u32,
        abc: [Operand; 3]) = mad_lanes;
    pub(crate) fn sad(r: &mut Registers, mask: u32, ty: IntType, dst: u32,
        abc: [Operand; 3]) = sad_lanes;
}

/// The low 24 bits, sign-extended for signed types.
#[inline(always)]
fn low24(signed: bool, value: u32) -> i64 {
    if signed { i64::from((value << 8) as i32 >> 8) } else { i64::from(value & 0xFF_FFFF) }
}

/// Operations whose result depends on whether the type is signed.
macro_rules! of_type {
    ($type:ty, $wide:ty, $r:ident, $mask:ident, $op:ident, $dst:ident, $a:ident, $b:ident) => {{
        type T = $type;
        let zero: T = 0;
        match $op {
            IntOp::MulHi => map2($r, $mask, $dst, $a, $b, |a: T, b: T| {
                ((<$wide>::from(a) * <$wide>::from(b)) >> T::BITS) as T
            }),
            IntOp::Div => {
                map2(
                    $r,
                    $mask,
                    $dst,
                    $a,
                    $b,
                    |a: T, b: T| {
                        if b == 0 { !zero } else { a.wrapping_div(b) }
                    },
                )
            }
            IntOp::Rem => map2(
                $r,
                $mask,
                $dst,
                $a,
                $b,
                |a: T, b: T| {
                    if b == 0 { a } else { a.wrapping_rem(b) }
                },
            ),
            IntOp::Min => map2($r, $mask, $dst, $a, $b, |a: T, b: T| a.min(b)),
            _ => map2($r, $mask, $dst, $a, $b, |a: T, b: T| a.max(b)),
        }
    }};
}

/// Operations whose result is the same bits for signed and unsigned types.
macro_rules! of_width {
    ($type:ty, $r:ident, $mask:ident, $op:ident, $dst:ident, $a:ident, $b:ident) => {{
        type T = $type;
        match $op {
            IntOp::Add => map2($r, $mask, $dst, $a, $b, T::wrapping_add),
            IntOp::Sub => map2($r, $mask, $dst, $a, $b, T::wrapping_sub),
            IntOp::MulLo => map2($r, $mask, $dst, $a, $b, T::wrapping_mul),
            IntOp::And => map2($r, $mask, $dst, $a, $b, |a: T, b: T| a & b),
            IntOp::Or => map2($r, $mask, $dst, $a, $b, |a: T, b: T| a | b),
            _ => map2($r, $mask, $dst, $a, $b, |a: T, b: T| a ^ b),
        }
    }};
}

/// Operations that exist of 32 bits only.
#[inline(always)]
fn of_words(
    r: &mut Registers,
    mask: u32,
    op: IntOp,
    is_signed: bool,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    match op {
        IntOp::AddSaturating => map2(r, mask, dst, a, b, i32::saturating_add),
        IntOp::SubSaturating => map2(r, mask, dst, a, b, i32::saturating_sub),
        IntOp::MinRelu => map2(r, mask, dst, a, b, |a: i32, b: i32| a.min(b).max(0)),
        IntOp::MaxRelu => map2(r, mask, dst, a, b, |a: i32, b: i32| a.max(b).max(0)),
        IntOp::Mul24Lo => map2(r, mask, dst, a, b, |a: u32, b: u32| {
            (low24(is_signed, a) * low24(is_signed, b)) as u32
        }),
        _ => map2(r, mask, dst, a, b, |a: u32, b: u32| {
            ((low24(is_signed, a) * low24(is_signed, b)) >> 16) as u32
        }),
    }
}

#[inline(always)]
fn two_lanes(
    r: &mut Registers,
    mask: u32,
    op: IntOp,
    ty: IntType,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    if matches!(ty, IntType::U16x2 | IntType::S16x2) {
        return packed(r, mask, op, ty == IntType::S16x2, dst, a, b);
    }
    match op {
        IntOp::Add | IntOp::Sub | IntOp::MulLo | IntOp::And | IntOp::Or | IntOp::Xor => match ty {
            IntType::U16 | IntType::S16 => of_width!(u16, r, mask, op, dst, a, b),
            IntType::U64 | IntType::S64 => of_width!(u64, r, mask, op, dst, a, b),
            _ => of_width!(u32, r, mask, op, dst, a, b),
        },
        IntOp::MulHi | IntOp::Div | IntOp::Rem | IntOp::Min | IntOp::Max => match ty {
            IntType::U16 => of_type!(u16, u32, r, mask, op, dst, a, b),
            IntType::S16 => of_type!(i16, i32, r, mask, op, dst, a, b),
            IntType::S32 => of_type!(i32, i64, r, mask, op, dst, a, b),
            IntType::U64 => of_type!(u64, u128, r, mask, op, dst, a, b),
            IntType::S64 => of_type!(i64, i128, r, mask, op, dst, a, b),
            _ => of_type!(u32, u64, r, mask, op, dst, a, b),
        },
        _ => of_words(r, mask, op, ty == IntType::S32, dst, a, b),
    }
}

/// The packed operations that exist: `add`, `min`, `max` and their relu forms.
#[inline(always)]
fn packed(r: &mut Registers, mask: u32, op: IntOp, signed: bool, dst: u32, a: Operand, b: Operand) {
    let signed_half = |f: fn(i16, i16) -> i16| {
        move |a: u32, b: u32| halves2(a, b, |a, b| f(a as i16, b as i16) as u16)
    };
    match (op, signed) {
        (IntOp::Min, false) => map2(r, mask, dst, a, b, |a, b| halves2(a, b, u16::min)),
        (IntOp::Max, false) => map2(r, mask, dst, a, b, |a, b| halves2(a, b, u16::max)),
        (IntOp::Min, true) => map2(r, mask, dst, a, b, signed_half(i16::min)),
        (IntOp::Max, true) => map2(r, mask, dst, a, b, signed_half(i16::max)),
        (IntOp::MinRelu, _) => map2(r, mask, dst, a, b, signed_half(|a, b| a.min(b).max(0))),
        (IntOp::MaxRelu, _) => map2(r, mask, dst, a, b, signed_half(|a, b| a.max(b).max(0))),
        // The parser lets nothing else through.
        _ => map2(r, mask, dst, a, b, |a, b| halves2(a, b, u16::wrapping_add)),
    }
}

macro_rules! unary_of_type {
    (
        $signed:ty, $unsigned:ty,
        $r:ident, $mask:ident, $op:ident, $dst:ident, $a:ident, $is:expr
    ) => {
        match $op {
            IntUnaryOp::Neg => map1($r, $mask, $dst, $a, <$signed>::wrapping_neg),
            IntUnaryOp::Abs => map1($r, $mask, $dst, $a, <$signed>::wrapping_abs),
            IntUnaryOp::Not => map1($r, $mask, $dst, $a, |a: $unsigned| !a),
            IntUnaryOp::Cnot => map1($r, $mask, $dst, $a, |a: $unsigned| <$unsigned>::from(a == 0)),
            IntUnaryOp::Popc => map1($r, $mask, $dst, $a, |a: $unsigned| a.count_ones()),
            IntUnaryOp::Clz => map1($r, $mask, $dst, $a, |a: $unsigned| a.leading_zeros()),
            IntUnaryOp::Brev => map1($r, $mask, $dst, $a, |a: $unsigned| a.reverse_bits()),
            IntUnaryOp::Bfind | IntUnaryOp::BfindShift => {
                let top = <$unsigned>::BITS - 1;
                let shifted = $op == IntUnaryOp::BfindShift;
                map1($r, $mask, $dst, $a, |a: $unsigned| {
                    // The most significant bit that differs from the sign.
                    let a = if $is && a >> top != 0 { !a } else { a };
                    let zeros = a.leading_zeros();
                    if zeros > top {
                        u32::MAX
                    } else if shifted {
                        zeros
                    } else {
                        top - zeros
                    }
                });
            }
        }
    };
}

#[inline(always)]
fn one_lanes(r: &mut Registers, mask: u32, op: IntUnaryOp, ty: IntType, dst: u32, a: Operand) {
    match ty {
        IntType::U16 => unary_of_type!(i16, u16, r, mask, op, dst, a, false),
        IntType::S16 => unary_of_type!(i16, u16, r, mask, op, dst, a, true),
        IntType::U64 => unary_of_type!(i64, u64, r, mask, op, dst, a, false),
        IntType::S64 => unary_of_type!(i64, u64, r, mask, op, dst, a, true),
        IntType::S32 => unary_of_type!(i32, u32, r, mask, op, dst, a, true),
        _ => unary_of_type!(i32, u32, r, mask, op, dst, a, false),
    }
}

#[inline(always)]
fn mul_wide_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand, b: Operand) {
    match ty {
        IntType::U16 => map2(r, mask, dst, a, b, |a: u16, b: u16| u32::from(a) * u32::from(b)),
        IntType::S16 => map2(r, mask, dst, a, b, |a: i16, b: i16| i32::from(a) * i32::from(b)),
        IntType::S32 => map2(r, mask, dst, a, b, |a: i32, b: i32| i64::from(a) * i64::from(b)),
        _ => map2(r, mask, dst, a, b, |a: u32, b: u32| u64::from(a) * u64::from(b)),
    }
}

macro_rules! mad_of_type {
    ($type:ty, $wide:ty, $r:ident, $mask:ident, $op:ident, $dst:ident, $abc:ident) => {{
        type T = $type;
        type W = $wide;
        match $op {
            MadOp::Lo => {
                map3($r, $mask, $dst, $abc, |a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))
            }
            MadOp::Hi => map3($r, $mask, $dst, $abc, |a: T, b: T, c: T| {
                ((W::from(a) * W::from(b) >> T::BITS) as T).wrapping_add(c)
            }),
            MadOp::HiSaturating => map3($r, $mask, $dst, $abc, |a: T, b: T, c: T| {
                ((W::from(a) * W::from(b) >> T::BITS) as T).saturating_add(c)
            }),
            MadOp::Lo24 => map3($r, $mask, $dst, $abc, |a: u32, b: u32, c: u32| {
                ((low24(T::MIN != 0, a) * low24(T::MIN != 0, b)) as u32).wrapping_add(c)
            }),
            MadOp::Hi24 => map3($r, $mask, $dst, $abc, |a: u32, b: u32, c: u32| {
                ((low24(T::MIN != 0, a) * low24(T::MIN != 0, b) >> 16) as u32).wrapping_add(c)
            }),
            MadOp::Wide => {}
        }
    }};
}

#[inline(always)]
fn mad_lanes(r: &mut Registers, mask: u32, op: MadOp, ty: IntType, dst: u32, abc: [Operand; 3]) {
    if op == MadOp::Wide {
        return mad_wide(r, mask, ty, dst, abc);
    }
    match ty {
        IntType::U16 => mad_of_type!(u16, u32, r, mask, op, dst, abc),
        IntType::S16 => mad_of_type!(i16, i32, r, mask, op, dst, abc),
        IntType::S32 => mad_of_type!(i32, i64, r, mask, op, dst, abc),
        IntType::U64 => mad_of_type!(u64, u128, r, mask, op, dst, abc),
        IntType::S64 => mad_of_type!(i64, i128, r, mask, op, dst, abc),
        _ => mad_of_type!(u32, u64, r, mask, op, dst, abc),
    }
}

#[inline(always)]
fn mad_wide(r: &mut Registers, mask: u32, ty: IntType, dst: u32, abc: [Operand; 3]) {
    match ty {
        IntType::U16 => map3(r, mask, dst, abc, |a: u16, b: u16, c: u32| {
            (u32::from(a) * u32::from(b)).wrapping_add(c)
        }),
        IntType::S16 => map3(r, mask, dst, abc, |a: i16, b: i16, c: i32| {
            (i32::from(a) * i32::from(b)).wrapping_add(c)
        }),
        IntType::S32 => map3(r, mask, dst, abc, |a: i32, b: i32, c: i64| {
            (i64::from(a) * i64::from(b)).wrapping_add(c)
        }),
        _ => map3(r, mask, dst, abc, |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }),
    }
}

macro_rules! sad_of_type {
    ($type:ty, $unsigned:ty, $r:ident, $mask:ident, $dst:ident, $abc:ident) => {
        map3($r, $mask, $dst, $abc, |a: $type, b: $type, c: $unsigned| {
            a.abs_diff(b).wrapping_add(c)
        })
    };
}

#[inline(always)]
fn sad_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, abc: [Operand; 3]) {
    match ty {
        IntType::U16 => sad_of_type!(u16, u16, r, mask, dst, abc),
        IntType::S16 => sad_of_type!(i16, u16, r, mask, dst, abc),
        IntType::S32 => sad_of_type!(i32, u32, r, mask, dst, abc),
        IntType::U64 => sad_of_type!(u64, u64, r, mask, dst, abc),
        IntType::S64 => sad_of_type!(i64, u64, r, mask, dst, abc),
        _ => sad_of_type!(u32, u32, r, mask, dst, abc),
    }
}

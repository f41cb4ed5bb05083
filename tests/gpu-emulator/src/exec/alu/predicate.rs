//! Comparisons and selections.

use super::both_ways;
use super::float16::Half;
use super::float32::flush;
use super::lanes::{Lane, map3, test1, test2};
use super::moves::word_plane;
use crate::exec::registers::{LANES, Registers};
use crate::ptx::ir::{BoolOp, Compare, FloatType, Operand, PredicateOperand, TestpOp, Type};

type Combination = Option<(BoolOp, PredicateOperand)>;

both_ways! {
    pub(crate) fn comparison(r: &Registers, cmp: Compare, ty: Type, ftz: bool,
        ab: [Operand; 2], out: &mut [u32; 2]) = comparison_lanes;
    pub(crate) fn select(r: &mut Registers, mask: u32, bits: u8, dst: u32, a: Operand, b: Operand,
        choice: u32) = select_lanes;
}

/// A boolean operation on masks.
pub(super) fn combine(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

/// Lanes in which the comparison holds. All of them follow from three: equal, less and less or
/// equal are false of NaN, and so are the same with the operands swapped.
#[inline(always)]
fn compare(cmp: Compare, test: impl Fn(Basic, bool) -> u32) -> u32 {
    let (equal, less, at_most) = (Basic::Equal, Basic::Less, Basic::AtMost);
    match cmp {
        Compare::Eq => test(equal, false),
        Compare::Neu => !test(equal, false),
        Compare::Lt => test(less, false),
        Compare::Gt => test(less, true),
        Compare::Le => test(at_most, false),
        Compare::Ge => test(at_most, true),
        Compare::Ltu => !test(at_most, true),
        Compare::Gtu => !test(at_most, false),
        Compare::Leu => !test(less, true),
        Compare::Geu => !test(less, false),
        Compare::Ne => test(less, false) | test(less, true),
        Compare::Equ => !(test(less, false) | test(less, true)),
        Compare::Num => test(at_most, false) | test(at_most, true),
        Compare::Nan => !(test(at_most, false) | test(at_most, true)),
    }
}

/// The comparisons the others are made of.
#[derive(Debug, Clone, Copy)]
enum Basic {
    Equal,
    Less,
    AtMost,
}

/// Lanes in which a basic comparison holds of `value(a)` and `value(b)`.
#[inline(always)]
fn basic<T: Lane, V: PartialOrd>(
    r: &Registers,
    which: Basic,
    [a, b]: [Operand; 2],
    value: impl Fn(T) -> V,
) -> u32 {
    match which {
        Basic::Equal => test2(r, a, b, |a: T, b: T| value(a) == value(b)),
        Basic::Less => test2(r, a, b, |a: T, b: T| value(a) < value(b)),
        Basic::AtMost => test2(r, a, b, |a: T, b: T| value(a) <= value(b)),
    }
}

/// Lanes in which the comparison holds; of packed types, of the lower and of the upper halves.
fn compared(r: &Registers, cmp: Compare, ty: Type, ftz: bool, a: Operand, b: Operand) -> [u32; 2] {
    let mut out = [0; 2];
    comparison(r, cmp, ty, ftz, [a, b], &mut out);
    out
}

#[inline(always)]
fn comparison_lanes(
    r: &Registers,
    cmp: Compare,
    ty: Type,
    ftz: bool,
    [a, b]: [Operand; 2],
    out: &mut [u32; 2],
) {
    let half = |half: Half, shift: u32| {
        let value = move |word: u32| {
            let bits = (word >> shift) as u16;
            let subnormal = half == Half::F16 && bits & 0x7C00 == 0;
            half.decode(if ftz && subnormal { bits & 0x8000 } else { bits })
        };
        compare(cmp, |which, swap| basic(r, which, if swap { [b, a] } else { [a, b] }, value))
    };
    macro_rules! of {
        ($type:ty, $value:expr) => {
            compare(cmp, |which, swap| {
                basic::<$type, _>(r, which, if swap { [b, a] } else { [a, b] }, $value)
            })
        };
    }
    *out = match ty {
        Type::F16x2 => [half(Half::F16, 0), half(Half::F16, 16)],
        Type::Bf16x2 => [half(Half::Bf16, 0), half(Half::Bf16, 16)],
        Type::F16 => [half(Half::F16, 0); 2],
        Type::Bf16 => [half(Half::Bf16, 0); 2],
        Type::U16 | Type::B16 => [of!(u16, |v| v); 2],
        Type::S16 => [of!(i16, |v| v); 2],
        Type::S32 => [of!(i32, |v| v); 2],
        Type::U64 | Type::B64 => [of!(u64, |v| v); 2],
        Type::S64 => [of!(i64, |v| v); 2],
        Type::F32 if ftz => [of!(f32, flush); 2],
        Type::F32 => [of!(f32, |v| v); 2],
        Type::F64 => [of!(f64, |v| v); 2],
        _ => [of!(u32, |v| v); 2],
    };
}

fn is_packed(ty: Type) -> bool {
    matches!(ty, Type::F16x2 | Type::Bf16x2)
}

/// See [`crate::ptx::ir::Op::Setp`].
pub(super) fn setp(
    r: &mut Registers,
    mask: u32,
    cmp: Compare,
    ty: Type,
    ftz: bool,
    combination: Combination,
    dsts: [Option<u32>; 2],
    a: Operand,
    b: Operand,
) {
    let mut values = compared(r, cmp, ty, ftz, a, b);
    if !is_packed(ty) {
        // The second destination gets the comparison negated, before it is combined.
        values[1] = !values[0];
    }
    if let Some((op, other)) = combination {
        let other = r.predicate(other);
        values = values.map(|value| combine(op, value, other));
    }
    for (dst, value) in dsts.into_iter().zip(values) {
        if let Some(dst) = dst {
            r.write_predicate(dst, mask, value);
        }
    }
}

/// See [`crate::ptx::ir::Op::Set`].
pub(super) fn set(
    r: &mut Registers,
    mask: u32,
    cmp: Compare,
    to: Type,
    ty: Type,
    ftz: bool,
    combination: Combination,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    let mut values = compared(r, cmp, ty, ftz, a, b);
    if let Some((op, other)) = combination {
        let other = r.predicate(other);
        values = values.map(|value| combine(op, value, other));
    }
    // What "true" looks like in each half.
    let (low, high) = match to {
        Type::F32 => (0x3F80_0000, 0),
        Type::F16 => (0x3C00, 0),
        Type::Bf16 => (0x3F80, 0),
        Type::F16x2 => (0x3C00, 0x3C00_0000),
        Type::Bf16x2 => (0x3F80, 0x3F80_0000),
        Type::U16 | Type::S16 => (0xFFFF, 0),
        _ if is_packed(ty) => (0xFFFF, 0xFFFF_0000),
        _ => (u32::MAX, 0),
    };
    let mut out = [0u32; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        let bit = |value: u32| 0u32.wrapping_sub(value >> i & 1);
        *out = (bit(values[0]) & low) | (bit(values[1]) & high);
    }
    r.write_words(dst, mask, &out);
}

/// `c ? a : b`.
pub(super) fn selp(
    r: &mut Registers,
    mask: u32,
    bits: u8,
    dst: u32,
    a: Operand,
    b: Operand,
    c: PredicateOperand,
) {
    select(r, mask, bits, dst, a, b, r.predicate(c));
}

#[inline(always)]
fn select_lanes(
    r: &mut Registers,
    mask: u32,
    bits: u8,
    dst: u32,
    a: Operand,
    b: Operand,
    choice: u32,
) {
    let chosen = |r: &Registers, plane: u32| {
        let (a, b) = (word_plane(r, a, plane), word_plane(r, b, plane));
        let mut out = [0u32; LANES];
        for i in 0..LANES {
            out[i] = if choice >> i & 1 != 0 { a[i] } else { b[i] };
        }
        out
    };
    let low = chosen(r, 0);
    if bits == 64 {
        let high = chosen(r, 1);
        r.write_words(dst + 1, mask, &high);
    }
    r.write_words(dst, mask, &low);
}

/// `c >= 0 ? a : b`; a NaN chooses `b`, -0 chooses `a`.
pub(super) fn slct(
    r: &mut Registers,
    mask: u32,
    bits: u8,
    float: bool,
    ftz: bool,
    dst: u32,
    abc: [Operand; 3],
) {
    let first = |c: u32| {
        let value = f32::from_bits(c);
        if float { (if ftz { flush(value) } else { value }) >= 0.0 } else { c as i32 >= 0 }
    };
    if bits == 64 {
        map3(r, mask, dst, abc, |a: u64, b: u64, c: u32| if first(c) { a } else { b });
    } else {
        map3(r, mask, dst, abc, |a: u32, b: u32, c: u32| if first(c) { a } else { b });
    }
}

/// Classes of floats.
pub(super) fn testp(
    r: &mut Registers,
    mask: u32,
    op: TestpOp,
    ty: FloatType,
    dst: u32,
    a: Operand,
) {
    let value = if ty == FloatType::F64 {
        test1(r, a, |a: f64| match op {
            TestpOp::Finite => a.is_finite(),
            TestpOp::Infinite => a.is_infinite(),
            TestpOp::Number => !a.is_nan(),
            TestpOp::NotANumber => a.is_nan(),
            TestpOp::Normal => a.is_normal(),
            TestpOp::Subnormal => a.is_subnormal(),
        })
    } else {
        test1(r, a, |a: f32| match op {
            TestpOp::Finite => a.is_finite(),
            TestpOp::Infinite => a.is_infinite(),
            TestpOp::Number => !a.is_nan(),
            TestpOp::NotANumber => a.is_nan(),
            TestpOp::Normal => a.is_normal(),
            TestpOp::Subnormal => a.is_subnormal(),
        })
    };
    r.write_predicate(dst, mask, value);
}

//! What instructions do to registers alone: one operation applied to 32 lanes.
//!
//! Each family is a file. A family's functions are compiled twice, for any processor and for one
//! with AVX2 and FMA (`both_ways!`), and the choice is made once an instruction, not once a lane.
//! Both give the same bits: nothing is contracted or reordered by the compiler.
//! The invariant: only lanes of the mask are written, and all sources are read before any write.
//! Read next: `lanes`, then any family.

#![allow(clippy::too_many_arguments)] // the arguments are the fields of an instruction

mod approximate;
mod bits;
mod carry;
mod convert;
mod eight;
mod float16;
mod float32;
mod float64;
mod integer;
mod lanes;
mod moves;
mod predicate;
mod rounding;

use super::registers::Registers;
use crate::ptx::ir::{FloatMode, FloatOp, FloatType, FloatUnaryOp, Op, Operand};

/// Whether the processor has what the wide copies are compiled for.
#[inline]
pub(crate) fn is_wide() -> bool {
    #[cfg(test)]
    if tests::PLAIN.get() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Defines a function that runs an `#[inline(always)]` one, compiled for the processor at hand.
macro_rules! both_ways {
    ($(pub(crate) fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $inner:path;)+) => { $(
        pub(crate) fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($argument: $type),*) {
                    $inner($($argument),*);
                }
                if $crate::exec::alu::is_wide() {
                    // SAFETY: `is_wide` has found the features `wide` is compiled for.
                    unsafe { wide($($argument),*) };
                    return;
                }
            }
            $inner($($argument),*);
        }
    )+ };
}
use both_ways;

/// Executes an instruction of registers alone for the lanes of `mask`; `false` if it is another's.
pub fn execute(op: &Op, r: &mut Registers, mask: u32) -> bool {
    match *op {
        Op::Mov { bits, dst, a } => moves::mov(r, mask, bits, dst, a),
        Op::MovPredicate { dst, a } => r.write_predicate(dst, mask, r.predicate(a)),
        Op::Pack { dst, part_bits, ref parts } => moves::pack(r, mask, dst, part_bits, parts),
        Op::Unpack { ref dsts, part_bits, a } => moves::unpack(r, mask, dsts, part_bits, a),

        Op::Int { op, ty, dst, a, b } => integer::two(r, mask, op, ty, dst, a, b),
        Op::IntUnary { op, ty, dst, a } => integer::one(r, mask, op, ty, dst, a),
        Op::MulWide { ty, dst, a, b } => integer::mul_wide(r, mask, ty, dst, a, b),
        Op::Mad { op, ty, dst, a, b, c } => integer::mad(r, mask, op, ty, dst, [a, b, c]),
        Op::Sad { ty, dst, a, b, c } => integer::sad(r, mask, ty, dst, [a, b, c]),
        Op::Carry { op, ty, carry_in, carry_out, dst, a, b, c } => {
            let c = c.unwrap_or(Operand::Immediate(0));
            carry::execute(r, mask, op, ty, [carry_in, carry_out], dst, [a, b, c]);
        }
        Op::Shl { ty, dst, a, b } => bits::shl(r, mask, ty, dst, a, b),
        Op::Shr { ty, dst, a, b } => bits::shr(r, mask, ty, dst, a, b),
        Op::Shf { left, wrap, dst, a, b, c } => bits::shf(r, mask, left, wrap, dst, [a, b, c]),
        Op::Lop3 { lut, dst, a, b, c } => bits::lop3(r, mask, lut, dst, [a, b, c]),
        Op::Prmt { mode, dst, a, b, c } => bits::prmt(r, mask, mode, dst, [a, b, c]),
        Op::Bfe { ty, dst, a, b, c } => bits::bfe(r, mask, ty, dst, [a, b, c]),
        Op::Bfi { ty, dst, a, b, c, d } => bits::bfi(r, mask, ty, dst, [a, b, c, d]),
        Op::Bmsk { wrap, dst, a, b } => bits::bmsk(r, mask, wrap, dst, a, b),
        Op::Szext { wrap, signed, dst, a, b } => bits::szext(r, mask, wrap, signed, dst, a, b),
        Op::Dp4a { a_signed, b_signed, dst, a, b, c } => {
            bits::dp4a(r, mask, [a_signed, b_signed], dst, [a, b, c]);
        }
        Op::Dp2a { a_signed, b_signed, high, dst, a, b, c } => {
            bits::dp2a(r, mask, [a_signed, b_signed], high, dst, [a, b, c]);
        }

        Op::Float { op, ty, mode, dst, a, b } => float(r, mask, op, ty, mode, dst, a, b),
        Op::FloatUnary { op, ty, mode, dst, a } => float_unary(r, mask, op, ty, mode, dst, a),
        Op::Fma { ty, mode, dst, a, b, c } => match ty {
            FloatType::F32 => float32::fma(r, mask, mode, dst, [a, b, c]),
            FloatType::F64 => float64::fma(r, mask, mode, dst, [a, b, c]),
            FloatType::F32x2 => {
                for (i, part) in [0, 1].into_iter().zip([[a, b, c]; 2]) {
                    float32::fma(r, mask, mode, dst + i, part.map(|o| half_of(o, i)));
                }
            }
            ty => float16::fma(r, mask, ty, mode, dst, [a, b, c]),
        },
        Op::Float3 { op, mode, dst, a, b, c } => float32::three(r, mask, op, mode, dst, [a, b, c]),
        Op::Testp { op, ty, dst, a } => predicate::testp(r, mask, op, ty, dst, a),
        Op::Cvt { convert, dst, a, b } => convert::execute(r, mask, convert, dst, a, b),
        Op::CvtPack { to, dst, a, b, c } => convert::pack(r, mask, to, dst, a, b, c),

        Op::Setp { cmp, ty, ftz, combine, dst, dst2, a, b } => {
            predicate::setp(r, mask, cmp, ty, ftz, combine, [dst, dst2], a, b);
        }
        Op::Set { cmp, to, ty, ftz, combine, dst, a, b } => {
            predicate::set(r, mask, cmp, to, ty, ftz, combine, dst, a, b);
        }
        Op::Selp { bits, dst, a, b, c } => predicate::selp(r, mask, bits, dst, a, b, c),
        Op::Slct { bits, float, ftz, dst, a, b, c } => {
            predicate::slct(r, mask, bits, float, ftz, dst, [a, b, c]);
        }
        Op::PredicateLogic { op, dst, a, b } => {
            let value = predicate::combine(op, r.predicate(a), r.predicate(b));
            r.write_predicate(dst, mask, value);
        }
        Op::PredicateNot { dst, a } => r.write_predicate(dst, mask, !r.predicate(a)),
        _ => return false,
    }
    true
}

/// The low or high word of a pair of f32.
fn half_of(operand: Operand, index: u32) -> Operand {
    match operand {
        Operand::Plane(plane) => Operand::Plane(plane + index),
        Operand::Immediate(bits) => Operand::Immediate(bits >> (32 * index)),
    }
}

fn float(
    r: &mut Registers,
    mask: u32,
    op: FloatOp,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    match ty {
        FloatType::F32 => float32::two(r, mask, op, mode, dst, a, b),
        FloatType::F64 => float64::two(r, mask, op, mode, dst, a, b),
        FloatType::F32x2 => {
            for i in [0, 1] {
                float32::two(r, mask, op, mode, dst + i, half_of(a, i), half_of(b, i));
            }
        }
        ty => float16::two(r, mask, op, ty, mode, dst, a, b),
    }
}

fn float_unary(
    r: &mut Registers,
    mask: u32,
    op: FloatUnaryOp,
    ty: FloatType,
    mode: FloatMode,
    dst: u32,
    a: Operand,
) {
    match ty {
        FloatType::F32 => float32::one(r, mask, op, mode, dst, a),
        FloatType::F64 => float64::one(r, mask, op, mode, dst, a),
        FloatType::F32x2 => {
            for i in [0, 1] {
                float32::one(r, mask, op, mode, dst + i, half_of(a, i));
            }
        }
        ty => float16::one(r, mask, op, ty, mode, dst, a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::parse_as_written;
    use std::cell::Cell;

    thread_local! {
        /// Makes this thread run what any processor can.
        pub(super) static PLAIN: Cell<bool> = const { Cell::new(false) };
    }

    const LINES: &[&str] = &[
        "mad.lo.s32 %r1, %r2, %r3, %r4;",
        "mul.hi.u64 %d1, %d2, %d3;",
        "lop3.b32 %r1, %r2, %r3, %r4, 0x96;",
        "prmt.b32 %r1, %r2, %r3, %r4;",
        "bfe.s32 %r1, %r2, %r3, %r4;",
        "dp4a.s32.u32 %r1, %r2, %r3, %r4;",
        "add.cc.u32 %r1, %r2, %r3; addc.u32 %r4, %r2, %r3;",
        "fma.rn.f32 %f1, %f2, %f3, %f4;",
        "fma.rn.ftz.sat.f32 %f1, %f2, %f3, %f4;",
        "fma.rm.f32 %f1, %f2, %f3, %f4;",
        "max.NaN.f32 %f1, %f2, %f3;",
        "div.rn.f32 %f1, %f2, %f3;",
        "ex2.approx.ftz.f32 %f1, %f2;",
        "lg2.approx.f32 %f1, %f2;",
        "tanh.approx.f32 %f1, %f2;",
        "rsqrt.approx.f32 %f1, %f2;",
        "fma.rn.f64 %e1, %e2, %e3, %e4;",
        "fma.rn.bf16x2 %r1, %r2, %r3, %r4;",
        "fma.rn.relu.f16x2 %r1, %r2, %r3, %r4;",
        "cvt.rzi.s32.f32 %r1, %f2;",
        "cvt.rn.f16x2.f32 %r1, %f2, %f3;",
        "cvt.f32.f16 %f1, %h2;",
        "setp.gtu.f32 %p1|%p2, %f2, %f3; selp.b64 %d1, %d2, %d3, %p1;",
    ];

    #[test]
    fn both_compilations_give_the_same_bits() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
            (state >> 32) as u32
        };
        for line in LINES {
            let text = format!(
                ".version 8.7\n.target sm_90\n.entry k() {{ .reg .pred %p<8>; .reg .b16 %h<8>; \
                 .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %d<8>; .reg .f64 %e<8>;\n{line}\n}}"
            );
            let function = parse_as_written(&text).unwrap().functions.remove(0);
            for round in 0..200 {
                let mut wide = Registers::new(function.planes, function.predicates);
                for plane in &mut wide.planes {
                    // Odd rounds have exponents near one another, where roundings matter.
                    let near = |word: u32| (word & 0x83FF_83FF) | 0x3C00_3C00;
                    *plane = std::array::from_fn(|_| random());
                    if round % 2 == 1 {
                        *plane = plane.map(near);
                    }
                }
                wide.planes[..8].iter_mut().flatten().for_each(|half| *half &= 0xFFFF);
                let mut plain = wide.clone();
                let mask = if round % 3 == 0 { u32::MAX } else { random() };
                for instruction in &function.body {
                    assert!(execute(&instruction.op, &mut wide, mask));
                    PLAIN.set(true);
                    execute(&instruction.op, &mut plain, mask);
                    PLAIN.set(false);
                }
                let same = wide.predicates == plain.predicates
                    && wide.carry == plain.carry
                    && wide.planes.iter().flatten().eq(plain.planes.iter().flatten());
                assert!(same, "{line}");
            }
        }
    }
}

//! Logic, shifts, bit fields, byte permutes and small dot products.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::{B32, int_type, only};
use crate::ptx::ir::{BoolOp, IntOp, IntUnaryOp, Op, PrmtMode, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "and" | "or" | "xor" => logic(body, s),
        "not" => not(body, s),
        "shl" | "shr" => shift(body, s),
        "shf" => funnel(body, s),
        "lop3" => lop3(body, s),
        "prmt" => prmt(body, s),
        "bfe" => {
            let ty = only(s.modifiers.ty()?, &[Type::U32, Type::S32, Type::U64, Type::S64])?;
            let [dst, a, b, c] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            let (a, b, c) = (body.source(a, ty)?, body.source(b, B32)?, body.source(c, B32)?);
            Ok(Op::Bfe { ty: int_type(ty)?, dst, a, b, c })
        }
        "bfi" => {
            let ty = only(s.modifiers.ty()?, &[Type::B32, Type::B64])?;
            let [dst, a, b, c, d] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
            let (c, d) = (body.source(c, B32)?, body.source(d, B32)?);
            Ok(Op::Bfi { ty: int_type(ty)?, dst, a, b, c, d })
        }
        "bmsk" | "szext" => mask(body, s),
        "dp4a" | "dp2a" => dot(body, s),
        _ => unary(body, s),
    }
}

const BITS: [Type; 3] = [Type::B16, Type::B32, Type::B64];

fn logic<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    let [dst, a, b] = exactly(&s.operands)?;
    if ty == Type::Pred {
        let op = match s.opcode {
            "and" => BoolOp::And,
            "or" => BoolOp::Or,
            _ => BoolOp::Xor,
        };
        let dst = body.predicate_dst(dst)?;
        return Ok(Op::PredicateLogic { op, dst, a: body.predicate(a)?, b: body.predicate(b)? });
    }
    only(ty, &BITS)?;
    let op = match s.opcode {
        "and" => IntOp::And,
        "or" => IntOp::Or,
        _ => IntOp::Xor,
    };
    let dst = body.dst(dst, ty.bits())?;
    Ok(Op::Int { op, ty: int_type(ty)?, dst, a: body.source(a, ty)?, b: body.source(b, ty)? })
}

fn not<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    let [dst, a] = exactly(&s.operands)?;
    if ty == Type::Pred {
        return Ok(Op::PredicateNot { dst: body.predicate_dst(dst)?, a: body.predicate(a)? });
    }
    only(ty, &BITS)?;
    let dst = body.dst(dst, ty.bits())?;
    Ok(Op::IntUnary { op: IntUnaryOp::Not, ty: int_type(ty)?, dst, a: body.source(a, ty)? })
}

fn shift<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    if s.opcode == "shl" {
        only(ty, &BITS)?;
    }
    only(
        ty,
        &[&BITS[..], &[Type::U16, Type::S16, Type::U32, Type::S32, Type::U64, Type::S64]].concat(),
    )?;
    let [dst, a, b] = exactly(&s.operands)?;
    let dst = body.dst(dst, ty.bits())?;
    let (ty, a, b) = (int_type(ty)?, body.source(a, ty)?, body.source(b, B32)?);
    Ok(if s.opcode == "shl" { Op::Shl { ty, dst, a, b } } else { Op::Shr { ty, dst, a, b } })
}

fn funnel<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let left = s.modifiers.one_of(&[("l", true), ("r", false)]).ok_or("`.l` or `.r` is missing")?;
    let wrap = s.modifiers.one_of(&[("wrap", true), ("clamp", false)]);
    let wrap = wrap.ok_or("`.wrap` or `.clamp` is missing")?;
    only(s.modifiers.ty()?, &[B32])?;
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    let (a, b, c) = (body.source(a, B32)?, body.source(b, B32)?, body.source(c, B32)?);
    Ok(Op::Shf { left, wrap, dst, a, b, c })
}

fn lop3<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    only(s.modifiers.ty()?, &[B32])?;
    let [dst, a, b, c, lut] = exactly(&s.operands)?;
    let Raw::Integer(lut @ 0..=255) = lut else {
        return Err("the table of `lop3` must be a constant from 0 to 255".into());
    };
    let (lut, dst) = (*lut as u8, body.dst(dst, 32)?);
    let (a, b, c) = (body.source(a, B32)?, body.source(b, B32)?, body.source(c, B32)?);
    Ok(Op::Lop3 { lut, dst, a, b, c })
}

fn prmt<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    only(s.modifiers.ty()?, &[B32])?;
    let mode = s.modifiers.one_of(&[
        ("f4e", PrmtMode::F4e),
        ("b4e", PrmtMode::B4e),
        ("rc8", PrmtMode::Rc8),
        ("ecl", PrmtMode::Ecl),
        ("ecr", PrmtMode::Ecr),
        ("rc16", PrmtMode::Rc16),
    ]);
    let mode = mode.unwrap_or(PrmtMode::Index);
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    let (a, b, c) = (body.source(a, B32)?, body.source(b, B32)?, body.source(c, B32)?);
    Ok(Op::Prmt { mode, dst, a, b, c })
}

fn mask<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let wrap = s.modifiers.one_of(&[("wrap", true), ("clamp", false)]);
    let wrap = wrap.ok_or("`.wrap` or `.clamp` is missing")?;
    let ty = s.modifiers.ty()?;
    let [dst, a, b] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    let (a, b) = (body.source(a, B32)?, body.source(b, B32)?);
    if s.opcode == "bmsk" {
        only(ty, &[B32])?;
        return Ok(Op::Bmsk { wrap, dst, a, b });
    }
    let signed = only(ty, &[Type::U32, Type::S32])? == Type::S32;
    Ok(Op::Szext { wrap, signed, dst, a, b })
}

fn dot<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let kinds = [Type::U32, Type::S32];
    let four = s.opcode == "dp4a";
    let high = !four
        && s.modifiers.one_of(&[("lo", false), ("hi", true)]).ok_or("`.lo` or `.hi` is missing")?;
    let a_signed = only(s.modifiers.ty()?, &kinds)? == Type::S32;
    let b_signed = only(s.modifiers.ty()?, &kinds)? == Type::S32;
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    let (a, b, c) = (body.source(a, B32)?, body.source(b, B32)?, body.source(c, B32)?);
    Ok(if four {
        Op::Dp4a { a_signed, b_signed, dst, a, b, c }
    } else {
        Op::Dp2a { a_signed, b_signed, high, dst, a, b, c }
    })
}

/// `cnot`, `popc`, `clz`, `brev` and `bfind`.
fn unary<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    let wide = [Type::B32, Type::B64];
    let (op, bits) = match s.opcode {
        "cnot" => {
            only(ty, &BITS)?;
            (IntUnaryOp::Cnot, ty.bits())
        }
        "brev" => {
            only(ty, &wide)?;
            (IntUnaryOp::Brev, ty.bits())
        }
        "popc" => {
            only(ty, &wide)?;
            (IntUnaryOp::Popc, 32)
        }
        "clz" => {
            only(ty, &wide)?;
            (IntUnaryOp::Clz, 32)
        }
        _ => {
            only(ty, &[Type::U32, Type::S32, Type::U64, Type::S64])?;
            let shifted = s.modifiers.take("shiftamt");
            (if shifted { IntUnaryOp::BfindShift } else { IntUnaryOp::Bfind }, 32)
        }
    };
    let [dst, a] = exactly(&s.operands)?;
    Ok(Op::IntUnary { op, ty: int_type(ty)?, dst: body.dst(dst, bits)?, a: body.source(a, ty)? })
}

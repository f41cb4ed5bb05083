//! Comparisons and selections.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::only;
use crate::ptx::ir::{BoolOp, Compare, Op, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "setp" => setp(body, s),
        "set" => set(body, s),
        "selp" => {
            let ty = s.modifiers.ty()?;
            sized(ty)?;
            let [dst, a, b, c] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
            Ok(Op::Selp { bits: ty.bits() as u8, dst, a, b, c: body.predicate(c)? })
        }
        _ => {
            let ty = s.modifiers.ty()?;
            sized(ty)?;
            let by = only(s.modifiers.ty()?, &[Type::S32, Type::F32])?;
            let ftz = s.modifiers.take("ftz");
            let [dst, a, b, c] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, by)?);
            let float = by == Type::F32;
            Ok(Op::Slct { bits: ty.bits() as u8, float, ftz, dst, a, b, c })
        }
    }
}

fn sized(ty: Type) -> Parsed<()> {
    if matches!(ty.bits(), 16 | 32 | 64) { Ok(()) } else { Err(format!("{ty:?} has no such form")) }
}

fn compare(s: &mut Statement<'_>) -> Parsed<Compare> {
    let found = s.modifiers.one_of(&[
        ("eq", Compare::Eq),
        ("ne", Compare::Ne),
        ("lt", Compare::Lt),
        ("le", Compare::Le),
        ("gt", Compare::Gt),
        ("ge", Compare::Ge),
        ("lo", Compare::Lt),
        ("ls", Compare::Le),
        ("hi", Compare::Gt),
        ("hs", Compare::Ge),
        ("equ", Compare::Equ),
        ("neu", Compare::Neu),
        ("ltu", Compare::Ltu),
        ("leu", Compare::Leu),
        ("gtu", Compare::Gtu),
        ("geu", Compare::Geu),
        ("num", Compare::Num),
        ("nan", Compare::Nan),
    ]);
    found.ok_or_else(|| "the comparison is missing".into())
}

fn combination(s: &mut Statement<'_>) -> Option<BoolOp> {
    s.modifiers.one_of(&[("and", BoolOp::And), ("or", BoolOp::Or), ("xor", BoolOp::Xor)])
}

/// Unordered comparisons are for floats, ordering ones not for untyped bits.
fn check_compare(cmp: Compare, ty: Type) -> Parsed<()> {
    use Compare::{Eq, Equ, Ge, Geu, Gt, Gtu, Le, Leu, Lt, Ltu, Nan, Ne, Neu, Num};
    let fits = match cmp {
        Eq | Ne => true,
        Lt | Le | Gt | Ge => !matches!(ty, Type::B16 | Type::B32 | Type::B64),
        Equ | Neu | Ltu | Leu | Gtu | Geu | Num | Nan => ty.is_float(),
    };
    let known = matches!(ty.bits(), 16 | 32 | 64)
        && !matches!(ty, Type::Tf32 | Type::F32x2 | Type::E4m3x2 | Type::E5m2x2)
        && !matches!(ty, Type::U16x2 | Type::S16x2);
    if fits && known { Ok(()) } else { Err(format!("{ty:?} has no such comparison")) }
}

fn setp<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let cmp = compare(s)?;
    let boolean = combination(s);
    let ftz = s.modifiers.take("ftz");
    let ty = s.modifiers.ty()?;
    check_compare(cmp, ty)?;
    let [dst, a, b] = exactly(s.operands.get(..3).unwrap_or(&s.operands))?;
    let combine = match (boolean, &s.operands[3..]) {
        (None, []) => None,
        (Some(op), [c]) => Some((op, body.predicate(c)?)),
        _ => return Err("wrong number of operands".into()),
    };
    let maybe = |name: &str| match name {
        "_" => Ok(None),
        name => body.predicate_named(name).map(Some),
    };
    let (dst, dst2) = match dst {
        Raw::Pair(p, q) => (maybe(p)?, maybe(q)?),
        Raw::Name(p, None) => (maybe(p)?, None),
        _ => return Err("`setp` writes predicates".into()),
    };
    let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
    Ok(Op::Setp { cmp, ty, ftz, combine, dst, dst2, a, b })
}

fn set<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let cmp = compare(s)?;
    let boolean = combination(s);
    let ftz = s.modifiers.take("ftz");
    let to = s.modifiers.ty()?;
    let ty = s.modifiers.ty()?;
    check_compare(cmp, ty)?;
    let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
    if packed {
        only(to, &[ty, Type::U32, Type::S32])?;
    } else {
        let narrow = [Type::F16, Type::Bf16, Type::U16, Type::S16];
        only(to, &[&narrow[..], &[Type::U32, Type::S32, Type::F32]].concat())?;
    }
    let [dst, a, b] = exactly(s.operands.get(..3).unwrap_or(&s.operands))?;
    let combine = match (boolean, &s.operands[3..]) {
        (None, []) => None,
        (Some(op), [c]) => Some((op, body.predicate(c)?)),
        _ => return Err("wrong number of operands".into()),
    };
    let dst = body.dst(dst, to.bits())?;
    let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
    Ok(Op::Set { cmp, to, ty, ftz, combine, dst, a, b })
}

//! `mov` in all its meanings, and addresses changing space.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::names::Name;
use super::super::operands::{Raw, exactly, special, symbol};
use super::only;
use crate::ptx::ir::{Base, Op, Operand, Register, Space, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "mov" => mov(body, s),
        "cvta" => cvta(body, s),
        _ => {
            let space = space(s).ok_or("`isspacep` without a space")?;
            let [dst, a] = exactly(&s.operands)?;
            let dst = body.predicate_dst(dst)?;
            Ok(Op::Isspacep { space, dst, a: body.source(a, Type::B64)? })
        }
    }
}

fn space(s: &mut Statement<'_>) -> Option<Space> {
    s.modifiers.one_of(&[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param", Space::Param),
        ("param::entry", Space::Param),
    ])
}

fn mov<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    let [dst, a] = exactly(&s.operands)?;
    if ty == Type::Pred {
        return Ok(Op::MovPredicate { dst: body.predicate_dst(dst)?, a: body.predicate(a)? });
    }
    if !matches!(ty.bits(), 16 | 32 | 64 | 128) {
        return Err(format!("`mov` has no form of {ty:?}"));
    }
    match (dst, a) {
        (Raw::Vector(parts), a) => unpack(body, parts, a, ty),
        (dst, Raw::Vector(parts)) => pack(body, dst, parts, ty),
        (dst, Raw::Name(name, part)) if body.find(name).is_none() && name.starts_with('%') => {
            let register = Register { plane: body.dst(dst, ty.bits())?, bits: ty.bits() as u8 };
            Ok(Op::ReadSpecial { dst: register, special: special(name, *part)? })
        }
        (dst, a) => match address_of(body, dst, a)? {
            Some(op) => Ok(op),
            None => {
                let plane = body.dst(dst, ty.bits())?;
                Ok(Op::Mov { bits: ty.bits() as u8, dst: plane, a: body.source(a, ty)? })
            }
        },
    }
}

/// `mov.u64 d, symbol` or `symbol+8`; `None` if the source is no symbol.
fn address_of<'a>(body: &Body<'_, 'a>, dst: &Raw<'a>, a: &Raw<'a>) -> Parsed<Option<Op>> {
    let (name, added) = match a {
        Raw::Name(name, None) => (name, 0),
        Raw::Offset(name, added) => (name, *added),
        _ => return Ok(None),
    };
    let found = match body.find(name) {
        Some(Name::CallParam(..)) => {
            return Err("the address of a call's parameter is not supported".into());
        }
        Some(found) => symbol(&found),
        None => None,
    };
    let Some((symbol, start, _)) = found else {
        return Ok(None);
    };
    let dst = body.register(dst)?;
    if !matches!(dst.bits, 32 | 64) {
        return Err("an address needs a register of 32 or 64 bits".into());
    }
    let offset = added.wrapping_add(i64::from(start));
    Ok(Some(Op::AddressOf { dst, base: Base::Symbol(symbol), offset }))
}

fn part_bits(whole: Type, parts: usize) -> Parsed<u8> {
    match (whole.bits(), parts) {
        (bits @ (16 | 32 | 64 | 128), 2) => Ok((bits / 2) as u8),
        (bits @ (32 | 64), 4) => Ok((bits / 4) as u8),
        (bits, parts) => Err(format!("{bits} bits cannot be moved as {parts} parts")),
    }
}

fn part_type(bits: u8) -> Type {
    match bits {
        8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        _ => Type::B64,
    }
}

fn pack<'a>(body: &mut Body<'_, 'a>, dst: &Raw<'a>, parts: &[Raw<'a>], ty: Type) -> Parsed<Op> {
    let part_bits = part_bits(ty, parts.len())?;
    let dst = Register { plane: body.dst(dst, ty.bits())?, bits: ty.bits() as u8 };
    let mut sources: Vec<Operand> = Vec::with_capacity(parts.len());
    for part in parts {
        let ty = part_type(part_bits);
        // Bytes travel in 16-bit registers too.
        let wide = part_bits == 8;
        sources.push(if wide { body.wide_source(part, ty)? } else { body.source(part, ty)? });
    }
    Ok(Op::Pack { dst, part_bits, parts: sources })
}

fn unpack<'a>(body: &mut Body<'_, 'a>, parts: &[Raw<'a>], a: &Raw<'a>, ty: Type) -> Parsed<Op> {
    let part_bits = part_bits(ty, parts.len())?;
    let mut dsts = Vec::with_capacity(parts.len());
    for part in parts {
        let register = body.register_or_sink(part)?;
        if register.is_some_and(|r| r.bits != part_bits && part_bits != 8) {
            return Err(format!("the parts have {part_bits} bits"));
        }
        dsts.push(register);
    }
    Ok(Op::Unpack { dsts, part_bits, a: body.source(a, ty)? })
}

fn cvta<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let to = s.modifiers.take("to");
    let space = space(s).ok_or("`cvta` without a space")?;
    let ty = only(s.modifiers.ty()?, &[Type::U64, Type::U32])?;
    let [dst, a] = exactly(&s.operands)?;
    let plane = body.dst(dst, ty.bits())?;
    let bits = ty.bits() as u8;
    if let Some(address) = address_of(body, dst, a)? {
        body.emit(address);
        return Ok(Op::Cvta { to, space, bits, dst: plane, a: Operand::Plane(plane) });
    }
    Ok(Op::Cvta { to, space, bits, dst: plane, a: body.source(a, ty)? })
}

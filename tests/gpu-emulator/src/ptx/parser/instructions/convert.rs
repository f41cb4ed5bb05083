//! `cvt`, and `cvt.pack`.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::exactly;
use super::{B32, only};
use crate::ptx::ir::{Convert, Op, Rounding, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    if s.modifiers.take("pack") {
        return pack(body, s);
    }
    let to_integer = s.modifiers.one_of(&[
        ("rni", Rounding::Nearest),
        ("rzi", Rounding::Zero),
        ("rmi", Rounding::Down),
        ("rpi", Rounding::Up),
    ]);
    let to_float = s.modifiers.one_of(&[
        ("rn", Rounding::Nearest),
        ("rz", Rounding::Zero),
        ("rm", Rounding::Down),
        ("rp", Rounding::Up),
        ("rna", Rounding::NearestAway),
    ]);
    let (ftz, sat) = (s.modifiers.take("ftz"), s.modifiers.take("sat"));
    let (satfinite, relu) = (s.modifiers.take("satfinite"), s.modifiers.take("relu"));
    let (to, from) = (s.modifiers.ty()?, s.modifiers.ty()?);
    let convert = Convert {
        to,
        from,
        rounding: to_integer.or(to_float),
        to_integer: to_integer.is_some(),
        ftz,
        sat,
        satfinite,
        relu,
    };
    check(&convert, to_float.is_some())?;
    let packs = from == Type::F32 && element(to) != to;
    if packs {
        let [dst, a, b] = exactly(&s.operands)?;
        let dst = body.register(dst)?;
        let (a, b) = (body.source(a, from)?, Some(body.source(b, from)?));
        at_least(dst.bits, to)?;
        return Ok(Op::Cvt { convert, dst, a, b });
    }
    let [dst, a] = exactly(&s.operands)?;
    let dst = body.register(dst)?;
    at_least(dst.bits, to)?;
    Ok(Op::Cvt { convert, dst, a: body.wide_source(a, from)?, b: None })
}

fn at_least(bits: u8, ty: Type) -> Parsed<()> {
    let wider_is_fine = !ty.is_float();
    let fits = u32::from(bits) == ty.bits() || (wider_is_fine && u32::from(bits) > ty.bits());
    if fits && bits <= 64 {
        return Ok(());
    }
    Err(format!("the destination has {bits} bits, {ty:?} has {}", ty.bits()))
}

/// The element of a packed pair.
fn element(ty: Type) -> Type {
    match ty {
        Type::F16x2 => Type::F16,
        Type::Bf16x2 => Type::Bf16,
        Type::E4m3x2 => Type::E4m3,
        Type::E5m2x2 => Type::E5m2,
        other => other,
    }
}

/// Which pairs of types and roundings exist.
fn check(convert: &Convert, float_rounding: bool) -> Parsed<()> {
    let Convert { to, from, .. } = *convert;
    let plain = |ty: Type| {
        matches!(
            ty,
            Type::U8
                | Type::U16
                | Type::U32
                | Type::U64
                | Type::S8
                | Type::S16
                | Type::S32
                | Type::S64
                | Type::F16
                | Type::Bf16
                | Type::F32
                | Type::F64
        )
    };
    let eights = [Type::E4m3x2, Type::E5m2x2];
    let known = match (to, from) {
        (Type::Tf32, Type::F32) | (Type::F16x2 | Type::Bf16x2, Type::F32) => true,
        (to, Type::F32 | Type::F16x2) if eights.contains(&to) => true,
        (Type::F16x2, from) if eights.contains(&from) => true,
        (to, from) => plain(to) && plain(from),
    };
    if !known {
        return Err(format!("conversion from {from:?} to {to:?} is not known"));
    }
    let rounds_to_integer = from.is_float() && !to.is_float();
    let narrows = to.is_float() && (!from.is_float() || to.bits() < from.bits());
    let needs_integer = rounds_to_integer && !convert.to_integer;
    let same = to == from && to.is_float();
    let missing = narrows && convert.rounding.is_none() && element(to) == to && to != Type::Tf32;
    if needs_integer || missing {
        return Err("the conversion needs a rounding".into());
    }
    if convert.to_integer && !(rounds_to_integer || same) {
        return Err("rounding to an integer of something that stays a float".into());
    }
    if float_rounding && rounds_to_integer {
        return Err(
            "a conversion to an integer rounds with `.rni`, `.rzi`, `.rmi` or `.rpi`".into()
        );
    }
    if eights.contains(&to) && !(convert.satfinite && convert.rounding == Some(Rounding::Nearest)) {
        return Err("conversions to 8-bit floats are `.rn.satfinite`".into());
    }
    Ok(())
}

/// `cvt.pack.sat.u8.s32.b32 d, a, b, c`.
fn pack<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    s.modifiers.require("sat")?;
    let to = only(s.modifiers.ty()?, &[Type::U8, Type::S8, Type::U16, Type::S16])?;
    only(s.modifiers.ty()?, &[Type::S32])?;
    let with_rest = s.modifiers.take("b32");
    if with_rest != (to.bits() == 8) {
        return Err("`cvt.pack` to 8 bits has a third source of `.b32`, to 16 bits none".into());
    }
    let [dst, a, b] = exactly(s.operands.get(..3).unwrap_or(&s.operands))?;
    let c = match (with_rest, &s.operands[3..]) {
        (true, [c]) => Some(body.source(c, B32)?),
        (false, []) => None,
        _ => return Err("wrong number of operands".into()),
    };
    let dst = body.dst(dst, 32)?;
    Ok(Op::CvtPack { to, dst, a: body.source(a, Type::S32)?, b: body.source(b, Type::S32)?, c })
}

//! Arithmetic that exists for integers and floats under one opcode, and the float functions.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::exactly;
use super::{float_type, int_type, only};
use crate::ptx::ir::{
    CarryOp, FloatMode, FloatOp, FloatType, FloatUnaryOp, IntOp, IntType, IntUnaryOp, MadOp, Op,
    Rounding, TestpOp, Type,
};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "addc" | "subc" | "madc" => return carry(body, s, true),
        "testp" => return testp(body, s),
        "sad" => return sad(body, s),
        "mul24" => return mul24(body, s),
        "mad24" => return mad24(body, s),
        "add" | "sub" | "mad" if s.modifiers.take("cc") => return carry(body, s, false),
        _ => {}
    }
    let ty = s.modifiers.ty()?;
    match float_type(ty) {
        Some(float) => float_arithmetic(body, s, ty, float),
        None => integer(body, s, ty),
    }
}

fn integer<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>, ty: Type) -> Parsed<Op> {
    let int = int_type(ty)?;
    if matches!(ty, Type::B16 | Type::B32 | Type::B64) {
        return Err(format!("`{}` has no untyped form", s.opcode));
    }
    match s.opcode {
        "abs" | "neg" => {
            let op = if s.opcode == "abs" { IntUnaryOp::Abs } else { IntUnaryOp::Neg };
            only(ty, &[Type::S16, Type::S32, Type::S64])?;
            let [dst, a] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            return Ok(Op::IntUnary { op, ty: int, dst, a: body.source(a, ty)? });
        }
        "mad" => return mad(body, s, ty, int),
        "mul" if s.modifiers.take("wide") => {
            let [dst, a, b] = exactly(&s.operands)?;
            only(ty, &[Type::U16, Type::S16, Type::U32, Type::S32])?;
            let dst = body.dst(dst, 2 * ty.bits())?;
            let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
            return Ok(Op::MulWide { ty: int, dst, a, b });
        }
        _ => {}
    }
    let packed = matches!(int, IntType::U16x2 | IntType::S16x2);
    let op = match s.opcode {
        "add" if ty == Type::S32 && s.modifiers.take("sat") => IntOp::AddSaturating,
        "sub" if ty == Type::S32 && s.modifiers.take("sat") => IntOp::SubSaturating,
        "add" => IntOp::Add,
        "min" | "max" if s.modifiers.take("relu") => {
            only(ty, &[Type::S32, Type::S16x2])?;
            if s.opcode == "min" { IntOp::MinRelu } else { IntOp::MaxRelu }
        }
        "min" => IntOp::Min,
        "max" => IntOp::Max,
        other if packed => return Err(format!("`{other}` has no packed integer form")),
        "sub" => IntOp::Sub,
        "mul" if s.modifiers.take("lo") => IntOp::MulLo,
        "mul" if s.modifiers.take("hi") => IntOp::MulHi,
        "div" => IntOp::Div,
        "rem" => IntOp::Rem,
        other => return Err(format!("`{other}` has no such integer form")),
    };
    let [dst, a, b] = exactly(&s.operands)?;
    let dst = body.dst(dst, ty.bits())?;
    Ok(Op::Int { op, ty: int, dst, a: body.source(a, ty)?, b: body.source(b, ty)? })
}

fn mad<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>, ty: Type, int: IntType) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[("lo", MadOp::Lo), ("hi", MadOp::Hi), ("wide", MadOp::Wide)]);
    let mut op = op.ok_or("`.lo`, `.hi` or `.wide` is missing")?;
    if op == MadOp::Hi && ty == Type::S32 && s.modifiers.take("sat") {
        op = MadOp::HiSaturating;
    }
    let long = match (op, ty) {
        (MadOp::Wide, Type::U16) => Type::U32,
        (MadOp::Wide, Type::S16) => Type::S32,
        (MadOp::Wide, Type::U32) => Type::U64,
        (MadOp::Wide, Type::S32) => Type::S64,
        (MadOp::Wide, _) => return Err("`mad.wide` is of 16 or 32 bits".into()),
        _ => ty,
    };
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, long.bits())?;
    let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, long)?);
    Ok(Op::Mad { op, ty: int, dst, a, b, c })
}

/// `add.cc`, `addc`, `mad.lo.cc`, `madc.hi` and the like.
fn carry<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>, carry_in: bool) -> Parsed<Op> {
    let carry_out = !carry_in || s.modifiers.take("cc");
    let op = match s.opcode {
        "add" | "addc" => CarryOp::Add,
        "sub" | "subc" => CarryOp::Sub,
        _ if s.modifiers.take("lo") => CarryOp::MadLo,
        _ if s.modifiers.take("hi") => CarryOp::MadHi,
        _ => return Err("`.lo` or `.hi` is missing".into()),
    };
    let ty = only(s.modifiers.ty()?, &[Type::U32, Type::S32, Type::U64, Type::S64])?;
    let multiplies = matches!(op, CarryOp::MadLo | CarryOp::MadHi);
    let [dst, a, b] = exactly(s.operands.get(..3).unwrap_or(&s.operands))?;
    let c = match (multiplies, &s.operands[3..]) {
        (true, [c]) => Some(body.source(c, ty)?),
        (false, []) => None,
        _ => return Err("wrong number of operands".into()),
    };
    let dst = body.dst(dst, ty.bits())?;
    let (a, b) = (body.source(a, ty)?, body.source(b, ty)?);
    Ok(Op::Carry { op, ty: int_type(ty)?, carry_in, carry_out, dst, a, b, c })
}

fn sad<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let ty = s.modifiers.ty()?;
    let int = int_type(ty)?;
    if matches!(int, IntType::U16x2 | IntType::S16x2) {
        return Err("`sad` has no packed form".into());
    }
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, ty.bits())?;
    let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, ty)?);
    Ok(Op::Sad { ty: int, dst, a, b, c })
}

fn mul24<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[("lo", IntOp::Mul24Lo), ("hi", IntOp::Mul24Hi)]);
    let op = op.ok_or("`.lo` or `.hi` is missing")?;
    let ty = only(s.modifiers.ty()?, &[Type::U32, Type::S32])?;
    let [dst, a, b] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    Ok(Op::Int { op, ty: int_type(ty)?, dst, a: body.source(a, ty)?, b: body.source(b, ty)? })
}

fn mad24<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[("lo", MadOp::Lo24), ("hi", MadOp::Hi24)]);
    let op = op.ok_or("`.lo` or `.hi` is missing")?;
    let ty = only(s.modifiers.ty()?, &[Type::U32, Type::S32])?;
    let [dst, a, b, c] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, ty)?);
    Ok(Op::Mad { op, ty: int_type(ty)?, dst, a, b, c })
}

fn testp<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[
        ("finite", TestpOp::Finite),
        ("infinite", TestpOp::Infinite),
        ("number", TestpOp::Number),
        ("notanumber", TestpOp::NotANumber),
        ("normal", TestpOp::Normal),
        ("subnormal", TestpOp::Subnormal),
    ]);
    let op = op.ok_or("`testp` without its question")?;
    let ty = only(s.modifiers.ty()?, &[Type::F32, Type::F64])?;
    let float = float_type(ty).ok_or("not a float type")?;
    let [dst, a] = exactly(&s.operands)?;
    Ok(Op::Testp { op, ty: float, dst: body.predicate_dst(dst)?, a: body.source(a, ty)? })
}

/// Rounding and flags; which of them an operation allows is checked by the caller.
fn mode(s: &mut Statement<'_>) -> FloatMode {
    FloatMode {
        rounding: s.modifiers.rounding().unwrap_or(Rounding::Nearest),
        ftz: s.modifiers.take("ftz"),
        ..FloatMode::default()
    }
}

fn float_arithmetic<'a>(
    body: &mut Body<'_, 'a>,
    s: &mut Statement<'a>,
    ty: Type,
    float: FloatType,
) -> Parsed<Op> {
    match s.opcode {
        "add" | "sub" | "mul" | "min" | "max" | "div" | "copysign" => {
            two_operands(body, s, ty, float)
        }
        "fma" | "mad" => {
            let mut mode = mode(s);
            mode.sat = s.modifiers.take("sat");
            mode.relu = s.opcode == "fma" && s.modifiers.take("relu");
            check_rounding(mode.rounding, float)?;
            let [dst, a, b, c] = exactly(&s.operands)?;
            let dst = body.dst(dst, ty.bits())?;
            let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, ty)?);
            Ok(Op::Fma { ty: float, mode, dst, a, b, c })
        }
        _ => one_operand(body, s, ty, float),
    }
}

/// Only f32 and f64 (and pairs of f32) round other than to nearest.
fn check_rounding(rounding: Rounding, float: FloatType) -> Parsed<()> {
    let any = matches!(float, FloatType::F32 | FloatType::F64 | FloatType::F32x2);
    if any || rounding == Rounding::Nearest {
        return Ok(());
    }
    Err("this type rounds only to nearest".into())
}

fn two_operands<'a>(
    body: &mut Body<'_, 'a>,
    s: &mut Statement<'a>,
    ty: Type,
    float: FloatType,
) -> Parsed<Op> {
    let extreme = matches!(s.opcode, "min" | "max");
    let mut mode = if extreme {
        FloatMode { ftz: s.modifiers.take("ftz"), ..FloatMode::default() }
    } else if s.opcode == "copysign" {
        FloatMode::default()
    } else {
        mode(s)
    };
    let op = match s.opcode {
        "add" => FloatOp::Add,
        "sub" => FloatOp::Sub,
        "mul" => FloatOp::Mul,
        "min" => FloatOp::Min,
        "max" => FloatOp::Max,
        "copysign" => {
            only(ty, &[Type::F32, Type::F64])?;
            FloatOp::Copysign
        }
        _ => {
            only(ty, &[Type::F32, Type::F64])?;
            let inexact = s.modifiers.take("approx") || s.modifiers.take("full");
            if inexact { FloatOp::DivApprox } else { FloatOp::Div }
        }
    };
    if extreme {
        mode.nan = s.modifiers.take("NaN");
        mode.xorsign_abs = s.modifiers.take("xorsign");
        if mode.xorsign_abs {
            s.modifiers.require("abs")?;
        }
        only(ty, &[Type::F32, Type::F64, Type::F16, Type::F16x2, Type::Bf16, Type::Bf16x2])?;
    } else {
        mode.sat = s.modifiers.take("sat");
        check_rounding(mode.rounding, float)?;
    }
    if extreme && s.operands.len() == 4 {
        only(ty, &[Type::F32])?;
        let [dst, a, b, c] = exactly(&s.operands)?;
        let dst = body.dst(dst, ty.bits())?;
        let (a, b, c) = (body.source(a, ty)?, body.source(b, ty)?, body.source(c, ty)?);
        return Ok(Op::Float3 { op, mode, dst, a, b, c });
    }
    let [dst, a, b] = exactly(&s.operands)?;
    let dst = body.dst(dst, ty.bits())?;
    Ok(Op::Float { op, ty: float, mode, dst, a: body.source(a, ty)?, b: body.source(b, ty)? })
}

fn one_operand<'a>(
    body: &mut Body<'_, 'a>,
    s: &mut Statement<'a>,
    ty: Type,
    float: FloatType,
) -> Parsed<Op> {
    let approximate = s.modifiers.take("approx");
    let mode = mode(s);
    let narrow = [Type::F32, Type::F16, Type::F16x2, Type::Bf16, Type::Bf16x2];
    let singles = [Type::F32, Type::F64];
    let op = match (s.opcode, approximate) {
        ("neg" | "abs", false) => {
            only(ty, &[&narrow[..], &singles[..]].concat())?;
            if s.opcode == "neg" { FloatUnaryOp::Neg } else { FloatUnaryOp::Abs }
        }
        ("rcp", false) => FloatUnaryOp::Rcp,
        ("rcp", true) => FloatUnaryOp::RcpApprox,
        ("sqrt", false) => FloatUnaryOp::Sqrt,
        ("sqrt", true) => FloatUnaryOp::SqrtApprox,
        ("rsqrt", true) => FloatUnaryOp::RsqrtApprox,
        ("sin", true) => FloatUnaryOp::SinApprox,
        ("cos", true) => FloatUnaryOp::CosApprox,
        ("lg2", true) => FloatUnaryOp::Lg2Approx,
        ("ex2", true) => FloatUnaryOp::Ex2Approx,
        ("tanh", true) => FloatUnaryOp::TanhApprox,
        (other, true) => return Err(format!("`{other}.approx` is not known")),
        (other, false) => return Err(format!("`{other}` without `.approx` is not known")),
    };
    match op {
        FloatUnaryOp::Neg | FloatUnaryOp::Abs => {}
        FloatUnaryOp::Ex2Approx | FloatUnaryOp::TanhApprox => drop(only(ty, &narrow)?),
        FloatUnaryOp::Rcp
        | FloatUnaryOp::RcpApprox
        | FloatUnaryOp::Sqrt
        | FloatUnaryOp::RsqrtApprox => drop(only(ty, &singles)?),
        _ => drop(only(ty, &[Type::F32])?),
    }
    let [dst, a] = exactly(&s.operands)?;
    let dst = body.dst(dst, ty.bits())?;
    Ok(Op::FloatUnary { op, ty: float, mode, dst, a: body.source(a, ty)? })
}

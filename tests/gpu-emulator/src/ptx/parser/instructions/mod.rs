//! From an instruction as written to an [`Op`]: one file per family, found by opcode.
//!
//! Each family takes the modifiers it understands; whatever is left over is an error.

mod arithmetic;
mod asynchronous;
mod bits;
mod control;
mod convert;
mod matrix;
mod memory;
mod moves;
mod predicates;
mod warp;

use super::body::{Body, Statement};
use super::cursor::Parsed;
use crate::ptx::ir::{FloatType, IntType, Op, Type};

/// The operation of an instruction. Some emit reads of special registers before it.
pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg"
        | "mul24" | "mad24" | "sad" | "addc" | "subc" | "madc" | "rcp" | "sqrt" | "rsqrt"
        | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
            arithmetic::parse(body, s)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "bfe"
        | "bfi" | "bfind" | "brev" | "clz" | "popc" | "bmsk" | "szext" | "dp4a" | "dp2a" => {
            bits::parse(body, s)
        }
        "setp" | "set" | "selp" | "slct" => predicates::parse(body, s),
        "cvt" => convert::parse(body, s),
        "mov" | "cvta" | "isspacep" => moves::parse(body, s),
        "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "createpolicy"
        | "fence" | "membar" => memory::parse(body, s),
        "cp" | "mbarrier" => asynchronous::parse(body, s),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep"
        | "griddepcontrol" => control::parse(body, s),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "bar" | "barrier" => {
            warp::parse(body, s)
        }
        "mma" | "ldmatrix" | "stmatrix" | "movmatrix" => matrix::parse(body, s),
        other => Err(format!("instruction `{other}` is not known")),
    }
}

/// Integer arithmetic type of a PTX type; bit types count as unsigned.
fn int_type(ty: Type) -> Parsed<IntType> {
    Ok(match ty {
        Type::B16 | Type::U16 => IntType::U16,
        Type::S16 => IntType::S16,
        Type::B32 | Type::U32 => IntType::U32,
        Type::S32 => IntType::S32,
        Type::B64 | Type::U64 => IntType::U64,
        Type::S64 => IntType::S64,
        Type::U16x2 => IntType::U16x2,
        Type::S16x2 => IntType::S16x2,
        _ => return Err(format!("{ty:?} is not an integer type of this instruction")),
    })
}

/// Floating-point arithmetic type of a PTX type.
fn float_type(ty: Type) -> Option<FloatType> {
    Some(match ty {
        Type::F16 => FloatType::F16,
        Type::F16x2 => FloatType::F16x2,
        Type::Bf16 => FloatType::Bf16,
        Type::Bf16x2 => FloatType::Bf16x2,
        Type::F32 => FloatType::F32,
        Type::F32x2 => FloatType::F32x2,
        Type::F64 => FloatType::F64,
        _ => return None,
    })
}

/// Fails unless `ty` is one of `allowed`.
fn only(ty: Type, allowed: &[Type]) -> Parsed<Type> {
    if allowed.contains(&ty) {
        return Ok(ty);
    }
    Err(format!("type {ty:?} is not known with this instruction"))
}

const B32: Type = Type::B32;

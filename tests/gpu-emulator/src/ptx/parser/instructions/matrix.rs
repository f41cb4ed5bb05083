//! `mma.sync`, `ldmatrix`, `stmatrix` and `movmatrix`, with the register counts their shapes need.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::{B32, only};
use crate::ptx::ir::{Mma, Op, Operand, Space, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    s.modifiers.require("sync")?;
    s.modifiers.require("aligned")?;
    match s.opcode {
        "mma" => mma(body, s),
        "ldmatrix" => {
            let (count, transpose) = matrices(s)?;
            let [dst, address] = exactly(&s.operands)?;
            let elements = counted(body, dst, count)?;
            let dsts = elements.iter().map(|e| body.dst(e, 32)).collect::<Parsed<_>>()?;
            let address = body.address_in(address, Space::Shared)?;
            Ok(Op::LdMatrix { transpose, dsts, address })
        }
        "stmatrix" => {
            let (count, transpose) = matrices(s)?;
            let [address, src] = exactly(&s.operands)?;
            let srcs = sources(body, src, count, B32)?;
            let address = body.address_in(address, Space::Shared)?;
            Ok(Op::StMatrix { transpose, srcs, address })
        }
        _ => {
            s.modifiers.require("m8n8")?;
            s.modifiers.require("trans")?;
            only(s.modifiers.ty()?, &[Type::B16])?;
            let [dst, a] = exactly(&s.operands)?;
            let dst = body.dst(dst, 32)?;
            Ok(Op::MovMatrix { dst, a: body.source(a, B32)? })
        }
    }
}

/// Number of matrices and whether they are transposed.
fn matrices(s: &mut Statement<'_>) -> Parsed<(usize, bool)> {
    s.modifiers.require("m8n8")?;
    let count = s.modifiers.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)]);
    let count = count.ok_or("`.x1`, `.x2` or `.x4` is missing")?;
    let _shared = s.modifiers.take("shared") || s.modifiers.take("shared::cta");
    let transpose = s.modifiers.take("trans");
    only(s.modifiers.ty()?, &[Type::B16])?;
    Ok((count, transpose))
}

fn counted<'r, 'a>(body: &Body<'_, 'a>, raw: &'r Raw<'a>, count: usize) -> Parsed<&'r [Raw<'a>]> {
    let elements = body.elements(raw);
    if elements.len() == count {
        return Ok(elements);
    }
    Err(format!("{count} registers expected, {} given", elements.len()))
}

fn sources<'a>(
    body: &mut Body<'_, 'a>,
    raw: &Raw<'a>,
    count: usize,
    ty: Type,
) -> Parsed<Vec<Operand>> {
    let elements = counted(body, raw, count)?;
    elements.iter().map(|element| body.source(element, ty)).collect()
}

/// `m16n8k16` and its parts.
fn shape(s: &mut Statement<'_>) -> Parsed<[u32; 3]> {
    let words = s.modifiers.take_where(|w| w.starts_with('m') && w.contains('k'));
    let parts = match words.as_slice() {
        [word] => word
            .strip_prefix('m')
            .and_then(|rest| rest.split_once('n'))
            .and_then(|(m, rest)| Some((m, rest.split_once('k')?)))
            .and_then(|(m, (n, k))| Some([m.parse().ok()?, n.parse().ok()?, k.parse().ok()?])),
        _ => None,
    };
    parts.ok_or_else(|| "the shape is missing or not understood".into())
}

fn mma<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let [m, n, k] = shape(s)?;
    s.modifiers.require("row")?;
    s.modifiers.require("col").map_err(|_| "only the layouts `.row.col` are supported")?;
    let satfinite = s.modifiers.take("satfinite");
    let kind = s.modifiers.take("kind::f8f6f4");
    let mut types = [Type::F32; 4];
    for ty in &mut types {
        *ty = s.modifiers.ty()?;
    }
    let [d_ty, a_ty, b_ty, c_ty] = types;
    check([m, n, k], types, satfinite)?;
    if kind && !matches!(a_ty, Type::E4m3 | Type::E5m2) {
        return Err("`.kind::f8f6f4` of this type is not supported".into());
    }
    let [d, a, b, c] = exactly(&s.operands)?;
    let count = |rows: u32, columns: u32, ty: Type| {
        (rows * columns * ty.bits() / 32 / register(ty).bits()) as usize
    };
    let d = counted(body, d, count(m, n, d_ty))?
        .iter()
        .map(|element| body.dst(element, register(d_ty).bits()))
        .collect::<Parsed<_>>()?;
    let a = sources(body, a, count(m, k, a_ty), register(a_ty))?;
    let b = sources(body, b, count(k, n, b_ty), register(b_ty))?;
    let c = sources(body, c, count(m, n, c_ty), register(c_ty))?;
    let mma = Mma { m, n, k, a_row: true, b_row: false, types, satfinite, d, a, b, c };
    Ok(Op::Mma(Box::new(mma)))
}

/// The register a fragment element travels in, alone or packed with others.
fn register(ty: Type) -> Type {
    match ty {
        Type::F64 | Type::F32 => ty,
        _ => B32,
    }
}

/// The shapes and type combinations that exist.
fn check(shape: [u32; 3], types: [Type; 4], satfinite: bool) -> Parsed<()> {
    use Type::{Bf16, E4m3, E5m2, F16, F32, F64, S8, S32, Tf32, U8};
    let [d, a, b, c] = types;
    let known = match (shape, a) {
        ([16, 8, 8 | 16], F16) => b == F16 && matches!(d, F16 | F32) && c == d,
        ([16, 8, 8 | 16], Bf16) => b == Bf16 && d == F32 && c == F32,
        ([16, 8, 4 | 8], Tf32) => b == Tf32 && d == F32 && c == F32,
        ([16, 8, 16 | 32] | [8, 8, 16], S8 | U8) => matches!(b, S8 | U8) && d == S32 && c == S32,
        ([16, 8, 16 | 32], E4m3 | E5m2) => {
            matches!(b, E4m3 | E5m2) && matches!(d, F16 | F32) && c == d
        }
        ([8, 8, 4] | [16, 8, 4 | 8 | 16], F64) => b == F64 && c == F64 && d == F64,
        _ => false,
    };
    let integers = matches!(a, S8 | U8);
    if known && (!satfinite || integers) {
        return Ok(());
    }
    let [m, n, k] = shape;
    Err(format!("no m{n_m}n{n}k{k} of {d:?}, {a:?}, {b:?}, {c:?} is known", n_m = m))
}

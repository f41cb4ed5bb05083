//! What lanes of a warp and warps of a CTA do together.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::{B32, only};
use crate::ptx::ir::{
    BarrierKind, BarrierReduction, FloatMode, Op, ReduxOp, Semantics, ShflMode, Type, VoteMode,
};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "activemask" => {
            only(s.modifiers.ty()?, &[B32])?;
            let [dst] = exactly(&s.operands)?;
            return Ok(Op::ActiveMask { dst: body.dst(dst, 32)? });
        }
        "bar" | "barrier" => return barrier(body, s),
        _ => {}
    }
    s.modifiers
        .require("sync")
        .map_err(|_| format!("`{}` without `.sync` is not supported", s.opcode))?;
    match s.opcode {
        "shfl" => shfl(body, s),
        "vote" => vote(body, s),
        "match" => matching(body, s),
        "redux" => redux(body, s),
        _ => {
            let [Raw::Pair(dst, predicate), mask] = exactly(&s.operands)? else {
                return Err("`elect.sync` writes `d|p`".into());
            };
            let dst = match *dst {
                "_" => None,
                name => Some(body.dst(&Raw::Name(name, None), 32)?),
            };
            let predicate = body.predicate_named(predicate)?;
            Ok(Op::Elect { dst, predicate, mask: body.source(mask, B32)? })
        }
    }
}

/// `d` or `d|p`.
fn with_predicate<'a>(body: &Body<'_, 'a>, raw: &Raw<'a>, bits: u32) -> Parsed<(u32, Option<u32>)> {
    match raw {
        Raw::Pair(dst, predicate) => {
            let dst = body.dst(&Raw::Name(dst, None), bits)?;
            let predicate = match *predicate {
                "_" => None,
                name => Some(body.predicate_named(name)?),
            };
            Ok((dst, predicate))
        }
        other => Ok((body.dst(other, bits)?, None)),
    }
}

fn shfl<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let mode = s.modifiers.one_of(&[
        ("up", ShflMode::Up),
        ("down", ShflMode::Down),
        ("bfly", ShflMode::Bfly),
        ("idx", ShflMode::Idx),
    ]);
    let mode = mode.ok_or("`shfl` without its mode")?;
    only(s.modifiers.ty()?, &[B32])?;
    let [dst, a, b, c, mask] = exactly(&s.operands)?;
    let (dst, predicate) = with_predicate(body, dst, 32)?;
    let (a, b) = (body.source(a, B32)?, body.source(b, B32)?);
    let (c, mask) = (body.source(c, B32)?, body.source(mask, B32)?);
    Ok(Op::Shfl { mode, dst, predicate, a, b, c, mask })
}

fn vote<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let mode = s.modifiers.one_of(&[
        ("all", VoteMode::All),
        ("any", VoteMode::Any),
        ("uni", VoteMode::Uni),
        ("ballot", VoteMode::Ballot),
    ]);
    let mode = mode.ok_or("`vote` without its mode")?;
    let ballot = mode == VoteMode::Ballot;
    only(s.modifiers.ty()?, if ballot { &[B32] } else { &[Type::Pred] })?;
    let [dst, a, mask] = exactly(&s.operands)?;
    let dst = if ballot { body.dst(dst, 32)? } else { body.predicate_dst(dst)? };
    Ok(Op::Vote { mode, dst, a: body.predicate(a)?, mask: body.source(mask, B32)? })
}

fn matching<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let all = s.modifiers.one_of(&[("all", true), ("any", false)]);
    let all = all.ok_or("`match` is `.all` or `.any`")?;
    let ty = only(s.modifiers.ty()?, &[B32, Type::B64])?;
    let [dst, a, mask] = exactly(&s.operands)?;
    let (dst, predicate) = with_predicate(body, dst, 32)?;
    if predicate.is_some() && !all {
        return Err("only `match.all` writes a predicate".into());
    }
    let (a, mask) = (body.source(a, ty)?, body.source(mask, B32)?);
    Ok(Op::Match { all, bits: ty.bits() as u8, dst, predicate, a, mask })
}

fn redux<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[
        ("add", ReduxOp::Add),
        ("min", ReduxOp::Min),
        ("max", ReduxOp::Max),
        ("and", ReduxOp::And),
        ("or", ReduxOp::Or),
        ("xor", ReduxOp::Xor),
    ]);
    let op = op.ok_or("`redux` without its operation")?;
    let ty = s.modifiers.ty()?;
    let mut mode = FloatMode::default();
    match op {
        ReduxOp::And | ReduxOp::Or | ReduxOp::Xor => only(ty, &[B32])?,
        ReduxOp::Add => only(ty, &[Type::U32, Type::S32])?,
        ReduxOp::Min | ReduxOp::Max => {
            if ty == Type::F32 {
                if s.modifiers.take("abs") {
                    return Err("`redux` of absolute values is not supported".into());
                }
                mode.nan = s.modifiers.take("NaN");
            }
            only(ty, &[Type::U32, Type::S32, Type::F32])?
        }
    };
    let [dst, a, mask] = exactly(&s.operands)?;
    let dst = body.dst(dst, 32)?;
    Ok(Op::Redux { op, ty, mode, dst, a: body.source(a, ty)?, mask: body.source(mask, B32)? })
}

fn barrier<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    if s.modifiers.take("warp") {
        s.modifiers.require("sync")?;
        let [mask] = exactly(&s.operands)?;
        return Ok(Op::BarWarp { mask: body.source(mask, B32)? });
    }
    if s.modifiers.take("cluster") {
        return cluster(s);
    }
    s.modifiers.take("cta");
    // `bar` is `barrier.cta` with `.aligned` understood.
    let aligned = s.modifiers.take("aligned") || s.opcode == "bar";
    if s.modifiers.take("red") {
        return reduction(body, s, aligned);
    }
    let arrives = s.modifiers.take("arrive");
    if !arrives {
        s.modifiers.require("sync")?;
    }
    let kind = if arrives { BarrierKind::Arrive } else { BarrierKind::Sync };
    let (id, threads) = match (s.operands.as_slice(), arrives) {
        ([id], false) => (body.source(id, B32)?, None),
        ([id, threads], _) => {
            let id = body.source(id, B32)?;
            (id, Some(body.source(threads, B32)?))
        }
        _ => return Err("wrong number of operands".into()),
    };
    Ok(Op::Barrier { kind, id, threads, aligned })
}

fn reduction<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>, aligned: bool) -> Parsed<Op> {
    let op = s.modifiers.one_of(&[
        ("popc", BarrierReduction::Popc),
        ("and", BarrierReduction::And),
        ("or", BarrierReduction::Or),
    ]);
    let op = op.ok_or("the reduction is missing")?;
    let counts = op == BarrierReduction::Popc;
    only(s.modifiers.ty()?, if counts { &[Type::U32] } else { &[Type::Pred] })?;
    let (dst, id, threads, source) = match s.operands.as_slice() {
        [dst, id, source] => (dst, id, None, source),
        [dst, id, threads, source] => (dst, id, Some(threads), source),
        _ => return Err("wrong number of operands".into()),
    };
    let dst = if counts { body.dst(dst, 32)? } else { body.predicate_dst(dst)? };
    let kind = BarrierKind::Reduce { op, dst, source: body.predicate(source)? };
    let id = body.source(id, B32)?;
    let threads = threads.map(|threads| body.source(threads, B32)).transpose()?;
    Ok(Op::Barrier { kind, id, threads, aligned })
}

fn cluster(s: &mut Statement<'_>) -> Parsed<Op> {
    let [] = exactly(&s.operands)?;
    s.modifiers.take("aligned");
    if s.modifiers.take("wait") {
        s.modifiers.take("acquire");
        return Ok(Op::ClusterWait);
    }
    s.modifiers.require("arrive")?;
    let relaxed = s.modifiers.take("relaxed");
    s.modifiers.take("release");
    let semantics = if relaxed { Semantics::Relaxed } else { Semantics::Release };
    Ok(Op::ClusterArrive { semantics })
}

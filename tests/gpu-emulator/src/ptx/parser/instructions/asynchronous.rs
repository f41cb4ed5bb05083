//! `cp.async` and mbarrier objects. Bulk and tensor copies are not known.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::memory::{cache, without_policy};
use super::{B32, only};
use crate::ptx::ir::{CacheOp, CpAsync, Mbarrier, Op, Operand, Register, Space, Type};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    if s.opcode == "mbarrier" {
        return Ok(Op::Mbarrier(Box::new(barrier(body, s)?)));
    }
    s.modifiers.require("async")?;
    if s.modifiers.take("commit_group") {
        let [] = exactly(&s.operands)?;
        return Ok(Op::CpAsyncCommit);
    }
    if s.modifiers.take("wait_all") {
        let [] = exactly(&s.operands)?;
        return Ok(Op::CpAsyncWait { pending: None });
    }
    if s.modifiers.take("wait_group") {
        return match exactly(&s.operands)? {
            [Raw::Integer(count @ 0..=0xFFFF)] => {
                Ok(Op::CpAsyncWait { pending: Some(*count as u32) })
            }
            _ => Err("the number of groups must be a constant".into()),
        };
    }
    if s.modifiers.take("mbarrier") {
        s.modifiers.require("arrive")?;
        let no_increment = s.modifiers.take("noinc");
        let address = object(body, s)?;
        let arrive = Mbarrier::ArriveAfterCopies { address, no_increment };
        return Ok(Op::Mbarrier(Box::new(arrive)));
    }
    copy(body, s)
}

fn copy<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    if s.modifiers.take("bulk") {
        return Err("bulk copies are not supported".into());
    }
    let cache = cache(s);
    if !(s.modifiers.take("shared") || s.modifiers.take("shared::cta")) {
        return Err("`cp.async` copies to `.shared`".into());
    }
    s.modifiers.require("global")?;
    let operands = without_policy(body, &s.operands, &cache)?;
    let [dst, src, bytes] = exactly(operands.get(..3).unwrap_or(operands))?;
    let bytes = match (bytes, cache.op) {
        (Raw::Integer(16), CacheOp::Cg) => 16,
        (Raw::Integer(bytes @ (4 | 8 | 16)), CacheOp::Ca) => *bytes as u32,
        _ => return Err("`cp.async` copies 4, 8 or 16 bytes `.ca`, or 16 `.cg`".into()),
    };
    let (mut source_bytes, mut ignore_source) = (None, None);
    match &operands[3..] {
        [] => {}
        [only] => match body.predicate(only) {
            Ok(ignored) if !matches!(only, Raw::Integer(_)) => ignore_source = Some(ignored),
            _ => source_bytes = Some(body.source(only, B32)?),
        },
        _ => return Err("too many operands".into()),
    }
    let dst = body.address_in(dst, Space::Shared)?;
    let src = body.address_in(src, Space::Global)?;
    let copy = CpAsync { dst, src, bytes, source_bytes, ignore_source, cache };
    Ok(Op::CpAsync(Box::new(copy)))
}

/// `.shared.b64 [address]`, the only operand.
fn object<'a>(body: &Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<crate::ptx::ir::Address> {
    object_type(s)?;
    let [address] = exactly(&s.operands)?;
    body.address_in(address, Space::Shared)
}

/// Takes `.shared` (or nothing: generic addresses work) and `.b64`.
fn object_type(s: &mut Statement<'_>) -> Parsed<()> {
    let _shared = s.modifiers.take("shared") || s.modifiers.take("shared::cta");
    if s.modifiers.take("shared::cluster") {
        return Err("mbarriers of other CTAs are not supported".into());
    }
    only(s.modifiers.ty()?, &[Type::B64])?;
    Ok(())
}

fn barrier<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Mbarrier> {
    let kind = s.modifiers.take_where(|w| {
        matches!(w, "init" | "inval" | "arrive" | "arrive_drop" | "test_wait" | "try_wait")
            || matches!(w, "pending_count" | "complete_tx")
    });
    let expects = s.modifiers.take("expect_tx");
    match (kind.as_slice(), expects) {
        (["init"], false) => {
            object_type(s)?;
            let [address, count] = exactly(&s.operands)?;
            let address = body.address_in(address, Space::Shared)?;
            Ok(Mbarrier::Init { address, count: body.source(count, B32)? })
        }
        (["inval"], false) => Ok(Mbarrier::Invalidate { address: object(body, s)? }),
        (["arrive"], expects) => arrive(body, s, false, expects),
        (["arrive_drop"], expects) => arrive(body, s, true, expects),
        (["test_wait"], false) => wait(body, s, false),
        (["try_wait"], false) => wait(body, s, true),
        (["pending_count"], false) => {
            only(s.modifiers.ty()?, &[Type::B64])?;
            let [dst, state] = exactly(&s.operands)?;
            let dst = body.dst(dst, 32)?;
            Ok(Mbarrier::PendingCount { dst, state: body.source(state, Type::B64)? })
        }
        ([], true) | (["complete_tx"], false) => {
            let completes = !kind.is_empty();
            weak_order(s);
            object_type(s)?;
            let [address, bytes] = exactly(&s.operands)?;
            let address = body.address_in(address, Space::Shared)?;
            let bytes = body.source(bytes, B32)?;
            Ok(if completes {
                Mbarrier::CompleteTx { address, bytes }
            } else {
                Mbarrier::ExpectTx { address, bytes }
            })
        }
        _ => Err("this mbarrier operation is not known".into()),
    }
}

/// Orders that are at least as weak as what the executor does.
fn weak_order(s: &mut Statement<'_>) {
    for word in ["relaxed", "release", "acquire", "cta", "cluster"] {
        s.modifiers.take(word);
    }
}

fn arrive<'a>(
    body: &mut Body<'_, 'a>,
    s: &mut Statement<'a>,
    drop: bool,
    expects: bool,
) -> Parsed<Mbarrier> {
    weak_order(s);
    let no_complete = s.modifiers.take("noComplete");
    object_type(s)?;
    // The state may be left out only where the address comes first.
    let (state, rest): (Option<Register>, &[Raw<'a>]) = match s.operands.as_slice() {
        [Raw::Address(..), ..] => (None, &s.operands),
        [state, rest @ ..] => (body.register_or_sink(state)?, rest),
        [] => return Err("operands are missing".into()),
    };
    if state.is_some_and(|r| r.bits != 64) {
        return Err("the state has 64 bits".into());
    }
    let (address, number): (&Raw<'a>, Option<Operand>) = match rest {
        [address] => (address, None),
        [address, number] => (address, Some(body.source(number, B32)?)),
        _ => return Err("wrong number of operands".into()),
    };
    if expects && number.is_none() {
        return Err("`.expect_tx` needs the number of bytes".into());
    }
    let (count, expect_bytes) = if expects { (None, number) } else { (number, None) };
    let address = body.address_in(address, Space::Shared)?;
    Ok(Mbarrier::Arrive { state, address, count, expect_bytes, drop, no_complete })
}

fn wait<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>, suspends: bool) -> Parsed<Mbarrier> {
    weak_order(s);
    let parity = s.modifiers.take("parity");
    object_type(s)?;
    let [dst, address, phase] = exactly(s.operands.get(..3).unwrap_or(&s.operands))?;
    match (&s.operands[3..], suspends) {
        ([], _) => {}
        ([hint], true) => drop(body.source(hint, B32)?),
        _ => return Err("wrong number of operands".into()),
    }
    let dst = body.predicate_dst(dst)?;
    let address = body.address_in(address, Space::Shared)?;
    let phase = body.source(phase, if parity { B32 } else { Type::B64 })?;
    Ok(Mbarrier::Wait { dst, address, phase, parity, suspends })
}

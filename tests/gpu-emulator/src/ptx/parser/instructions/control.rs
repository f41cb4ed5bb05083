//! Branches, calls and ends.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::names::Name;
use super::super::operands::{Raw, exactly};
use super::{B32, only};
use crate::ptx::ir::{Callee, Op, Param, ParamCopy, Register};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "bra" => {
            let uniform = s.modifiers.take("uni");
            let [Raw::Name(label, None)] = exactly(&s.operands)? else {
                return Err("a branch needs a label".into());
            };
            body.wait_for(label, None, 0);
            Ok(Op::Bra { target: 0, uniform })
        }
        "brx" => branch_table(body, s),
        "call" => call(body, s),
        "ret" => {
            let [] = exactly(&s.operands)?;
            Ok(Op::Ret { uniform: s.modifiers.take("uni") })
        }
        "nanosleep" => {
            only(s.modifiers.ty()?, &[crate::ptx::ir::Type::U32])?;
            let [a] = exactly(&s.operands)?;
            Ok(Op::Nanosleep { a: body.source(a, B32)? })
        }
        "griddepcontrol" => {
            let [] = exactly(&s.operands)?;
            let launch = s.modifiers.one_of(&[("launch_dependents", true), ("wait", false)]);
            let launch = launch.ok_or("`griddepcontrol` waits or launches")?;
            Ok(Op::GridDepControl { launch })
        }
        other => {
            let [] = exactly(&s.operands)?;
            Ok(match other {
                "exit" => Op::Exit,
                "trap" => Op::Trap,
                _ => Op::Brkpt,
            })
        }
    }
}

fn branch_table<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    s.modifiers.require("idx")?;
    let uniform = s.modifiers.take("uni");
    let [index, Raw::Name(table, None)] = exactly(&s.operands)? else {
        return Err("`brx.idx` needs an index and a branch table".into());
    };
    let Some(Name::Targets(labels)) = body.find(table) else {
        return Err(format!("`{table}` is not a branch table"));
    };
    // Reading a special register may emit an instruction, so the index comes first.
    let index = body.source(index, B32)?;
    for (slot, (label, line)) in labels.iter().enumerate() {
        body.wait_for(label, Some(*line), slot);
    }
    Ok(Op::BrxIdx { index, targets: vec![0; labels.len()], uniform })
}

fn call<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let uniform = s.modifiers.take("uni");
    let (returns, rest) = match s.operands.as_slice() {
        [Raw::List(returns), rest @ ..] => (returns.as_slice(), rest),
        rest => (&[][..], rest),
    };
    let (target, rest) = match rest {
        [Raw::Name(target, None), rest @ ..] => (*target, rest),
        _ => return Err("a call needs a function".into()),
    };
    let (args, rest) = match rest {
        [Raw::List(args), rest @ ..] => (args.as_slice(), rest),
        rest => (&[][..], rest),
    };
    let prototype = match rest {
        [] => None,
        [Raw::Name(prototype, None)] => Some(*prototype),
        _ => return Err("too many operands".into()),
    };
    let (callee, inputs, outputs) = match (body.find(target), prototype) {
        (Some(Name::Function(index)), None) => {
            let function = &body.tables.module.functions[index as usize];
            (Callee::Function(index), function.params.clone(), function.returns.clone())
        }
        (Some(Name::Register(Register { plane, bits: 64 })), Some(prototype)) => {
            match body.find(prototype) {
                Some(Name::Prototype(inputs, outputs)) => {
                    (Callee::Indirect(plane), inputs, outputs)
                }
                _ => return Err(format!("`{prototype}` is not a prototype")),
            }
        }
        (Some(Name::Register(_)), _) => {
            return Err("an indirect call needs a 64-bit register and a prototype".into());
        }
        _ => return Err(format!("function `{target}` is not declared")),
    };
    let (args, returns) = (copies(body, args, &inputs)?, copies(body, returns, &outputs)?);
    Ok(Op::Call { callee, args, returns, uniform })
}

/// Pairs the caller's `.param` variables with the callee's parameters.
fn copies<'a>(body: &Body<'_, 'a>, given: &[Raw<'a>], wanted: &[Param]) -> Parsed<Vec<ParamCopy>> {
    if given.len() != wanted.len() {
        return Err(format!("{} parameters given, {} declared", given.len(), wanted.len()));
    }
    let mut out = Vec::with_capacity(given.len());
    for (raw, param) in given.iter().zip(wanted) {
        let Raw::Name(name, None) = raw else {
            return Err("call parameters must be `.param` variables".into());
        };
        let Some(Name::CallParam(offset, size)) = body.find(name) else {
            return Err(format!("`{name}` is not a `.param` variable of this function"));
        };
        if size < param.size {
            return Err(format!("`{name}` has {size} bytes, the parameter {}", param.size));
        }
        let (caller_offset, callee_offset) = (offset, param.offset);
        out.push(ParamCopy { caller_offset, callee_offset, bytes: param.size });
    }
    Ok(out)
}

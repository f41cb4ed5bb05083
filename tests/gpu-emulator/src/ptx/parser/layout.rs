//! Places shared variables: which kernel touches which is known only once every body is read.
//!
//! Variables that device functions touch come first, at the same place in every kernel, since the
//! same instructions run in all of them; a kernel's own follow; dynamic memory comes last.

use super::Shared;
use crate::ptx::ir::{
    Address, Base, Callee, Function, Kind, Mbarrier, Module, Op, Operand, SharedVariable, Symbol,
};
use std::collections::BTreeSet;

type Failed<T> = Result<T, (u32, String)>;

/// Gives every shared variable its place and folds the places into the addresses.
pub(super) fn place_shared(module: &mut Module, variables: &[Shared]) -> Failed<()> {
    if variables.is_empty() {
        return Ok(());
    }
    let direct: Vec<Direct> = module.functions.iter_mut().map(direct).collect();
    let devices: Vec<usize> =
        (0..module.functions.len()).filter(|f| module.functions[*f].kind == Kind::Device).collect();
    let reached: Vec<BTreeSet<u32>> =
        (0..direct.len()).map(|f| through_calls(&direct, &devices, f)).collect();
    let common: BTreeSet<u32> = devices.iter().flat_map(|f| reached[*f].iter().copied()).collect();
    for (function, mut used) in module.functions.iter_mut().zip(reached) {
        if !used.is_disjoint(&common) {
            // The common block is laid out as a whole, so its places do not depend on the kernel.
            used.extend(&common);
        }
        let common_first =
            used.intersection(&common).chain(used.difference(&common)).copied().collect::<Vec<_>>();
        place(function, &common_first, variables)?;
        fold(function, &common_first, variables);
    }
    Ok(())
}

/// What one body touches and calls itself.
#[derive(Default)]
struct Direct {
    touched: BTreeSet<u32>,
    callees: BTreeSet<usize>,
    calls_indirectly: bool,
}

fn direct(function: &mut Function) -> Direct {
    let mut found = Direct::default();
    for instruction in &mut function.body {
        match &instruction.op {
            Op::Call { callee: Callee::Function(callee), .. } => {
                found.callees.insert(*callee as usize);
            }
            Op::Call { callee: Callee::Indirect(_), .. } => found.calls_indirectly = true,
            _ => {}
        }
        each_base(&mut instruction.op, &mut |base, _| {
            if let Base::Symbol(Symbol::PendingShared(variable)) = base {
                found.touched.insert(*variable);
            }
        });
    }
    found
}

/// Shared variables a function touches, itself or through calls; an indirect call may go anywhere.
fn through_calls(direct: &[Direct], devices: &[usize], start: usize) -> BTreeSet<u32> {
    let (mut touched, mut seen, mut open) = (BTreeSet::new(), BTreeSet::new(), vec![start]);
    while let Some(index) = open.pop() {
        if seen.insert(index) {
            let found = &direct[index];
            touched.extend(&found.touched);
            open.extend(&found.callees);
            open.extend(devices.iter().filter(|_| found.calls_indirectly));
        }
    }
    touched
}

/// Lays the variables out, static ones in order, dynamic ones behind them.
fn place(function: &mut Function, order: &[u32], variables: &[Shared]) -> Failed<()> {
    let (mut end, mut dynamic_align) = (0u32, 1);
    for variable in order.iter().map(|v| &variables[*v as usize]) {
        if variable.dynamic {
            dynamic_align = dynamic_align.max(variable.align);
            continue;
        }
        let offset = end.next_multiple_of(variable.align.max(1));
        end = offset.checked_add(variable.size).filter(|e| *e <= 1 << 24).ok_or_else(|| {
            (function.line, format!("kernel `{}` has too much shared memory", function.name))
        })?;
        function.shared.push(placed(variable, offset));
    }
    function.static_shared_bytes = end;
    function.dynamic_shared_offset = end.next_multiple_of(dynamic_align.max(16));
    for variable in order.iter().map(|v| &variables[*v as usize]).filter(|v| v.dynamic) {
        function.shared.push(placed(variable, function.dynamic_shared_offset));
    }
    Ok(())
}

fn placed(variable: &Shared, offset: u32) -> SharedVariable {
    let Shared { name, size, align, dynamic } = variable.clone();
    SharedVariable { name, offset, size, align, dynamic }
}

/// Replaces pending shared symbols by offsets.
fn fold(function: &mut Function, order: &[u32], variables: &[Shared]) {
    // `place` put the static ones first, the dynamic ones behind.
    let (dynamic, fixed): (Vec<u32>, Vec<u32>) =
        order.iter().partition(|v| variables[**v as usize].dynamic);
    let offsets: Vec<(u32, i64)> = fixed
        .into_iter()
        .chain(dynamic)
        .zip(&function.shared)
        .map(|(variable, placed)| (variable, i64::from(placed.offset)))
        .collect();
    let is_entry = function.kind == Kind::Entry;
    for instruction in &mut function.body {
        each_base(&mut instruction.op, &mut |base, offset| {
            let Base::Symbol(Symbol::PendingShared(variable)) = *base else { return };
            if variables[variable as usize].dynamic && !is_entry {
                *base = Base::Symbol(Symbol::DynamicShared);
            } else if let Some((_, place)) = offsets.iter().find(|(v, _)| *v == variable) {
                *base = Base::Absolute;
                *offset = offset.wrapping_add(*place);
            }
        });
        if let Op::AddressOf { dst, base: Base::Absolute, offset } = instruction.op {
            let a = Operand::Immediate(offset as u64);
            instruction.op = Op::Mov { bits: dst.bits, dst: dst.plane, a };
        }
    }
}

/// Calls `visit` with the base and offset of every address in an instruction.
fn each_base(op: &mut Op, visit: &mut dyn FnMut(&mut Base, &mut i64)) {
    let mut at = |address: &mut Address| visit(&mut address.base, &mut address.offset);
    match op {
        Op::AddressOf { base, offset, .. } => visit(base, offset),
        Op::Load { address, .. }
        | Op::Store { address, .. }
        | Op::Prefetch { address, .. }
        | Op::LdMatrix { address, .. }
        | Op::StMatrix { address, .. } => at(address),
        Op::Atom(atom) => at(&mut atom.address),
        Op::CpAsync(copy) => {
            at(&mut copy.dst);
            at(&mut copy.src);
        }
        Op::Mbarrier(barrier) => match &mut **barrier {
            Mbarrier::Init { address, .. }
            | Mbarrier::Invalidate { address }
            | Mbarrier::Arrive { address, .. }
            | Mbarrier::ExpectTx { address, .. }
            | Mbarrier::CompleteTx { address, .. }
            | Mbarrier::Wait { address, .. }
            | Mbarrier::ArriveAfterCopies { address, .. } => at(address),
            Mbarrier::PendingCount { .. } => {}
        },
        _ => {}
    }
}

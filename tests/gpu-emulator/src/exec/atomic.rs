//! `atom` and `red`: read-modify-write of single elements in global or shared memory.
//!
//! Lanes go one after another from a seeded first lane, so a result that depends on their order
//! differs from seed to seed. Floating-point sums round to nearest even.

use super::access::lanes;
use super::fault::{Outcome, Wrong};
use super::locate::Traffic;
use super::special::from_generic;
use super::step::Step;
use crate::memory::banks::wavefronts;
use crate::memory::{GlobalMemory, Violation};
use crate::ptx::ir::{Atom, AtomOp, Operand, Semantics, Space, Type};
use half::{bf16, f16};
use std::sync::atomic::Ordering::SeqCst;

/// The new value of an element of `ty`.
fn apply(op: AtomOp, ty: Type, old: u64, a: u64, b: u64) -> Option<u64> {
    let float = |f: fn(f32, f32) -> f32| {
        let value = f(f32::from_bits(old as u32), f32::from_bits(a as u32));
        Some(u64::from(value.to_bits()))
    };
    Some(match (op, ty) {
        (AtomOp::Exch, _) => a,
        (AtomOp::Cas, _) => {
            if old == a {
                b
            } else {
                old
            }
        }
        (AtomOp::And, _) => old & a,
        (AtomOp::Or, _) => old | a,
        (AtomOp::Xor, _) => old ^ a,
        (AtomOp::Add, Type::F32) => return float(|x, y| x + y),
        (AtomOp::Min, Type::F32) => return float(f32::min),
        (AtomOp::Max, Type::F32) => return float(f32::max),
        (AtomOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        (_, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) => halves(op, ty, old, a)?,
        (AtomOp::Add, Type::U64 | Type::S64 | Type::B64) => old.wrapping_add(a),
        (AtomOp::Min, Type::U64) => old.min(a),
        (AtomOp::Max, Type::U64) => old.max(a),
        (AtomOp::Min, Type::S64) => (old as i64).min(a as i64) as u64,
        (AtomOp::Max, Type::S64) => (old as i64).max(a as i64) as u64,
        (_, Type::U32 | Type::S32 | Type::B32) => {
            u64::from(word(op, ty == Type::S32, old as u32, a as u32)?)
        }
        _ => return None,
    })
}

fn word(op: AtomOp, signed: bool, old: u32, a: u32) -> Option<u32> {
    Some(match (op, signed) {
        (AtomOp::Add, _) => old.wrapping_add(a),
        (AtomOp::Inc, _) => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        (AtomOp::Min, false) => old.min(a),
        (AtomOp::Max, false) => old.max(a),
        (AtomOp::Min, true) => (old as i32).min(a as i32) as u32,
        (AtomOp::Max, true) => (old as i32).max(a as i32) as u32,
        _ => return None,
    })
}

/// One or two 16-bit floats.
fn halves(op: AtomOp, ty: Type, old: u64, a: u64) -> Option<u64> {
    let combine = |x: f32, y: f32| match op {
        AtomOp::Add => Some(x + y),
        AtomOp::Min => Some(x.min(y)),
        AtomOp::Max => Some(x.max(y)),
        _ => None,
    };
    let mut result = 0;
    for part in 0..ty.bits() / 16 {
        let (x, y) = ((old >> (16 * part)) as u16, (a >> (16 * part)) as u16);
        // A sum of two 16-bit floats is exact enough in f32 to be rounded once more.
        let bits = if matches!(ty, Type::F16 | Type::F16x2) {
            f16::from_f32(combine(f16::from_bits(x).to_f32(), f16::from_bits(y).to_f32())?)
                .to_bits()
        } else {
            bf16::from_f32(combine(bf16::from_bits(x).to_f32(), bf16::from_bits(y).to_f32())?)
                .to_bits()
        };
        result |= u64::from(bits) << (16 * part);
    }
    Some(result)
}

/// Applies `change` to an element of global memory at once and returns the old value.
fn update_global(
    memory: &GlobalMemory,
    offset: usize,
    bytes: u32,
    change: impl Fn(u64) -> u64,
) -> u64 {
    match bytes {
        8 => memory
            .double_word(offset)
            .fetch_update(SeqCst, SeqCst, |old| Some(change(old)))
            .unwrap_or_else(|old| old),
        4 => memory
            .word(offset)
            .fetch_update(SeqCst, SeqCst, |old| Some(change(u64::from(old)) as u32))
            .unwrap_or_else(|old| old)
            .into(),
        _ => {
            let shift = offset % 4 * 8;
            let old = memory
                .word(offset / 4 * 4)
                .fetch_update(SeqCst, SeqCst, |old| {
                    let part = change(u64::from(old >> shift & 0xffff)) as u32 & 0xffff;
                    Some((old & !(0xffff << shift)) | part << shift)
                })
                .unwrap_or_else(|old| old);
            u64::from(old >> shift & 0xffff)
        }
    }
}

impl Step<'_, '_> {
    /// `atom`, `red`.
    pub(super) fn atom(&mut self, atom: &Atom) -> Outcome {
        let addresses = self.addresses(atom.address)?;
        let bytes = atom.ty.bytes();
        if !(2..=8).contains(&bytes) || apply(atom.op, atom.ty, 0, 0, 0).is_none() {
            let detail = format!("an atomic {:?} of {:?}", atom.op, atom.ty);
            return Err(Wrong::unsupported(detail));
        }
        let first = lanes(self.mask).next().map_or(0, |lane| addresses[lane]);
        let (space, _) = match atom.space {
            Space::Generic => from_generic(first),
            space => (space, 0),
        };
        match space {
            Space::Global => self.atom_global(atom, addresses, bytes),
            Space::Shared => {
                let inside = match atom.space {
                    Space::Generic => addresses.map(|a| from_generic(a).1),
                    _ => addresses,
                };
                self.atom_shared(atom, inside, bytes)
            }
            other => Err(Wrong::unsupported(format!("an atomic in {other:?} memory"))),
        }
    }

    /// The executing lanes, from a seeded first one.
    fn lanes_in_some_order(&mut self) -> impl Iterator<Item = usize> + use<> {
        let turn = self.cta.random.below(32) as u32;
        let mask = self.mask.rotate_right(turn);
        lanes(mask).map(move |lane| (lane + turn as usize) % 32)
    }

    fn element(&mut self, ty: Type, operand: Option<Operand>, lane: usize) -> u64 {
        let Some(operand) = operand else { return 0 };
        match ty.bytes() {
            8 => self.registers().long(operand, lane),
            4 => self.registers().word(operand, lane).into(),
            _ => u64::from(self.registers().word(operand, lane) & 0xffff),
        }
    }

    fn give_back(&mut self, atom: &Atom, element: usize, lane: usize, old: u64) {
        let Some(Some(dst)) = atom.dsts.get(element).copied() else { return };
        if dst.bits == 64 {
            self.registers().set_lane64(dst.plane, lane, old);
        } else {
            self.registers().set_lane32(dst.plane, lane, old as u32);
        }
    }

    fn atom_global(&mut self, atom: &Atom, addresses: [u64; 32], bytes: u32) -> Outcome {
        let size = bytes * atom.a.len() as u32;
        let located = self.locate(self.mask, addresses, size, Traffic::Store)?;
        self.known(self.mask, &located, size)?;
        let memory = self.cta.grid.memory;
        for lane in self.lanes_in_some_order() {
            for (j, a) in atom.a.iter().enumerate() {
                let a = self.element(atom.ty, Some(*a), lane);
                let b = self.element(atom.ty, atom.b, lane);
                let offset = located.offsets[lane] + j * bytes as usize;
                let change = |old| apply(atom.op, atom.ty, old, a, b).expect("checked before");
                let old = update_global(memory, offset, bytes, change);
                if change(old) != old {
                    self.cta.progress = self.cta.clock;
                    self.cta.effect = self.cta.clock;
                }
                self.give_back(atom, j, lane, old);
            }
        }
        Ok(())
    }

    fn atom_shared(&mut self, atom: &Atom, addresses: [u64; 32], bytes: u32) -> Outcome {
        let places = self.shared_places(self.mask, &addresses, bytes)?;
        if atom.a.len() != 1 {
            return Err(Wrong::unsupported("a vector atomic in shared memory"));
        }
        self.shared_traffic(wavefronts(self.mask, &places, bytes));
        let by = self.access(true);
        self.cta.shared.refine(bytes);
        let view = self.cta.shared.view(by);
        let acquires = !matches!(atom.semantics, Semantics::Release);
        for lane in self.lanes_in_some_order() {
            if acquires {
                self.cta.shared.learn(self.warp.index, places[lane]);
            }
            let a = self.element(atom.ty, atom.a.first().copied(), lane);
            let b = self.element(atom.ty, atom.b, lane);
            let change = |old| apply(atom.op, atom.ty, old, a, b).expect("checked before");
            let old = self
                .cta
                .shared
                .atomic(&view, lane, places[lane], bytes, change)
                .map_err(|violation: Violation| Wrong::access(lane, violation))?;
            if change(old) != old {
                self.cta.progress = self.cta.clock;
            }
            self.give_back(atom, 0, lane, old);
        }
        let semantics = match atom.semantics {
            Semantics::Weak => Semantics::Relaxed,
            other => other,
        };
        self.published(self.mask, &places, semantics);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inc_and_dec_wrap_at_their_bound() {
        let inc = |old, a| word(AtomOp::Inc, false, old, a);
        assert_eq!(
            (inc(0, 3), inc(2, 3), inc(3, 3), inc(9, 3)),
            (Some(1), Some(3), Some(0), Some(0))
        );
        let dec = |old, a| word(AtomOp::Dec, false, old, a);
        assert_eq!(
            (dec(0, 3), dec(2, 3), dec(3, 3), dec(9, 3)),
            (Some(3), Some(1), Some(2), Some(3))
        );
    }

    #[test]
    fn signed_and_unsigned_order_differ() {
        let minus = u64::from(-1i32 as u32);
        assert_eq!(apply(AtomOp::Min, Type::U32, 1, minus, 0), Some(1));
        assert_eq!(apply(AtomOp::Min, Type::S32, 1, minus, 0), Some(minus));
        assert_eq!(apply(AtomOp::Max, Type::U64, 1, u64::MAX, 0), Some(u64::MAX));
        assert_eq!(apply(AtomOp::Max, Type::S64, 1, u64::MAX, 0), Some(1));
    }

    #[test]
    fn packed_halves_add_apart() {
        let pack = |x: f32, y: f32| {
            u64::from(f16::from_f32(x).to_bits()) | u64::from(f16::from_f32(y).to_bits()) << 16
        };
        let sum = apply(AtomOp::Add, Type::F16x2, pack(1.0, -2.0), pack(0.5, 65504.0), 0);
        assert_eq!(sum, Some(pack(1.5, 65504.0 - 2.0)));
    }
}

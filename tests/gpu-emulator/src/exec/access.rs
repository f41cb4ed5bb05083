//! Loads and stores of every space.
//!
//! Addresses are checked for the warp as a whole, then elements move between memory and registers
//! one register at a time.
//! Read next: `locate` (global addresses), then [`crate::memory`], where the rules live.

use super::fault::{Outcome, Wrong};
use super::locate::{Located, Shape, Traffic, fill_idle};
use super::registers::{Plane, Registers};
use super::special::from_generic;
use super::step::Step;
use super::tally::Class;
use super::warp::NO_FRAME;
use crate::launch::FaultKind;
use crate::memory::Violation;
use crate::memory::banks::{Wavefronts, wavefronts};
use crate::memory::shared::Access;
use crate::ptx::ir::{Address, Operand, Register, Semantics, Space, Type};

pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

/// Whether accesses of these semantics do not race with their like.
pub(super) fn is_strong(semantics: Semantics) -> bool {
    semantics != Semantics::Weak
}

/// What a load says of its ordering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoadKind {
    Weak,
    Strong,
    /// Weak, and of what nobody changes while the kernel runs.
    Constant,
}

/// Writes elements to registers, extended to their width; `read` gives a lane's element by its
/// byte offset and size.
#[inline(always)]
fn scatter(
    registers: &mut Registers,
    mask: u32,
    ty: Type,
    dsts: &[Option<Register>],
    read: impl Fn(usize, usize, usize) -> u64,
) {
    let bytes = ty.bytes() as usize;
    for (j, dst) in dsts.iter().enumerate() {
        let Some(dst) = *dst else { continue };
        let at = j * bytes;
        match (bytes, dst.bits) {
            (4, ..=32) => {
                let values = std::array::from_fn(|lane| read(lane, at, 4) as u32);
                registers.write_words(dst.plane, mask, &values);
            }
            (8, _) => {
                let values = std::array::from_fn(|lane| read(lane, at, 8));
                registers.write_longs(dst.plane, mask, &values);
            }
            (16, _) => {
                for half in 0..2 {
                    let values = std::array::from_fn(|lane| read(lane, at + 8 * half, 8));
                    registers.write_longs(dst.plane + 2 * half as u32, mask, &values);
                }
            }
            _ => {
                let shift = 64 - 8 * bytes as u32;
                let extended = std::array::from_fn(|lane| {
                    let value = read(lane, at, bytes);
                    if ty.is_signed() { ((value << shift) as i64 >> shift) as u64 } else { value }
                });
                if dst.bits == 64 {
                    registers.write_longs(dst.plane, mask, &extended);
                } else {
                    let keep = if dst.bits >= 32 { u32::MAX } else { (1 << dst.bits) - 1 };
                    let words = extended.map(|value| value as u32 & keep);
                    registers.write_words(dst.plane, mask, &words);
                }
            }
        }
    }
}

/// The bytes of every lane's store, in four words.
fn gather(registers: &Registers, ty: Type, srcs: &[Operand]) -> [[u32; 4]; 32] {
    let mut values = [[0u32; 4]; 32];
    let mut put = |word: usize, shift: usize, plane: &Plane| {
        for (value, part) in values.iter_mut().zip(plane) {
            value[word] |= part << shift;
        }
    };
    let bytes = ty.bytes() as usize;
    for (j, src) in srcs.iter().enumerate() {
        match (bytes, *src) {
            (1 | 2, src) => {
                let keep = if bytes == 1 { 0xff } else { 0xffff };
                let plane = registers.words(src).map(|word| word & keep);
                put(j * bytes / 4, j * bytes % 4 * 8, &plane);
            }
            (4, src) => put(j, 0, &registers.words(src)),
            (_, Operand::Plane(first)) => {
                for i in 0..bytes / 4 {
                    put(j * bytes / 4 + i, 0, &registers.planes[first as usize + i]);
                }
            }
            (_, Operand::Immediate(bits)) => {
                put(j * 2, 0, &[bits as u32; 32]);
                put(j * 2 + 1, 0, &[(bits >> 32) as u32; 32]);
            }
        }
    }
    values
}

impl Step<'_, '_> {
    /// Counts a shared-memory access of this instruction.
    #[inline]
    pub(super) fn shared_traffic(&mut self, wavefronts: Wavefronts) {
        let function = self.warp.frames[self.frame].function;
        self.cta.tally.shared((function, self.pc), wavefronts);
    }

    /// Who accesses shared memory.
    pub(super) fn access(&self, strong: bool) -> Access {
        Access { warp: self.warp.index, line: self.line, strong }
    }

    /// `ld`; `constant`: `ld.global.nc`.
    pub(super) fn load(
        &mut self,
        space: Space,
        ty: Type,
        dsts: &[Option<Register>],
        address: Address,
        semantics: Semantics,
        constant: bool,
    ) -> Outcome {
        let addresses = self.addresses(address)?;
        let kind = match (is_strong(semantics), constant) {
            (true, _) => LoadKind::Strong,
            (false, true) => LoadKind::Constant,
            (false, false) => LoadKind::Weak,
        };
        let mask = self.mask;
        match space {
            Space::Generic => self.each_space(addresses, |step, space, mask, addresses| {
                step.cta.tally.instruction(match space {
                    Space::Shared => Class::SharedLoad,
                    Space::Local => Class::Local,
                    Space::Param => Class::Other,
                    _ => Class::GlobalLoad,
                });
                step.load_from(space, mask, ty, dsts, addresses, kind)
            }),
            space => self.load_from(space, mask, ty, dsts, addresses, kind),
        }
    }

    /// Does a generic access space by space.
    fn each_space(
        &mut self,
        addresses: [u64; 32],
        mut access: impl FnMut(&mut Self, Space, u32, [u64; 32]) -> Outcome,
    ) -> Outcome {
        let (mut left, mut inside) = (self.mask, addresses);
        while left != 0 {
            let (space, _) = from_generic(addresses[left.trailing_zeros() as usize]);
            let mut these = 0u32;
            for lane in lanes(left) {
                let (other, offset) = from_generic(addresses[lane]);
                if other == space {
                    these |= 1 << lane;
                    inside[lane] = offset;
                }
            }
            access(self, space, these, inside)?;
            left &= !these;
        }
        Ok(())
    }

    fn load_from(
        &mut self,
        space: Space,
        mask: u32,
        ty: Type,
        dsts: &[Option<Register>],
        addresses: [u64; 32],
        kind: LoadKind,
    ) -> Outcome {
        let size = ty.bytes() * dsts.len() as u32;
        let strong = kind == LoadKind::Strong;
        match space {
            Space::Global | Space::Const => {
                let traffic = match (space, kind) {
                    (Space::Const, _) => Traffic::Uncounted,
                    (_, LoadKind::Constant) => Traffic::LoadConstant,
                    _ => Traffic::Load,
                };
                let located = self.locate(mask, addresses, size, traffic)?;
                self.known(mask, &located, size)?;
                let memory = self.cta.grid.memory;
                scatter(self.registers(), mask, ty, dsts, |lane, at, bytes| {
                    memory.load(located.offsets[lane] + at, bytes)
                });
                Ok(())
            }
            Space::Shared => {
                let places = self.shared_places(mask, &addresses, size)?;
                self.cta.shared.load(self.access(strong), mask, &places, size)?;
                if strong {
                    lanes(mask).for_each(|l| self.cta.shared.learn(self.warp.index, places[l]));
                }
                self.shared_traffic(wavefronts(mask, &places, size));
                let shared = &self.cta.shared;
                let registers = &mut self.warp.frames[self.frame].registers;
                scatter(registers, mask, ty, dsts, |lane, at, bytes| {
                    shared.value(places[lane] + at as u32, bytes as u32)
                });
                Ok(())
            }
            Space::Param if self.warp.frames[self.frame].parent == NO_FRAME => {
                self.load_param(mask, ty, dsts, addresses, size)
            }
            Space::Local | Space::Param | Space::CallParam | Space::Generic => {
                self.load_private(space, mask, ty, dsts, addresses, size)
            }
        }
    }

    /// The parameters of the launch, which all lanes share.
    fn load_param(
        &mut self,
        mask: u32,
        ty: Type,
        dsts: &[Option<Register>],
        mut addresses: [u64; 32],
        size: u32,
    ) -> Outcome {
        let params = &self.cta.grid.launch.params;
        fill_idle(mask, &mut addresses);
        let bad = addresses.iter().position(|a| {
            a.checked_add(size.into()).is_none_or(|end| end > params.len() as u64)
                || a % u64::from(size) != 0
        });
        if let Some(lane) = bad {
            let detail = format!("{size} bytes of parameters, of which there are {}", params.len());
            let violation = Violation::at(FaultKind::OutOfBounds, addresses[lane], detail);
            return Err(Wrong::access(lane, violation));
        }
        scatter(self.registers(), mask, ty, dsts, |lane, at, bytes| {
            let at = addresses[lane] as usize + at;
            params[at..at + bytes].iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte))
        });
        Ok(())
    }

    /// Memory every lane has a copy of.
    fn load_private(
        &mut self,
        space: Space,
        mask: u32,
        ty: Type,
        dsts: &[Option<Register>],
        addresses: [u64; 32],
        size: u32,
    ) -> Outcome {
        let mut places = addresses.map(|a| u32::try_from(a).unwrap_or(u32::MAX));
        fill_idle(mask, &mut places);
        let frame = &mut self.warp.frames[self.frame];
        let memory = match space {
            Space::Local => &self.warp.local,
            Space::Param => &frame.params,
            _ => &frame.call,
        };
        for lane in lanes(mask) {
            memory
                .check(places[lane], size)
                .and_then(|()| memory.readable(lane, places[lane], size))
                .map_err(|violation| Wrong::access(lane, violation))?;
        }
        scatter(&mut frame.registers, mask, ty, dsts, |lane, at, bytes| {
            memory.value(lane, places[lane] + at as u32, bytes as u32)
        });
        Ok(())
    }

    /// `st`.
    pub(super) fn store(
        &mut self,
        space: Space,
        ty: Type,
        srcs: &[Operand],
        address: Address,
        semantics: Semantics,
    ) -> Outcome {
        let addresses = self.addresses(address)?;
        let mask = self.mask;
        match space {
            Space::Generic => self.each_space(addresses, |step, space, mask, addresses| {
                step.cta.tally.instruction(match space {
                    Space::Shared => Class::SharedStore,
                    Space::Local => Class::Local,
                    _ => Class::GlobalStore,
                });
                step.store_to(space, mask, ty, srcs, addresses, semantics)
            }),
            space => self.store_to(space, mask, ty, srcs, addresses, semantics),
        }
    }

    fn store_to(
        &mut self,
        space: Space,
        mask: u32,
        ty: Type,
        srcs: &[Operand],
        addresses: [u64; 32],
        semantics: Semantics,
    ) -> Outcome {
        let size = ty.bytes() * srcs.len() as u32;
        match space {
            Space::Global => {
                if is_strong(semantics) {
                    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                }
                let located = self.locate(mask, addresses, size, Traffic::Store)?;
                self.cta.progress = self.cta.clock;
                self.cta.effect = self.cta.clock;
                self.store_global(mask, &located, ty, srcs);
                Ok(())
            }
            Space::Shared => {
                let places = self.shared_places(mask, &addresses, size)?;
                let registers = &self.warp.frames[self.frame].registers;
                let by = self.access(is_strong(semantics));
                let values = gather(registers, ty, srcs);
                self.cta.shared.store(by, mask, &places, size, &values)?;
                self.cta.progress = self.cta.clock;
                self.shared_traffic(wavefronts(mask, &places, size));
                self.published(mask, &places, semantics);
                Ok(())
            }
            Space::Local | Space::Param | Space::CallParam => {
                self.store_private(space, mask, ty, srcs, addresses, size)
            }
            Space::Const | Space::Generic => Err(Wrong::unsupported("a store to constant memory")),
        }
    }

    fn store_global(&mut self, mask: u32, located: &Located, ty: Type, srcs: &[Operand]) {
        let memory = self.cta.grid.memory;
        let bytes = ty.bytes() as usize;
        let size = bytes * srcs.len();
        let registers = &self.warp.frames[self.frame].registers;
        for (j, src) in srcs.iter().enumerate() {
            let at = j * bytes;
            match (bytes, *src) {
                (16, Operand::Plane(plane)) => {
                    for lane in lanes(mask) {
                        let offset = located.offsets[lane] + at;
                        memory.store(offset, 8, registers.lane64(plane, lane));
                        memory.store(offset + 8, 8, registers.lane64(plane + 2, lane));
                    }
                }
                (8, src) => {
                    let values = registers.longs(src);
                    for lane in lanes(mask) {
                        memory.store(located.offsets[lane] + at, 8, values[lane]);
                    }
                }
                (4, Operand::Plane(plane)) if mask == u32::MAX => {
                    let values = &registers.planes[plane as usize];
                    for (offset, value) in located.offsets.iter().zip(values) {
                        memory.store(offset + at, 4, u64::from(*value));
                    }
                }
                (bytes, src) => {
                    let values = registers.words(src);
                    for lane in lanes(mask) {
                        memory.store(located.offsets[lane] + at, bytes, u64::from(values[lane]));
                    }
                }
            }
        }
        if located.shape == Shape::Dense {
            memory.set_written(located.offsets[0], size * 32, true);
        } else {
            lanes(mask).for_each(|lane| memory.mark(located.offsets[lane], size));
        }
    }

    fn store_private(
        &mut self,
        space: Space,
        mask: u32,
        ty: Type,
        srcs: &[Operand],
        addresses: [u64; 32],
        size: u32,
    ) -> Outcome {
        let frame = &mut self.warp.frames[self.frame];
        let memory = match space {
            Space::Local => &mut self.warp.local,
            Space::Param => &mut frame.params,
            _ => &mut frame.call,
        };
        for lane in lanes(mask) {
            let place = u32::try_from(addresses[lane]).unwrap_or(u32::MAX);
            memory.check(place, size).map_err(|violation| Wrong::access(lane, violation))?;
        }
        for (j, half) in srcs.chunks(16 / ty.bytes() as usize).enumerate() {
            let values = gather(&frame.registers, ty, half);
            let bytes = half.len() as u32 * ty.bytes();
            for lane in lanes(mask) {
                let place = addresses[lane] as u32 + 16 * j as u32;
                for (word, at) in values[lane].iter().zip((0..bytes).step_by(4)) {
                    memory.store(lane, place + at, (bytes - at).min(4), u64::from(*word));
                }
            }
        }
        Ok(())
    }

    /// A strong shared write publishes what came before a fence; a plain store ends the fence.
    pub(super) fn published(&mut self, mask: u32, places: &[u32; 32], semantics: Semantics) {
        let releases = matches!(semantics, Semantics::Release | Semantics::AcqRel | Semantics::Sc);
        if releases || (self.warp.fenced && is_strong(semantics)) {
            lanes(mask).for_each(|l| self.cta.shared.publish(self.warp.index, places[l]));
        } else if !is_strong(semantics) {
            self.warp.fenced = false;
        }
    }

    /// Shared addresses as 32-bit numbers; bounds are the memory's business.
    #[inline]
    pub(super) fn shared_places(
        &self,
        mask: u32,
        addresses: &[u64; 32],
        size: u32,
    ) -> Outcome<[u32; 32]> {
        let mut high = 0;
        let mut places = [0u32; 32];
        for (place, address) in places.iter_mut().zip(addresses) {
            high |= address >> 32;
            *place = *address as u32;
        }
        if high != 0 {
            // Lanes that do not execute may hold anything.
            if let Some(lane) = lanes(mask).find(|lane| addresses[*lane] >> 32 != 0) {
                let detail = format!("{size} bytes that are not in shared memory");
                let violation = Violation::at(FaultKind::OutOfBounds, addresses[lane], detail);
                return Err(Wrong::access(lane, violation));
            }
        }
        fill_idle(mask, &mut places);
        Ok(places)
    }
}

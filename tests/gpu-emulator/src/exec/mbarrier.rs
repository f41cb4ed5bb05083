//! mbarrier objects: arrivals counted in shared memory, phase after phase.
//!
//! The object's bits are this executor's own; a kernel may only pass its address around. An arrival
//! releases what its warp knows, a wait that succeeds acquires what the phase's arrivals released.
//! A copy that arrives by `cp.async.mbarrier.arrive` has landed for its thread at that moment.

use super::access::lanes;
use super::fault::{Outcome, Wrong};
use super::step::Step;
use crate::launch::FaultKind;
use crate::memory::order::{Knowledge, WARPS, join};
use crate::ptx::ir::{Address, Mbarrier, Operand, Register};
use std::collections::HashMap;

/// One object.
#[derive(Debug, Clone)]
struct Object {
    /// Arrivals a phase needs.
    expected: u32,
    /// Arrivals this phase still needs.
    pending: u32,
    /// Bytes announced and not yet arrived.
    bytes: i64,
    /// Completed phases.
    phase: u32,
    gathering: Knowledge,
    completed: Knowledge,
}

impl Object {
    /// What `arrive` returns: the phase and what is pending in it.
    fn state(&self) -> u64 {
        u64::from(self.phase) << 32 | u64::from(self.pending)
    }

    fn settle(&mut self) -> bool {
        let complete = self.pending == 0 && self.bytes == 0;
        if complete {
            self.phase = self.phase.wrapping_add(1);
            self.pending = self.expected;
            join(&mut self.completed, &self.gathering);
        }
        complete
    }
}

/// The objects of a CTA, by shared address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mbarriers(HashMap<u32, Object>);

impl Step<'_, '_> {
    fn object(&mut self, lane: usize, place: u32) -> Outcome<&mut Object> {
        self.cta.mbarriers.0.get_mut(&place).ok_or_else(|| {
            let detail = format!("shared address {place:#x} holds no initialised mbarrier");
            Wrong::lane(FaultKind::IllegalSync, lane, detail)
        })
    }

    fn places(&mut self, address: Address) -> Outcome<[u32; 32]> {
        let addresses = self.addresses(address)?.map(|a| super::special::from_generic(a).1);
        self.shared_places(self.mask, &addresses, 8)
    }

    /// Every mbarrier instruction.
    pub(super) fn mbarrier(&mut self, mbarrier: &Mbarrier) -> Outcome {
        match *mbarrier {
            Mbarrier::Init { address, count } => self.init_object(address, count),
            Mbarrier::Invalidate { address } => {
                let places = self.places(address)?;
                for lane in lanes(self.mask) {
                    self.object(lane, places[lane])?;
                    self.cta.mbarriers.0.remove(&places[lane]);
                }
                Ok(())
            }
            Mbarrier::Arrive { state, address, count, expect_bytes, drop, .. } => {
                self.arrive(state, address, count, expect_bytes, drop)
            }
            Mbarrier::ExpectTx { address, bytes } => self.transact(address, bytes, 1),
            Mbarrier::CompleteTx { address, bytes } => self.transact(address, bytes, -1),
            Mbarrier::Wait { dst, address, phase, parity, .. } => {
                self.wait_phase(dst, address, phase, parity)
            }
            Mbarrier::PendingCount { dst, state } => {
                let counts = self.registers().longs(state).map(|state| state as u32);
                let mask = self.mask;
                self.registers().write_words(dst, mask, &counts);
                Ok(())
            }
            Mbarrier::ArriveAfterCopies { address, no_increment } => {
                self.cta.shared.wait_all(self.warp.index, self.mask);
                if no_increment { self.arrive(None, address, None, None, false) } else { Ok(()) }
            }
        }
    }

    fn init_object(&mut self, address: Address, count: Operand) -> Outcome {
        let places = self.places(address)?;
        let counts = self.registers().words(count);
        for lane in lanes(self.mask) {
            if counts[lane] == 0 || counts[lane] >= 1 << 20 {
                let detail = format!("an mbarrier for {} arrivals", counts[lane]);
                return Err(Wrong::lane(FaultKind::IllegalSync, lane, detail));
            }
            self.cta
                .shared
                .claim(places[lane], 8)
                .map_err(|violation| Wrong::access(lane, violation))?;
            let object = Object {
                expected: counts[lane],
                pending: counts[lane],
                bytes: 0,
                phase: 0,
                gathering: [0; WARPS],
                completed: [0; WARPS],
            };
            self.cta.mbarriers.0.insert(places[lane], object);
        }
        Ok(())
    }

    fn arrive(
        &mut self,
        state: Option<Register>,
        address: Address,
        count: Option<Operand>,
        expect_bytes: Option<Operand>,
        drop: bool,
    ) -> Outcome {
        let places = self.places(address)?;
        let counts = count.map_or([1; 32], |count| self.registers().words(count));
        let bytes = expect_bytes.map_or([0; 32], |bytes| self.registers().words(bytes));
        let knowledge = self.cta.shared.release(self.warp.index);
        for lane in lanes(self.mask) {
            let object = self.object(lane, places[lane])?;
            let before = object.state();
            object.bytes += i64::from(bytes[lane]);
            if counts[lane] > object.pending {
                let detail = format!("{} arrivals, {} pending", counts[lane], object.pending);
                return Err(Wrong::lane(FaultKind::IllegalSync, lane, detail));
            }
            join(&mut object.gathering, &knowledge);
            object.pending -= counts[lane];
            if drop {
                object.expected -= counts[lane];
            }
            if object.settle() {
                self.cta.progress = self.cta.clock;
            }
            if let Some(state) = state {
                self.registers().set_lane64(state.plane, lane, before);
            }
        }
        Ok(())
    }

    fn transact(&mut self, address: Address, bytes: Operand, sign: i64) -> Outcome {
        let places = self.places(address)?;
        let bytes = self.registers().words(bytes);
        for lane in lanes(self.mask) {
            let object = self.object(lane, places[lane])?;
            object.bytes += sign * i64::from(bytes[lane]);
            object.settle();
        }
        Ok(())
    }

    fn wait_phase(&mut self, dst: u32, address: Address, phase: Operand, parity: bool) -> Outcome {
        let places = self.places(address)?;
        let phases = if parity {
            self.registers().words(phase).map(u64::from)
        } else {
            self.registers().longs(phase)
        };
        let mut done = 0u32;
        for lane in lanes(self.mask) {
            let object = self.object(lane, places[lane])?;
            let complete = if parity {
                u64::from(object.phase & 1) != phases[lane] & 1
            } else {
                object.phase > (phases[lane] >> 32) as u32
            };
            if complete {
                done |= 1 << lane;
                let knowledge = object.completed;
                self.cta.shared.acquire(self.warp.index, &knowledge);
            }
        }
        let mask = self.mask;
        self.registers().write_predicate(dst, mask, done);
        Ok(())
    }
}

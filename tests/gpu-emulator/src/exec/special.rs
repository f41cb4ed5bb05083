//! Special registers, addresses of symbols, and the windows of the generic address space.

use super::fault::{Outcome, Wrong};
use super::step::Step;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::ptx::ir::{Address, Base, Operand, Register, Space, SpecialRegister, Symbol};

/// First generic address of a space's window; global and constant memory are their own.
fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const | Space::CallParam => 0,
    }
}

/// The space a generic address lies in, and its address there.
pub(super) fn from_generic(address: u64) -> (Space, u64) {
    for space in [Space::Shared, Space::Local, Space::Param] {
        let offset = address.wrapping_sub(window(space));
        if offset < WINDOW_BYTES {
            return (space, offset);
        }
    }
    (Space::Global, address)
}

impl Step<'_, '_> {
    /// Writes 64-bit values to a register of any width.
    pub(super) fn write_register(&mut self, dst: Register, values: &[u64; 32]) {
        let mask = self.mask;
        match dst.bits {
            64 => self.registers().write_longs(dst.plane, mask, values),
            bits => {
                let keep = if bits >= 32 { u32::MAX } else { (1 << bits) - 1 };
                let words = values.map(|v| v as u32 & keep);
                self.registers().write_words(dst.plane, mask, &words);
            }
        }
    }

    /// `mov` from a special register.
    pub(super) fn read_special(&mut self, dst: Register, special: SpecialRegister) -> Outcome {
        let values = self.special(special)?;
        self.write_register(dst, &values);
        Ok(())
    }

    fn special(&self, special: SpecialRegister) -> Outcome<[u64; 32]> {
        use SpecialRegister as S;
        let grid = self.cta.grid;
        let launch = grid.launch;
        let warp = self.warp.index as u32;
        let by_lane = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|l| u64::from(f(l as u32)));
        let everywhere = |value: u64| Ok([value; 32]);
        let axis = |of: [u32; 3], axis: u8| of.get(axis as usize).copied().unwrap_or(0);
        match special {
            S::Tid(at) => {
                let [bx, by, _] = launch.block;
                Ok(by_lane(&|lane| {
                    let thread = warp * 32 + lane;
                    axis([thread % bx, thread / bx % by, thread / bx / by], at)
                }))
            }
            S::Laneid => Ok(by_lane(&|lane| lane)),
            S::LanemaskEq => Ok(by_lane(&|lane| 1 << lane)),
            S::LanemaskLt => Ok(by_lane(&|lane| (1 << lane) - 1)),
            S::LanemaskLe => Ok(by_lane(&|lane| u32::MAX >> (31 - lane))),
            S::LanemaskGe => Ok(by_lane(&|lane| u32::MAX << lane)),
            S::LanemaskGt => Ok(by_lane(&|lane| !(u32::MAX >> (31 - lane)))),
            S::Ntid(at) => everywhere(axis(launch.block, at).into()),
            S::Ctaid(at) => everywhere(axis(self.cta.index, at).into()),
            S::Nctaid(at) => everywhere(axis(launch.grid, at).into()),
            S::Warpid => everywhere(warp.into()),
            S::Nwarpid => everywhere(grid.warps as u64),
            S::Smid => {
                let sms = u64::from((launch.sms.end - launch.sms.start).max(1));
                everywhere(u64::from(launch.sms.start) + self.cta.linear % sms)
            }
            S::Nsmid => everywhere(launch.sm_count.into()),
            S::Gridid => everywhere(launch.serial),
            S::Clock | S::Clock64 => everywhere(self.cta.clock),
            S::ClockHi => everywhere(self.cta.clock >> 32),
            // A deterministic stand-in: one nanosecond an instruction, a millisecond a launch.
            S::Globaltimer | S::GlobaltimerLo => everywhere(self.time()),
            S::GlobaltimerHi => everywhere(self.time() >> 32),
            S::DynamicSmemSize => everywhere(launch.dynamic_shared_bytes.into()),
            S::TotalSmemSize => everywhere(grid.shared_bytes.into()),
            S::ReservedSmem => everywhere(0),
            // Every CTA is a cluster of its own.
            S::ClusterCtaid(_) | S::ClusterCtarank | S::IsExplicitCluster => everywhere(0),
            S::ClusterNctaid(_) | S::ClusterNctarank => everywhere(1),
            S::ClusterId(at) => everywhere(axis(self.cta.index, at).into()),
            S::Nclusterid(at) => everywhere(axis(launch.grid, at).into()),
            S::Envreg(_) => everywhere(0),
        }
    }

    fn time(&self) -> u64 {
        self.cta.grid.launch.serial * 1_000_000 + self.cta.clock
    }

    /// The address of a symbol in its own space.
    fn symbol(&self, symbol: Symbol) -> Outcome<u64> {
        match symbol {
            Symbol::LocalFrame => Ok(self.warp.frames[self.frame].local_base.into()),
            Symbol::ParamFrame => Ok(0),
            other => self.cta.grid.symbol(other).ok_or_else(|| {
                Wrong::unsupported(format!("the address of {other:?}, which is placed nowhere"))
            }),
        }
    }

    /// The addresses an instruction names; those of lanes that do not execute mean nothing.
    #[inline]
    pub(super) fn addresses(&mut self, address: Address) -> Outcome<[u64; 32]> {
        let offset = address.offset as u64;
        Ok(match address.base {
            Base::Absolute => [offset; 32],
            Base::Register32(plane) => {
                let words = &self.registers().planes[plane as usize];
                words.map(|word| u64::from(word.wrapping_add(offset as u32)))
            }
            Base::Register64(plane) => {
                let longs = self.registers().longs(Operand::Plane(plane));
                longs.map(|long| long.wrapping_add(offset))
            }
            Base::Symbol(symbol) => [self.symbol(symbol)?.wrapping_add(offset); 32],
        })
    }

    /// `mov` of a symbol's address.
    pub(super) fn address_of(&mut self, dst: Register, base: Base, offset: i64) -> Outcome {
        let values = self.addresses(Address { base, offset })?;
        self.write_register(dst, &values);
        Ok(())
    }

    /// `cvta`: adds or takes off a window.
    pub(super) fn cvta(
        &mut self,
        to: bool,
        space: Space,
        bits: u8,
        dst: u32,
        a: Operand,
    ) -> Outcome {
        let window = window(space);
        if bits != 64 {
            return Err(Wrong::unsupported("cvta of 32-bit addresses"));
        }
        let values = self.registers().longs(a).map(|address| {
            if to { address.wrapping_sub(window) } else { address.wrapping_add(window) }
        });
        let mask = self.mask;
        self.registers().write_longs(dst, mask, &values);
        Ok(())
    }

    /// `isspacep`.
    pub(super) fn isspacep(&mut self, space: Space, dst: u32, a: Operand) {
        let values = self.registers().longs(a);
        let mut inside = 0u32;
        for (lane, address) in values.iter().enumerate() {
            inside |= u32::from(from_generic(*address).0 == space) << lane;
        }
        let mask = self.mask;
        self.registers().write_predicate(dst, mask, inside);
    }
}

//! One warp's registers: 32 lanes wide, planes of 32 bits.
//!
//! A 64-bit register is two consecutive planes, low word first; a 16-bit one keeps the upper half
//! of its plane zero. Predicates are masks with one bit a lane.
//! The invariant: a write touches only lanes of the mask it is given.
//! Read next: `crate::ptx::ir`, whose operands index these planes.

use crate::ptx::ir::{Guard, Operand, PredicateOperand};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// One 32-bit value a lane.
pub type Plane = [u32; LANES];

/// The registers of one warp in one function activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// 32-bit planes.
    pub planes: Vec<Plane>,
    /// Predicate masks.
    pub predicates: Vec<u32>,
    /// The carry flag of each lane (`add.cc` and relatives).
    pub carry: u32,
}

impl Registers {
    /// Registers of a function, all zero.
    #[must_use]
    pub fn new(planes: u32, predicates: u32) -> Self {
        Self {
            planes: vec![[0; LANES]; planes as usize],
            predicates: vec![0; predicates as usize],
            carry: 0,
        }
    }

    /// A plane of words: the operand's register, or its immediate in every lane.
    #[inline]
    #[must_use]
    pub fn words(&self, operand: Operand) -> Plane {
        match operand {
            Operand::Plane(plane) => self.planes[plane as usize],
            Operand::Immediate(bits) => [bits as u32; LANES],
        }
    }

    /// Both planes of a 64-bit operand as 64-bit values.
    #[inline]
    #[must_use]
    pub fn longs(&self, operand: Operand) -> [u64; LANES] {
        match operand {
            Operand::Plane(plane) => {
                let (low, high) = (&self.planes[plane as usize], &self.planes[plane as usize + 1]);
                std::array::from_fn(|i| u64::from(low[i]) | u64::from(high[i]) << 32)
            }
            Operand::Immediate(bits) => [bits; LANES],
        }
    }

    /// One lane of a 32-bit (or narrower) operand.
    #[inline]
    #[must_use]
    pub fn word(&self, operand: Operand, lane: usize) -> u32 {
        match operand {
            Operand::Plane(plane) => self.planes[plane as usize][lane],
            Operand::Immediate(bits) => bits as u32,
        }
    }

    /// One lane of a 64-bit operand.
    #[inline]
    #[must_use]
    pub fn long(&self, operand: Operand, lane: usize) -> u64 {
        match operand {
            Operand::Plane(plane) => self.lane64(plane, lane),
            Operand::Immediate(bits) => bits,
        }
    }

    /// One lane of the 64-bit register at `plane`.
    #[inline]
    #[must_use]
    pub fn lane64(&self, plane: u32, lane: usize) -> u64 {
        let plane = plane as usize;
        u64::from(self.planes[plane][lane]) | u64::from(self.planes[plane + 1][lane]) << 32
    }

    /// One lane of the 16-bit register at `plane`.
    #[inline]
    #[must_use]
    pub fn lane16(&self, plane: u32, lane: usize) -> u16 {
        self.planes[plane as usize][lane] as u16
    }

    /// One lane of `plane` as f32.
    #[inline]
    #[must_use]
    pub fn lane_f32(&self, plane: u32, lane: usize) -> f32 {
        f32::from_bits(self.planes[plane as usize][lane])
    }

    /// One lane of the 64-bit register at `plane` as f64.
    #[inline]
    #[must_use]
    pub fn lane_f64(&self, plane: u32, lane: usize) -> f64 {
        f64::from_bits(self.lane64(plane, lane))
    }

    /// Writes one lane of a 32-bit register.
    #[inline]
    pub fn set_lane32(&mut self, plane: u32, lane: usize, value: u32) {
        self.planes[plane as usize][lane] = value;
    }

    /// Writes one lane of a 64-bit register.
    #[inline]
    pub fn set_lane64(&mut self, plane: u32, lane: usize, value: u64) {
        self.planes[plane as usize][lane] = value as u32;
        self.planes[plane as usize + 1][lane] = (value >> 32) as u32;
    }

    /// Writes the lanes of `mask` of a 32-bit (or narrower) register.
    #[inline]
    pub fn write_words(&mut self, plane: u32, mask: u32, values: &Plane) {
        let target = &mut self.planes[plane as usize];
        if mask == u32::MAX {
            *target = *values;
        } else {
            for (lane, (old, new)) in target.iter_mut().zip(values).enumerate() {
                let keep = ((mask >> lane) & 1).wrapping_sub(1);
                *old = (*old & keep) | (*new & !keep);
            }
        }
    }

    /// Writes the lanes of `mask` of a 64-bit register.
    #[inline]
    pub fn write_longs(&mut self, plane: u32, mask: u32, values: &[u64; LANES]) {
        self.write_words(plane, mask, &values.map(|v| v as u32));
        self.write_words(plane + 1, mask, &values.map(|v| (v >> 32) as u32));
    }

    /// The lanes in which a source predicate holds.
    #[inline]
    #[must_use]
    pub fn predicate(&self, operand: PredicateOperand) -> u32 {
        match operand {
            PredicateOperand::Register { predicate, negated } => {
                let mask = self.predicates[predicate as usize];
                if negated { !mask } else { mask }
            }
            PredicateOperand::Constant(true) => u32::MAX,
            PredicateOperand::Constant(false) => 0,
        }
    }

    /// Writes the lanes of `mask` of a predicate register.
    #[inline]
    pub fn write_predicate(&mut self, predicate: u32, mask: u32, values: u32) {
        let target = &mut self.predicates[predicate as usize];
        *target = (*target & !mask) | (values & mask);
    }

    /// The lanes of `mask` that a guard lets execute.
    #[inline]
    #[must_use]
    pub fn guarded(&self, guard: Option<Guard>, mask: u32) -> u32 {
        match guard {
            None => mask,
            Some(Guard { predicate, negated }) => {
                mask & self.predicate(PredicateOperand::Register { predicate, negated })
            }
        }
    }
}

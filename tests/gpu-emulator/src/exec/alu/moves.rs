//! `mov`: copies, packs and unpacks.

use crate::exec::registers::{LANES, Registers};
use crate::ptx::ir::{Operand, Register};

/// Copies one, two or four planes.
pub(super) fn mov(r: &mut Registers, mask: u32, bits: u8, dst: u32, a: Operand) {
    let planes = u32::from(bits.div_ceil(32));
    let mut words = [[0; LANES]; 4];
    for (i, words) in (0..planes).zip(&mut words) {
        *words = word_plane(r, a, i);
    }
    for (i, words) in (0..planes).zip(&words) {
        r.write_words(dst + i, mask, words);
    }
}

/// Word `index` of a wide operand.
#[inline(always)]
pub(super) fn word_plane(r: &Registers, operand: Operand, index: u32) -> [u32; LANES] {
    match operand {
        Operand::Plane(plane) => r.planes[(plane + index) as usize],
        Operand::Immediate(bits) if index < 2 => [(bits >> (32 * index)) as u32; LANES],
        Operand::Immediate(bits) => [((bits as i64) >> 63) as u32; LANES],
    }
}

/// `d = {parts}`, lowest first.
pub(super) fn pack(r: &mut Registers, mask: u32, dst: Register, part_bits: u8, parts: &[Operand]) {
    let mut words = [[0u32; LANES]; 4];
    for (index, part) in parts.iter().enumerate() {
        let bit = index * usize::from(part_bits);
        let (word, shift) = (bit / 32, bit % 32);
        if part_bits >= 32 {
            for i in 0..usize::from(part_bits) / 32 {
                words[word + i] = word_plane(r, *part, i as u32);
            }
            continue;
        }
        let keep = (1u32 << part_bits) - 1;
        let source = r.words(*part);
        for (word, source) in words[word].iter_mut().zip(source) {
            *word |= (source & keep) << shift;
        }
    }
    for (i, words) in (0..dst.planes()).zip(&words) {
        r.write_words(dst.plane + i, mask, words);
    }
}

/// `{dsts} = a`, lowest first; a part narrower than its register is extended with zeros.
pub(super) fn unpack(
    r: &mut Registers,
    mask: u32,
    dsts: &[Option<Register>],
    part_bits: u8,
    a: Operand,
) {
    let mut words = [[0u32; LANES]; 4];
    let total = dsts.len() * usize::from(part_bits);
    for (i, words) in (0..total.div_ceil(32) as u32).zip(&mut words) {
        *words = word_plane(r, a, i);
    }
    for (index, dst) in dsts.iter().enumerate() {
        let Some(dst) = dst else { continue };
        let bit = index * usize::from(part_bits);
        let (word, shift) = (bit / 32, bit % 32);
        let given = usize::from(part_bits).div_ceil(32);
        for i in 0..dst.planes() as usize {
            let mut part = if i < given { words[word + i] } else { [0; LANES] };
            if part_bits < 32 && i == 0 {
                let keep = (1u32 << part_bits) - 1;
                part = part.map(|value| value >> shift & keep);
            }
            r.write_words(dst.plane + i as u32, mask, &part);
        }
    }
}

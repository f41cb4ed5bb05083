//! Random numbers and random weights in every block type, for the tests of the kernels.

use crate::device::BlockType;
use half::{bf16, f16};

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `-1..1`.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// What tests on the software GPU ask for.
#[cfg(forerun_kernels)]
impl Random {
    /// Below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    pub(super) fn bf16s(&mut self, count: usize) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.float())).collect()
    }
}

/// Bytes of a matrix: any quants, scales and minimums of a usual size.
pub(super) fn random_bytes(
    kind: BlockType,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> Vec<u8> {
    let size = kind.row_bytes(cols).expect("whole blocks") * rows;
    let mut bytes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let (halves, at): (usize, usize) = match kind {
            BlockType::F32 => {
                block.copy_from_slice(&random.float().to_le_bytes());
                continue;
            }
            BlockType::F16 => {
                block.copy_from_slice(&f16::from_f32(random.float()).to_le_bytes());
                continue;
            }
            BlockType::BF16 => {
                block.copy_from_slice(&bf16::from_f32(random.float()).to_le_bytes());
                continue;
            }
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => (1, 0),
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => (2, 0),
            BlockType::Q6_K => (1, 208),
        };
        for half in 0..halves {
            let value = f16::from_f32(random.float() * 0.05);
            block[at + 2 * half..][..2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

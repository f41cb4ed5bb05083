//! Random weights of any block type, fast: a few thousand blocks, again and again.

use forerun::device::BlockType;
use half::{bf16, f16};

/// Blocks that differ.
const DISTINCT_BLOCKS: usize = 4096;

/// SplitMix64: the same numbers everywhere.
#[derive(Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[-1, 1)`.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A `[rows, columns]` matrix of weights of about `1 / sqrt(columns)`.
///
/// # Panics
/// If the rows are no whole blocks.
pub(crate) fn random(kind: BlockType, rows: usize, columns: usize) -> Vec<u8> {
    let bytes = rows * kind.row_bytes(columns).expect("rows of whole blocks");
    let mut rng = Rng(columns as u64);
    let amplitude = 1.5 / (columns as f32).sqrt();
    let mut distinct = vec![];
    for _ in 0..DISTINCT_BLOCKS {
        block(kind, amplitude, &mut rng, &mut distinct);
    }
    distinct.iter().copied().cycle().take(bytes).collect()
}

fn block(kind: BlockType, amplitude: f32, rng: &mut Rng, to: &mut Vec<u8>) {
    let start = to.len();
    if kind == BlockType::BF16 {
        to.extend(bf16::from_f32(rng.signed() * amplitude).to_le_bytes());
        return;
    }
    to.extend((0..kind.block_bytes()).map(|_| rng.word() as u8));
    let mut scale = |at: usize, largest: f32| {
        to[start + at..][..2].copy_from_slice(&f16::from_f32(amplitude / largest).to_le_bytes());
    };
    match kind {
        BlockType::Q8_0 => scale(0, 127.0),
        BlockType::Q5_0 => scale(0, 16.0),
        BlockType::Q4_K => {
            scale(0, 15.0 * 63.0);
            scale(2, 63.0);
        }
        BlockType::Q6_K => scale(208, 32.0 * 127.0),
        other => unreachable!("no mix has {other}"),
    }
}

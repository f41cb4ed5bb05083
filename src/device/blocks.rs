//! Block types of stored weights, and what the bytes of each mean.
//!
//! A weight row is a sequence of blocks; a block holds 1, 32 or 256 elements with their shared
//! scales. This is the whole knowledge of the formats: sizes, GGML type numbers and the plain
//! decoding every SIMD kernel is tested against. Invariant: [`dequantize_row`] computes in the
//! order of the `gguf` Python package's `dequantize`, so finite results agree to the last bit.
//! Read next: `crate::model` for the files the blocks come from.

use half::{bf16, f16};

/// Elements of a K-quant super-block.
const K_ELEMENTS: usize = 256;
/// Elements of a simple quantised block.
const SIMPLE_ELEMENTS: usize = 32;

/// How the elements of a stored tensor are encoded. Plain types are blocks of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // The formats' own names: Q4_K is what users and files say.
pub enum BlockType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 32 signed bytes with one f16 scale.
    Q8_0,
    /// 32 nibbles around 8 with one f16 scale.
    Q4_0,
    /// 32 nibbles with an f16 scale and an f16 minimum.
    Q4_1,
    /// 32 five-bit values around 16 with one f16 scale.
    Q5_0,
    /// 32 five-bit values with an f16 scale and an f16 minimum.
    Q5_1,
    /// 8 groups of 32 nibbles; six-bit scales and minimums per group.
    Q4_K,
    /// 8 groups of 32 five-bit values; six-bit scales and minimums per group.
    Q5_K,
    /// 16 groups of 16 six-bit values around 32; signed byte scales per group.
    Q6_K,
}

impl BlockType {
    /// Every supported type.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Elements one block holds.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => SIMPLE_ELEMENTS,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => K_ELEMENTS,
        }
    }

    /// Bytes one block occupies.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q4_K => 2 + 2 + 12 + 128,
            Self::Q5_K => 2 + 2 + 12 + 32 + 128,
            Self::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// The name files and people use, such as `Q4_K`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// The type with this number in GGUF files, or `None` if it is not supported.
    #[must_use]
    pub const fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// True for the types that are one number per element, without shared scales.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.block_elements() == 1
    }

    /// Bytes of a row of `cols` elements, or `None` if `cols` is not a whole number of blocks or
    /// the size overflows.
    #[must_use]
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_elements()) {
            return None;
        }
        (cols / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Decodes whole blocks into `out`, in the order of the row's elements.
///
/// The results are the exact f32 values the format defines; nothing is fused or reassociated.
///
/// # Panics
/// If `bytes` is not the encoding of exactly `out.len()` elements: loaders check sizes first.
pub fn dequantize_row(kind: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        kind.row_bytes(out.len()),
        Some(bytes.len()),
        "{kind} row of {} elements does not have {} bytes",
        out.len(),
        bytes.len()
    );
    match kind {
        BlockType::F32 => each_block(bytes, out, |b: &[u8; 4], y: &mut [f32; 1]| {
            y[0] = f32::from_le_bytes(*b);
        }),
        BlockType::F16 => each_block(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = f16::from_le_bytes(*b).to_f32();
        }),
        BlockType::BF16 => each_block(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        BlockType::Q8_0 => each_block(bytes, out, block_q8_0),
        BlockType::Q4_0 => each_block(bytes, out, block_q4_0),
        BlockType::Q4_1 => each_block(bytes, out, block_q4_1),
        BlockType::Q5_0 => each_block(bytes, out, block_q5_0),
        BlockType::Q5_1 => each_block(bytes, out, block_q5_1),
        BlockType::Q4_K => each_block(bytes, out, block_q4_k),
        BlockType::Q5_K => each_block(bytes, out, block_q5_k),
        BlockType::Q6_K => each_block(bytes, out, block_q6_k),
    }
}

/// The six-bit scales and minimums of the 8 groups of a Q4_K or Q5_K block.
///
/// The first four of each sit in the low six bits of bytes 0-3 and 4-7; the last four are a nibble
/// of bytes 8-11 with their two high bits in the top of those same bytes.
#[must_use]
pub fn k_scales_and_minimums(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minimums) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (s, m, high) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = s & 0x3f;
        minimums[i] = m & 0x3f;
        scales[i + 4] = (high & 0x0f) | ((s >> 2) & 0x30);
        minimums[i + 4] = (high >> 4) | ((m >> 2) & 0x30);
    }
    (scales, minimums)
}

fn each_block<const BYTES: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<N>();
    for (block, y) in blocks.iter().zip(values) {
        decode(block, y);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn block_q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..32 {
        y[i] = f32::from(block[2 + i] as i8) * d;
    }
}

fn block_q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..16 {
        let q = block[2 + i];
        y[i] = d * f32::from((q & 0x0f) as i8 - 8);
        y[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

fn block_q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let q = block[4 + i];
        y[i] = d * f32::from(q & 0x0f) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The five-bit values of a Q5_0 or Q5_1 block from its nibbles and its word of high bits.
fn five_bits(high: u32, nibbles: &[u8], i: usize) -> (u8, u8) {
    let low = (nibbles[i] & 0x0f) | ((((high >> i) & 1) as u8) << 4);
    let upper = (nibbles[i] >> 4) | ((((high >> (i + 16)) & 1) as u8) << 4);
    (low, upper)
}

fn block_q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half_at(block, 0), word_at(block, 2));
    for i in 0..16 {
        let (a, b) = five_bits(high, &block[6..], i);
        y[i] = d * f32::from(a as i8 - 16);
        y[i + 16] = d * f32::from(b as i8 - 16);
    }
}

fn block_q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half_at(block, 0), half_at(block, 2), word_at(block, 4));
    for i in 0..16 {
        let (a, b) = five_bits(high, &block[8..], i);
        y[i] = d * f32::from(a) + m;
        y[i + 16] = d * f32::from(b) + m;
    }
}

/// The scales of a Q4_K or Q5_K block, multiplied out: `[(d · scale, dmin · minimum); 8]`.
fn k_group_scales(block: &[u8]) -> [(f32, f32); 8] {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let packed: &[u8; 12] = block[4..16].try_into().expect("twelve bytes");
    let (scales, minimums) = k_scales_and_minimums(packed);
    std::array::from_fn(|g| (d * f32::from(scales[g]), d_min * f32::from(minimums[g])))
}

fn block_q4_k(block: &[u8; 144], y: &mut [f32; 256]) {
    let groups = k_group_scales(block);
    for (g, (d, m)) in groups.into_iter().enumerate() {
        // Two groups share 32 bytes: the even one has the low nibbles.
        let quants = &block[16 + g / 2 * 32..][..32];
        let shift = g % 2 * 4;
        for (y, q) in y[g * 32..][..32].iter_mut().zip(quants) {
            *y = d * f32::from((q >> shift) & 0x0f) - m;
        }
    }
}

fn block_q5_k(block: &[u8; 176], y: &mut [f32; 256]) {
    let groups = k_group_scales(block);
    let high = &block[16..48];
    for (g, (d, m)) in groups.into_iter().enumerate() {
        let quants = &block[48 + g / 2 * 32..][..32];
        let shift = g % 2 * 4;
        for (i, y) in y[g * 32..][..32].iter_mut().enumerate() {
            // Bit g of byte i is the fifth bit of element i of group g.
            let q = ((quants[i] >> shift) & 0x0f) | (((high[i] >> g) & 1) << 4);
            *y = d * f32::from(q) - m;
        }
    }
}

fn block_q6_k(block: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, y) in y.iter_mut().enumerate() {
        // Each half of 128 elements has 64 bytes of nibbles and 32 bytes of high bit pairs: a
        // nibble byte serves elements 64 apart, a pair byte serves elements 32 apart.
        let (half, within) = (i / 128, i % 128);
        let nibble = (low[half * 64 + within % 64] >> (within / 64 * 4)) & 0x0f;
        let pair = (high[half * 32 + within % 32] >> (within / 32 * 2)) & 0x03;
        let q = (nibble | (pair << 4)) as i8 - 32;
        *y = (d * f32::from(scales[i / 16] as i8)) * f32::from(q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_number_of_gguf_maps_to_the_type_of_that_name() {
        // Numbers from the GGUF specification's `ggml_type`.
        for (number, name) in [
            (0, "F32"),
            (1, "F16"),
            (2, "Q4_0"),
            (3, "Q4_1"),
            (6, "Q5_0"),
            (7, "Q5_1"),
            (8, "Q8_0"),
            (12, "Q4_K"),
            (13, "Q5_K"),
            (14, "Q6_K"),
            (30, "BF16"),
        ] {
            assert_eq!(BlockType::from_ggml(number).map(BlockType::name), Some(name));
        }
        for unsupported in [4, 5, 9, 10, 11, 15, 16, 24, 31, 39, u32::MAX] {
            assert_eq!(BlockType::from_ggml(unsupported), None);
        }
    }

    #[test]
    fn every_type_decodes_to_the_bits_of_the_gguf_package() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/load/blocks");
        let read = |file: String| std::fs::read(format!("{folder}/{file}")).unwrap();
        for kind in BlockType::ALL {
            let (bytes, expected) = (read(format!("{kind}.bin")), read(format!("{kind}.f32")));
            let mut values = vec![f32::NAN; expected.len() / 4];
            dequantize_row(kind, &bytes, &mut values);
            let bits: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let differs = bits.chunks(4).zip(expected.chunks(4)).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{kind}: first differing element");
        }
    }

    #[test]
    fn a_row_that_cuts_a_block_has_no_size() {
        assert_eq!(BlockType::Q4_K.row_bytes(256), Some(144));
        assert_eq!(BlockType::Q4_K.row_bytes(255), None);
        assert_eq!(BlockType::Q8_0.row_bytes(33), None);
        assert_eq!(BlockType::F32.row_bytes(usize::MAX / 2), None);
    }
}

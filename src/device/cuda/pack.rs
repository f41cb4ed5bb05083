//! Weight matrices as the kernels read them: from the bytes of a file to the fragment-major layout
//! that `kernels/common/weights.cuh` describes.
//!
//! Pure host code. Four formats are kept as they are (bf16, Q8_0, Q4_K, Q6_K); every other block
//! type is widened to the next of these, exactly (Q4_0, Q5_0 to Q8_0) or rounded to bf16.
//! Invariant: the packed bytes are a permutation of the file's bits, with zeros for the rows up to
//! a multiple of 16 and, in bf16, the columns up to a multiple of 32.
//! Read next: `weights.cuh`, then [`super::ops`] for what multiplies with it.

#[cfg(test)]
mod tests;

use crate::device::MatrixView;
use crate::device::blocks::{BlockType, dequantize_row, k_scales_and_minimums};
use half::bf16;
use std::ops::Range;

/// Rows of a panel.
pub(crate) const PANEL_ROWS: usize = 16;
/// Columns of a step: the A operand of two mmas.
const STEP_COLS: usize = 32;
/// Steps of a unit.
const UNIT_STEPS: usize = 4;
/// Columns of a K-quant block, which is two units.
const BLOCK_COLS: usize = 256;

const BF16_STEP_BYTES: usize = 1024;
const Q8_SCALE_BYTES: usize = 128;
const Q8_STEP_BYTES: usize = 512;
const Q8_UNIT_BYTES: usize = Q8_SCALE_BYTES + UNIT_STEPS * Q8_STEP_BYTES;
const Q4_SCALE_BYTES: usize = 256;
const NIBBLE_UNIT_BYTES: usize = 1024;
const Q4_BLOCK_BYTES: usize = Q4_SCALE_BYTES + 2 * NIBBLE_UNIT_BYTES;
const Q6_HIGH_AT: usize = 2 * NIBBLE_UNIT_BYTES;
const Q6_HIGH_UNIT_BYTES: usize = 512;
const Q6_SCALES_AT: usize = Q6_HIGH_AT + 2 * Q6_HIGH_UNIT_BYTES;
const Q6_SCALE_UNIT_BYTES: usize = 128;
const Q6_D_AT: usize = Q6_SCALES_AT + 2 * Q6_SCALE_UNIT_BYTES;
const Q6_BLOCK_BYTES: usize = Q6_D_AT + 32;

/// How weights lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the formats' own names, as in `BlockType`")]
#[repr(i32)]
pub(crate) enum Format {
    /// `kBf16`.
    Bf16 = 0,
    /// `kQ8_0`.
    Q8_0 = 1,
    /// `kQ4_K`.
    Q4_K = 2,
    /// `kQ6_K`.
    Q6_K = 3,
}

impl Format {
    /// What a block type of a file becomes.
    pub(crate) const fn of(kind: BlockType) -> Self {
        match kind {
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => Self::Q8_0,
            BlockType::Q4_K => Self::Q4_K,
            BlockType::Q6_K => Self::Q6_K,
            BlockType::F32
            | BlockType::F16
            | BlockType::BF16
            | BlockType::Q4_1
            | BlockType::Q5_1
            | BlockType::Q5_K => Self::Bf16,
        }
    }

    /// The name of the block type this is.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => BlockType::BF16.name(),
            Self::Q8_0 => BlockType::Q8_0.name(),
            Self::Q4_K => BlockType::Q4_K.name(),
            Self::Q6_K => BlockType::Q6_K.name(),
        }
    }

    /// Bytes that a row of `cols` elements of `kind` grows by, padding not counted.
    fn widening_bytes(self, kind: BlockType, cols: usize) -> usize {
        let bits = |kind: BlockType| kind.block_bytes() * 8 * BLOCK_COLS / kind.block_elements();
        let wide = match self {
            Self::Bf16 => BlockType::BF16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_K => BlockType::Q4_K,
            Self::Q6_K => BlockType::Q6_K,
        };
        cols * bits(wide).saturating_sub(bits(kind)) / (8 * BLOCK_COLS)
    }

    /// Bytes of a panel of `cols` columns.
    ///
    /// # Panics
    /// If a quantised format cannot have so many columns.
    fn panel_bytes(self, cols: usize) -> usize {
        let steps = cols.div_ceil(STEP_COLS);
        let whole = match self {
            Self::Bf16 => true,
            Self::Q8_0 => cols.is_multiple_of(STEP_COLS),
            Self::Q4_K | Self::Q6_K => cols.is_multiple_of(BLOCK_COLS),
        };
        assert!(whole, "{cols} columns are no whole blocks of {}", self.name());
        match self {
            Self::Bf16 => steps * BF16_STEP_BYTES,
            Self::Q8_0 => steps.div_ceil(UNIT_STEPS) * Q8_SCALE_BYTES + steps * Q8_STEP_BYTES,
            Self::Q4_K => cols / BLOCK_COLS * Q4_BLOCK_BYTES,
            Self::Q6_K => cols / BLOCK_COLS * Q6_BLOCK_BYTES,
        }
    }
}

/// Matrices to be packed as one, and in which order their rows follow in its panels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// One matrix, rows in the order of the file.
    Plain(MatrixView<'a>),
    /// Heads of `head_dim` rows, a multiple of 16. A panel has eight pairs `(i, i + D/2)`: their
    /// first halves as its rows 0..8, their second halves as rows 8..16, so that rotating them is
    /// a matter of one warp.
    Rotary {
        /// Queries or keys.
        view: MatrixView<'a>,
        /// `D`.
        head_dim: usize,
    },
    /// Two matrices of one size. A panel has eight rows of the first, then the same rows of the
    /// second, so that both elements of a product are in one warp.
    Pairs([MatrixView<'a>; 2]),
}

impl<'a> Source<'a> {
    /// Queries or keys as `kernels/qkv.cu` rotates them; none if their heads do not end with a
    /// panel.
    pub(crate) fn rotary(view: MatrixView<'a>, head_dim: usize) -> Option<Self> {
        let whole = head_dim.is_multiple_of(PANEL_ROWS) && view.rows.is_multiple_of(head_dim);
        whole.then_some(Self::Rotary { view, head_dim })
    }

    /// How it is packed.
    ///
    /// # Panics
    /// As [`Packing::new`], or if two matrices differ in size.
    pub(crate) fn packing(&self) -> Packing {
        match self {
            Self::Plain(view) | Self::Rotary { view, .. } => {
                Packing::new(view.rows, view.cols, view.kind)
            }
            Self::Pairs([first, second]) => {
                let size = (first.rows, first.cols);
                assert_eq!(size, (second.rows, second.cols), "sizes of {}", second.name);
                Packing::pairs(first.rows, first.cols, [first.kind, second.kind])
            }
        }
    }

    /// The block type and bytes of row `packed`, if it is not padding.
    pub(super) fn row(&self, packed: usize) -> Option<(BlockType, &'a [u8])> {
        let (view, row) = match self {
            Self::Plain(view) => (view, packed),
            Self::Rotary { view, head_dim } => {
                let (head, in_head) = (packed / head_dim, packed % head_dim);
                let (panel, row) = (in_head / PANEL_ROWS, in_head % PANEL_ROWS);
                (view, head * head_dim + row / 8 * (head_dim / 2) + panel * 8 + row % 8)
            }
            Self::Pairs(views) => {
                let (panel, row) = (packed / PANEL_ROWS, packed % PANEL_ROWS);
                (&views[row / 8], panel * 8 + row % 8)
            }
        };
        let row_bytes = view.kind.row_bytes(view.cols).expect("checked with the packing");
        let bytes = (row < view.rows).then(|| &view.bytes[row * row_bytes..][..row_bytes]);
        bytes.map(|bytes| (view.kind, bytes))
    }

    /// Packs panels `panels` into `out`, on all cores.
    ///
    /// # Panics
    /// If `out` is not as long as those panels, or a matrix not as long as its size says.
    pub(crate) fn pack_panels(&self, panels: Range<usize>, out: &mut [u8]) {
        let packing = self.packing();
        assert_eq!(out.len(), panels.len() * packing.panel_bytes(), "bytes of panels {panels:?}");
        if out.is_empty() {
            return;
        }
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = panels.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (i, part) in out.chunks_mut(share * packing.panel_bytes()).enumerate() {
                let first = panels.start + i * share;
                scope.spawn(move || {
                    for (j, panel) in part.chunks_exact_mut(packing.panel_bytes()).enumerate() {
                        self.pack_panel(&packing, first + j, panel);
                    }
                });
            }
        });
    }

    /// Packs everything.
    ///
    /// # Panics
    /// As [`Self::pack_panels`].
    pub(crate) fn pack(&self) -> Vec<u8> {
        let packing = self.packing();
        let mut out = vec![0; packing.bytes()];
        self.pack_panels(0..packing.panels(), &mut out);
        out
    }

    fn pack_panel(&self, packing: &Packing, panel: usize, out: &mut [u8]) {
        out.fill(0);
        let mut floats = Vec::new();
        for row in 0..PANEL_ROWS {
            let Some((kind, bytes)) = self.row(panel * PANEL_ROWS + row) else { continue };
            match packing.format {
                Format::Bf16 => {
                    floats.resize(packing.cols, 0.0);
                    pack_bf16_row(kind, bytes, &mut floats, row, out);
                }
                Format::Q8_0 => pack_q8_row(kind, bytes, row, out),
                Format::Q4_K => pack_q4_row(bytes, row, out),
                Format::Q6_K => pack_q6_row(bytes, row, out),
            }
        }
    }
}

/// The size and format of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    /// `N`, of pairs both.
    pub(crate) rows: usize,
    /// `K`.
    pub(crate) cols: usize,
    /// What the device has.
    pub(crate) format: Format,
    /// Bytes that widening the block type costs, zeros of padding not counted: what start-up
    /// prints. 0 for the formats kept as they are, and for F32 and F16.
    pub(crate) widening_bytes: usize,
}

impl Packing {
    /// How a `[rows, cols]` matrix of `kind` is packed.
    ///
    /// # Panics
    /// If `cols` is no whole number of blocks: loaders check sizes first.
    pub(crate) fn new(rows: usize, cols: usize, kind: BlockType) -> Self {
        assert!(kind.row_bytes(cols).is_some(), "{cols} columns are no whole blocks of {kind}");
        let format = Format::of(kind);
        Self { rows, cols, format, widening_bytes: rows * format.widening_bytes(kind, cols) }
    }

    /// How two `[rows, cols]` matrices of `kinds` are packed as [`Source::Pairs`]: as they are if
    /// both have one format, else widened to bf16.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(crate) fn pairs(rows: usize, cols: usize, kinds: [BlockType; 2]) -> Self {
        let [first, second] = kinds.map(Format::of);
        let format = if first == second { first } else { Format::Bf16 };
        for kind in kinds {
            assert!(kind.row_bytes(cols).is_some(), "{cols} columns are no whole blocks of {kind}");
        }
        let widening = kinds.map(|kind| rows * format.widening_bytes(kind, cols));
        let rows = rows.next_multiple_of(PANEL_ROWS / 2) * 2;
        Self { rows, cols, format, widening_bytes: widening.iter().sum() }
    }

    /// Panels of 16 rows.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of one panel; a multiple of 16.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.format.panel_bytes(self.cols)
    }

    /// Bytes of the packed matrix.
    pub(crate) fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }
}

/// The column of a step that element `e` of lane quarter `t` is: four of the first mma's sixteen
/// columns, then four of the second's.
fn column(t: usize, e: usize) -> usize {
    e / 4 * 16 + t * 4 + e % 4
}

/// Where row `row` begins in a piece of 16 bytes for each group of lanes that share a row pair: 8
/// bytes of row g, then 8 of row g + 8.
fn pair_at(row: usize) -> usize {
    row % 8 * 16 + row / 8 * 8
}

/// The same where each of a row's four lanes has 16 bytes.
fn lane_at(row: usize, t: usize) -> usize {
    (row % 8 * 4 + t) * 16 + row / 8 * 8
}

fn pack_bf16_row(kind: BlockType, bytes: &[u8], floats: &mut [f32], row: usize, out: &mut [u8]) {
    dequantize_row(kind, bytes, floats);
    for (step, floats) in floats.chunks(STEP_COLS).enumerate() {
        let base = step * BF16_STEP_BYTES + row / 8 * 512;
        for t in 0..4 {
            for e in 0..8 {
                let Some(value) = floats.get(column(t, e)) else { continue };
                let at = base + (row % 8 * 4 + t) * 16 + e * 2;
                out[at..at + 2].copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
            }
        }
    }
}

/// The f16 scale and the 32 quants of a block of Q8_0, Q4_0 or Q5_0, as Q8_0 has them.
fn q8_block(kind: BlockType, block: &[u8]) -> ([u8; 2], [i8; 32]) {
    let mut quants = [0; 32];
    match kind {
        BlockType::Q8_0 => {
            for (quant, byte) in quants.iter_mut().zip(&block[2..]) {
                *quant = *byte as i8;
            }
        }
        BlockType::Q4_0 => {
            for (i, byte) in block[2..].iter().enumerate() {
                quants[i] = (byte & 0x0f) as i8 - 8;
                quants[i + 16] = (byte >> 4) as i8 - 8;
            }
        }
        BlockType::Q5_0 => {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            for (i, byte) in block[6..].iter().enumerate() {
                let fifth = |bit: usize| (high >> bit & 1) as u8 * 16;
                quants[i] = (byte & 0x0f | fifth(i)) as i8 - 16;
                quants[i + 16] = (byte >> 4 | fifth(i + 16)) as i8 - 16;
            }
        }
        _ => unreachable!("{kind} is not kept as Q8_0"),
    }
    ([block[0], block[1]], quants)
}

fn pack_q8_row(kind: BlockType, bytes: &[u8], row: usize, out: &mut [u8]) {
    for (step, block) in bytes.chunks_exact(kind.block_bytes()).enumerate() {
        let (scale, quants) = q8_block(kind, block);
        let unit = step / UNIT_STEPS * Q8_UNIT_BYTES;
        let scale_at = unit + pair_at(row) + step % UNIT_STEPS * 2;
        out[scale_at..scale_at + 2].copy_from_slice(&scale);
        let base = unit + Q8_SCALE_BYTES + step % UNIT_STEPS * Q8_STEP_BYTES;
        for t in 0..4 {
            for e in 0..8 {
                out[base + lane_at(row, t) + e] = quants[column(t, e)] as u8;
            }
        }
    }
}

/// A lane's eight nibbles of a step: elements 2j and 2j + 1 are nibbles j and j + 4.
fn nibble_word(quants: &[u8], t: usize) -> u32 {
    (0..8).fold(0, |word, e| {
        word | u32::from(quants[column(t, e)] & 0x0f) << (4 * (e / 2 + e % 2 * 4))
    })
}

/// Puts the low nibbles of the 256 quants of a block, from `at` of the block on.
fn put_nibbles(quants: &[u8; BLOCK_COLS], row: usize, out: &mut [u8]) {
    for (step, quants) in quants.chunks_exact(STEP_COLS).enumerate() {
        for t in 0..4 {
            let at = step / 2 * 512 + lane_at(row, t) + step % 2 * 4;
            out[at..at + 4].copy_from_slice(&nibble_word(quants, t).to_le_bytes());
        }
    }
}

fn pack_q4_row(bytes: &[u8], row: usize, out: &mut [u8]) {
    let blocks = bytes.chunks_exact(BlockType::Q4_K.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(Q4_BLOCK_BYTES)) {
        let scales = &mut out[row * 16..][..16];
        scales[..4].copy_from_slice(&block[..4]);
        scales[4..].copy_from_slice(&k_scale_words(
            block[4..16].try_into().expect("twelve bytes of scales"),
        ));
        let quants = std::array::from_fn(|c| block[16 + c / 64 * 32 + c % 32] >> (c / 32 % 2 * 4));
        put_nibbles(&quants, row, &mut out[Q4_SCALE_BYTES..]);
    }
}

/// The twelve bytes of six-bit scales and minimums, arranged so that a unit's four of each come out
/// of three words with the same shifts and masks: low nibbles of scales, low nibbles of minimums,
/// and the high bits of both.
fn k_scale_words(packed: &[u8; 12]) -> [u8; 12] {
    let (scales, minimums) = k_scales_and_minimums(packed);
    let mut words = [0; 12];
    for (group, (scale, minimum)) in scales.into_iter().zip(minimums).enumerate() {
        let (unit, i) = (group / 4, group % 4);
        words[i] |= (scale & 0x0f) << (4 * unit);
        words[4 + i] |= (minimum & 0x0f) << (4 * unit);
        words[8 + i] |= (scale >> 4) << (2 * unit) | (minimum >> 4) << (4 + 2 * unit);
    }
    words
}

/// The 256 quants of a block of Q6_K, 0 to 63.
fn q6_quants(block: &[u8]) -> [u8; BLOCK_COLS] {
    let (low, high) = (&block[..128], &block[128..192]);
    std::array::from_fn(|c| {
        let (half, within) = (c / 128, c % 128);
        let nibble = low[half * 64 + within % 64] >> (within / 64 * 4) & 0x0f;
        let pair = high[half * 32 + within % 32] >> (within / 32 * 2) & 0x03;
        nibble | pair << 4
    })
}

fn pack_q6_row(bytes: &[u8], row: usize, out: &mut [u8]) {
    let blocks = bytes.chunks_exact(BlockType::Q6_K.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(Q6_BLOCK_BYTES)) {
        let quants = q6_quants(block);
        put_nibbles(&quants, row, out);
        for (pair, quants) in quants.chunks_exact(2 * STEP_COLS).enumerate() {
            // High bits of two steps share a word; two such words are a unit's.
            for t in 0..4 {
                let word = (0..16).fold(0_u32, |word, i| {
                    let (step, e) = (i / 8, i % 8);
                    let bits = u32::from(quants[step * STEP_COLS + column(t, e)] >> 4);
                    word | bits << (8 * step + 2 * (e / 2) + 16 * (e % 2))
                });
                let at =
                    Q6_HIGH_AT + pair / 2 * Q6_HIGH_UNIT_BYTES + lane_at(row, t) + pair % 2 * 4;
                out[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        for (unit, scales) in block[192..208].chunks_exact(8).enumerate() {
            let at = Q6_SCALES_AT + unit * Q6_SCALE_UNIT_BYTES + pair_at(row);
            out[at..at + 8].copy_from_slice(scales);
        }
        let at = Q6_D_AT + row % 8 * 4 + row / 8 * 2;
        out[at..at + 2].copy_from_slice(&block[208..210]);
    }
}

//! How sixteen rows of blocks lie in memory.
//!
//! A *panel* is 16 consecutive rows. It is a sequence of *cells*: the 16 blocks (one per row) of
//! the same columns; plain types count 32 columns as a block. Inside a cell, first the scales of
//! all rows, then the quants in vectors of 64 bytes, four bytes per row (a *quad* of consecutive
//! columns): a 64-byte load is one quad of 16 rows, a 32-byte load one of 8, and lane `r` is always
//! row `r`. Cells hold exactly the bytes of their blocks.
//!
//! Quants of 32 columns, eight quads `0..8`, are stored as
//! - nibbles: 4 vectors, vector `v` with quad `v` in the low and quad `v + 4` in the high nibbles;
//! - fifth bits: 1 vector, bit `q` of each byte for quad `q`;
//! - bits five and six: 2 vectors, vector `a` with quad `4 a + i` at bits `2 i`;
//! - signed bytes: 8 vectors.
//!
//! Plain types: F32 and F16 are `[column][row]`; BF16 is `[column / 2][row][2]`.
//! Invariant: [`Layout::each_block`] gives back the bytes of the file. Read next: `formats`.

use crate::device::BlockType;
use std::thread;

/// Rows of a panel.
pub(super) const PANEL: usize = 16;
/// Columns of a block of the plain and simple types.
pub(super) const BLOCK: usize = 32;
/// Columns of a block of the K-quants.
pub(super) const SUPER_BLOCK: usize = 256;
/// Bytes of a vector: four per row of the panel.
pub(super) const VECTOR: usize = 4 * PANEL;
/// Bytes of one f16 per row of the panel.
pub(super) const HALVES: usize = 2 * PANEL;
/// The largest block, in bytes: 32 columns of F32 or 256 of Q6_K.
const BLOCK_BYTES_MAX: usize = 210;
/// From this size on a matrix is interleaved by several threads.
const PARALLEL_BYTES: usize = 4 << 20;

/// Shape of the panels of one matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    kind: BlockType,
    cells: usize,
}

impl Layout {
    pub(super) fn new(kind: BlockType, cols: usize) -> Self {
        let cells = cols.div_ceil(kind.block_elements().max(BLOCK));
        Self { kind, cells }
    }

    pub(super) fn kind(self) -> BlockType {
        self.kind
    }

    /// Cells of a panel.
    pub(super) fn cells(self) -> usize {
        self.cells
    }

    /// Columns of a cell: 32 or 256.
    pub(super) fn cell_cols(self) -> usize {
        self.kind.block_elements().max(BLOCK)
    }

    /// Bytes one row has in a cell.
    fn block_bytes(self) -> usize {
        self.kind.block_bytes() * (self.cell_cols() / self.kind.block_elements())
    }

    pub(super) fn panel_bytes(self) -> usize {
        self.cells * self.block_bytes() * PANEL
    }

    /// Fills `panels` (zeros before) from `rows` of `row_bytes` each.
    pub(super) fn interleave(self, rows: &[u8], row_bytes: usize, panels: &mut [u8]) {
        let panel_bytes = self.panel_bytes();
        let count = panels.len() / panel_bytes;
        let threads = if rows.len() < PARALLEL_BYTES {
            1
        } else {
            thread::available_parallelism().map_or(1, usize::from).min(count)
        };
        let per_thread = count.div_ceil(threads);
        thread::scope(|scope| {
            let sources = rows.chunks(per_thread * PANEL * row_bytes);
            for (rows, panels) in sources.zip(panels.chunks_mut(per_thread * panel_bytes)) {
                let mut fill = move || {
                    let sources = rows.chunks(PANEL * row_bytes);
                    for (rows, panel) in sources.zip(panels.chunks_exact_mut(panel_bytes)) {
                        self.interleave_panel(rows, row_bytes, panel);
                    }
                };
                if threads == 1 {
                    fill();
                } else {
                    scope.spawn(fill);
                }
            }
        });
    }

    fn interleave_panel(self, rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
        let block_bytes = self.block_bytes();
        for (c, cell) in panel.chunks_exact_mut(block_bytes * PANEL).enumerate() {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                let end = row_bytes.min((c + 1) * block_bytes);
                put(self.kind, &row[c * block_bytes..end], lane, cell);
            }
        }
    }

    /// Calls `visit(first column, block)` for every block of row `lane` of `panel`, with the bytes
    /// the file has there (plain types: 32 columns at once, padding included).
    pub(super) fn each_block(self, panel: &[u8], lane: usize, mut visit: impl FnMut(usize, &[u8])) {
        let block_bytes = self.block_bytes();
        let mut block = [0; BLOCK_BYTES_MAX];
        for (c, cell) in panel.chunks_exact(block_bytes * PANEL).enumerate() {
            let block = &mut block[..block_bytes];
            block.fill(0);
            take(self.kind, cell, lane, block);
            visit(c * self.cell_cols(), block);
        }
    }
}

/// Puts one row's block into its lane of a cell. Plain blocks may be shorter than 32 columns.
fn put(kind: BlockType, block: &[u8], lane: usize, cell: &mut [u8]) {
    use BlockType as B;
    match kind {
        B::F32 => put_elements::<4>(block, cell, |column| column * PANEL + lane),
        B::F16 => put_elements::<2>(block, cell, |column| column * PANEL + lane),
        B::BF16 => put_elements::<2>(block, cell, |column| pair_place(column, lane)),
        B::Q8_0 => {
            copy(block, 0, cell, 2 * lane, 2);
            for quad in 0..8 {
                copy(block, 2 + 4 * quad, cell, vector_place(HALVES, quad, lane), 4);
            }
        }
        B::Q4_0 | B::Q4_1 | B::Q5_0 | B::Q5_1 => put_simple(Simple::of(kind), block, lane, cell),
        B::Q4_K | B::Q5_K => put_k(kind == B::Q5_K, block, lane, cell),
        B::Q6_K => put_q6_k(block, lane, cell),
    }
}

/// The inverse of [`put`] into a block of zeros.
fn take(kind: BlockType, cell: &[u8], lane: usize, block: &mut [u8]) {
    use BlockType as B;
    match kind {
        B::F32 => take_elements::<4>(cell, block, |column| column * PANEL + lane),
        B::F16 => take_elements::<2>(cell, block, |column| column * PANEL + lane),
        B::BF16 => take_elements::<2>(cell, block, |column| pair_place(column, lane)),
        B::Q8_0 => {
            copy(cell, 2 * lane, block, 0, 2);
            for quad in 0..8 {
                copy(cell, vector_place(HALVES, quad, lane), block, 2 + 4 * quad, 4);
            }
        }
        B::Q4_0 | B::Q4_1 | B::Q5_0 | B::Q5_1 => take_simple(Simple::of(kind), cell, lane, block),
        B::Q4_K | B::Q5_K => take_k(kind == B::Q5_K, cell, lane, block),
        B::Q6_K => take_q6_k(cell, lane, block),
    }
}

/// Index of a BF16 element in its cell.
fn pair_place(column: usize, lane: usize) -> usize {
    (column / 2 * PANEL + lane) * 2 + column % 2
}

/// Byte offset of a lane's quad in the `vector`-th vector after `base`.
fn vector_place(base: usize, vector: usize, lane: usize) -> usize {
    base + vector * VECTOR + 4 * lane
}

fn copy(from: &[u8], at: usize, to: &mut [u8], place: usize, bytes: usize) {
    to[place..place + bytes].copy_from_slice(&from[at..at + bytes]);
}

fn put_elements<const W: usize>(block: &[u8], cell: &mut [u8], place: impl Fn(usize) -> usize) {
    for (column, element) in block.chunks_exact(W).enumerate() {
        cell[place(column) * W..][..W].copy_from_slice(element);
    }
}

fn take_elements<const W: usize>(cell: &[u8], block: &mut [u8], place: impl Fn(usize) -> usize) {
    for (column, element) in block.chunks_exact_mut(W).enumerate() {
        element.copy_from_slice(&cell[place(column) * W..][..W]);
    }
}

fn word(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
}

fn put_word(to: &mut [u8], at: usize, value: u32) {
    to[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn or_word(to: &mut [u8], at: usize, value: u32) {
    put_word(to, at, word(to, at) | value);
}

const NIBBLES: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const ONES: u32 = 0x0101_0101;

/// Where the parts of a Q4_0, Q4_1, Q5_0 or Q5_1 block and cell begin.
#[derive(Clone, Copy)]
struct Simple {
    /// Scale, or scale and minimum.
    halves: usize,
    five_bits: bool,
}

impl Simple {
    fn of(kind: BlockType) -> Self {
        Self {
            halves: 1 + usize::from(matches!(kind, BlockType::Q4_1 | BlockType::Q5_1)),
            five_bits: matches!(kind, BlockType::Q5_0 | BlockType::Q5_1),
        }
    }

    /// Offsets of the nibbles in the block and in the cell; the fifth bits lie just before.
    fn nibbles(self) -> (usize, usize) {
        let bits = usize::from(self.five_bits);
        (2 * self.halves + 4 * bits, HALVES * self.halves + VECTOR * bits)
    }
}

fn put_simple(simple: Simple, block: &[u8], lane: usize, cell: &mut [u8]) {
    for h in 0..simple.halves {
        copy(block, 2 * h, cell, HALVES * h + 2 * lane, 2);
    }
    let (from, to) = simple.nibbles();
    if simple.five_bits {
        let bits = word(block, from - 4);
        let spread = (0..8).fold(0, |all, quad| {
            // Four consecutive bits to the lowest bit of four bytes.
            let nibble = (bits >> (4 * quad)) & 0x0f;
            all | (nibble.wrapping_mul(0x0020_4081) & ONES) << quad
        });
        put_word(cell, vector_place(to - VECTOR, 0, lane), spread);
    }
    // In the file byte `i` holds elements `i` and `i + 16`: already quads `v` and `v + 4`.
    for v in 0..4 {
        copy(block, from + 4 * v, cell, vector_place(to, v, lane), 4);
    }
}

fn take_simple(simple: Simple, cell: &[u8], lane: usize, block: &mut [u8]) {
    for h in 0..simple.halves {
        copy(cell, HALVES * h + 2 * lane, block, 2 * h, 2);
    }
    let (to, from) = simple.nibbles();
    if simple.five_bits {
        let spread = word(cell, vector_place(from - VECTOR, 0, lane));
        let bits = (0..8).fold(0, |all, quad| {
            let bytes = (spread >> quad) & ONES;
            all | (bytes.wrapping_mul(0x0102_0408) >> 24 & 0x0f) << (4 * quad)
        });
        put_word(block, to - 4, bits);
    }
    for v in 0..4 {
        copy(cell, vector_place(from, v, lane), block, to + 4 * v, 4);
    }
}

/// Cell of Q4_K and Q5_K: d, dmin, the 12 scale bytes `[12][16]`, fifth bits, nibbles.
pub(super) const K_SCALES: usize = 2 * HALVES;
/// Offset of the fifth bits of Q5_K, and of the nibbles of Q4_K.
pub(super) const K_QUANTS: usize = K_SCALES + 12 * PANEL;
/// Offset of the nibbles of Q5_K.
pub(super) const Q5_K_NIBBLES: usize = K_QUANTS + 8 * VECTOR;
/// Cell of Q6_K: d, the scale bytes `[16][16]`, bits five and six, nibbles.
pub(super) const Q6_K_SCALES: usize = HALVES;
/// Offset of bits five and six of Q6_K.
pub(super) const Q6_K_PAIRS: usize = Q6_K_SCALES + 16 * PANEL;
/// Offset of the nibbles of Q6_K.
pub(super) const Q6_K_NIBBLES: usize = Q6_K_PAIRS + 16 * VECTOR;

/// Stores quads `v` and `v + 4` of group `group` from 32 bytes whose nibbles at `shift` are they.
fn put_group(bytes: &[u8], shift: usize, base: usize, group: usize, lane: usize, cell: &mut [u8]) {
    for v in 0..4 {
        let low = word(bytes, 4 * v) >> shift & NIBBLES;
        let high = word(bytes, 16 + 4 * v) >> shift & NIBBLES;
        put_word(cell, vector_place(base, 4 * group + v, lane), low | high << 4);
    }
}

fn take_group(cell: &[u8], base: usize, group: usize, lane: usize, shift: usize, to: &mut [u8]) {
    for v in 0..4 {
        let both = word(cell, vector_place(base, 4 * group + v, lane));
        or_word(to, 4 * v, (both & NIBBLES) << shift);
        or_word(to, 16 + 4 * v, (both >> 4 & NIBBLES) << shift);
    }
}

fn put_k(five_bits: bool, block: &[u8], lane: usize, cell: &mut [u8]) {
    copy(block, 0, cell, 2 * lane, 2);
    copy(block, 2, cell, HALVES + 2 * lane, 2);
    for i in 0..12 {
        cell[K_SCALES + PANEL * i + lane] = block[4 + i];
    }
    let (nibbles, base) = if five_bits { (48, Q5_K_NIBBLES) } else { (16, K_QUANTS) };
    for group in 0..8 {
        if five_bits {
            let bits = (0..8)
                .fold(0, |all, quad| all | (word(block, 16 + 4 * quad) >> group & ONES) << quad);
            put_word(cell, vector_place(K_QUANTS, group, lane), bits);
        }
        let bytes = &block[nibbles + group / 2 * 32..][..32];
        put_group(bytes, group % 2 * 4, base, group, lane, cell);
    }
}

fn take_k(five_bits: bool, cell: &[u8], lane: usize, block: &mut [u8]) {
    copy(cell, 2 * lane, block, 0, 2);
    copy(cell, HALVES + 2 * lane, block, 2, 2);
    for i in 0..12 {
        block[4 + i] = cell[K_SCALES + PANEL * i + lane];
    }
    let (nibbles, base) = if five_bits { (48, Q5_K_NIBBLES) } else { (16, K_QUANTS) };
    for group in 0..8 {
        if five_bits {
            let bits = word(cell, vector_place(K_QUANTS, group, lane));
            for quad in 0..8 {
                or_word(block, 16 + 4 * quad, (bits >> quad & ONES) << group);
            }
        }
        let bytes = &mut block[nibbles + group / 2 * 32..][..32];
        take_group(cell, base, group, lane, group % 2 * 4, bytes);
    }
}

/// Where group `group` of a Q6_K block lies: nibble bytes and shift, pair bytes and shift.
fn q6_k_places(group: usize) -> (usize, usize, usize, usize) {
    let (half, j) = (group / 4, group % 4);
    (half * 64 + j % 2 * 32, j / 2 * 4, 128 + half * 32, 2 * j)
}

fn put_q6_k(block: &[u8], lane: usize, cell: &mut [u8]) {
    copy(block, 208, cell, 2 * lane, 2);
    for i in 0..16 {
        cell[Q6_K_SCALES + PANEL * i + lane] = block[192 + i];
    }
    for group in 0..8 {
        let (nibbles, nibble_shift, pairs, pair_shift) = q6_k_places(group);
        put_group(&block[nibbles..][..32], nibble_shift, Q6_K_NIBBLES, group, lane, cell);
        for a in 0..2 {
            let bits = (0..4).fold(0, |all, i| {
                let quad = 4 * a + i;
                all | (word(block, pairs + 4 * quad) >> pair_shift & PAIRS) << (2 * i)
            });
            put_word(cell, vector_place(Q6_K_PAIRS, 2 * group + a, lane), bits);
        }
    }
}

fn take_q6_k(cell: &[u8], lane: usize, block: &mut [u8]) {
    copy(cell, 2 * lane, block, 208, 2);
    for i in 0..16 {
        block[192 + i] = cell[Q6_K_SCALES + PANEL * i + lane];
    }
    for group in 0..8 {
        let (nibbles, nibble_shift, pairs, pair_shift) = q6_k_places(group);
        let bytes = &mut block[nibbles..][..32];
        take_group(cell, Q6_K_NIBBLES, group, lane, nibble_shift, bytes);
        for a in 0..2 {
            let bits = word(cell, vector_place(Q6_K_PAIRS, 2 * group + a, lane));
            for i in 0..4 {
                let quad = 4 * a + i;
                or_word(block, pairs + 4 * quad, (bits >> (2 * i) & PAIRS) << pair_shift);
            }
        }
    }
}

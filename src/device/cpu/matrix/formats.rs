//! What the kernels must know of each block type: its scales, and how its quants unpack.
//!
//! A quantised [`Format`] turns 32 columns of a cell into eight vectors of bytes and gives each
//! row a scale (and, where it has one, a shift): `w = scale * q + shift`. A [`PlainFormat`] gives
//! columns as f32. Offsets follow `layout`. Invariant: unpacked quants are the file's, exactly.
//! Read next: `integer` and `float`, which call this.

use super::layout::{
    HALVES, K_QUANTS, K_SCALES, PANEL, Q5_K_NIBBLES, Q6_K_NIBBLES, Q6_K_PAIRS, Q6_K_SCALES, VECTOR,
};
use crate::device::cpu::simd::Simd;

/// Scales of one cell: `[group][row]`; groups are of 32 columns, or of 16 for Q6_K.
pub(super) struct Scales {
    pub scale: [[f32; PANEL]; 16],
    pub shift: [[f32; PANEL]; 16],
}

impl Scales {
    pub(super) const ZERO: Self = Self { scale: [[0.0; PANEL]; 16], shift: [[0.0; PANEL]; 16] };
}

/// A quantised block type. In all methods `cell` points to one cell of the type, readable whole.
pub(super) trait Format {
    /// Groups of 32 columns in a cell.
    const GROUPS: usize;
    /// Bytes of a cell.
    const CELL_BYTES: usize;
    /// Each half of a group has its own scale and shift.
    const HALVED: bool = false;

    /// Whether weights have a shift at this level.
    #[inline(always)]
    fn shifted<S: Simd>() -> bool {
        true
    }

    /// Fills the first groups of `scales`.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales);

    /// The eight quads of group `group` for the rows from `row` on.
    ///
    /// # Safety
    /// See the trait; `group < GROUPS`, `row` is a multiple of the lanes below 16.
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, group: usize, row: usize) -> [S::Bytes; 8];

    /// The dot of quads `0..4`, and of quads `4..8`, with the 32 bytes at `x`; types whose groups
    /// are not halved may return everything in the first.
    ///
    /// # Safety
    /// `x` is readable for 32 bytes, all above -128.
    unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2];
}

/// Nibbles of `group`, see `layout`.
///
/// # Safety
/// Four vectors per group are readable from `at`.
#[inline(always)]
unsafe fn nibbles<S: Simd>(simd: S, at: *const u8, group: usize, row: usize) -> [S::Bytes; 8] {
    let low = simd.splat_u8(0x0f);
    let mut quads = [low; 8];
    for v in 0..4 {
        // SAFETY: by the contract; a vector has four bytes for each of the 16 rows.
        let both = unsafe { simd.load_bytes_ptr(at.add((4 * group + v) * VECTOR + 4 * row)) };
        quads[v] = simd.and(both, low);
        quads[v + 4] = simd.and(simd.shift_right::<4>(both), low);
    }
    quads
}

/// Adds bit `q` of the bytes at `at` to quad `q` as its fifth bit.
///
/// # Safety
/// A vector is readable from `at`.
#[inline(always)]
unsafe fn fifth_bits<S: Simd>(simd: S, at: *const u8, row: usize, quads: &mut [S::Bytes; 8]) {
    // SAFETY: by the contract.
    let bits = unsafe { simd.load_bytes_ptr(at.add(4 * row)) };
    let fifth = simd.splat_u8(0x10);
    let shifted = [
        simd.shift_left::<4>(bits),
        simd.shift_left::<3>(bits),
        simd.shift_left::<2>(bits),
        simd.shift_left::<1>(bits),
        bits,
        simd.shift_right::<1>(bits),
        simd.shift_right::<2>(bits),
        simd.shift_right::<3>(bits),
    ];
    for q in 0..8 {
        quads[q] = simd.or(quads[q], simd.and(shifted[q], fifth));
    }
}

/// `f16` scales of the 16 rows at `at`, times `factor`, into `to`.
///
/// # Safety
/// 32 bytes are readable from `at`.
#[inline(always)]
unsafe fn half_scales<S: Simd>(simd: S, at: *const u8, factor: f32, to: &mut [f32; PANEL]) {
    for row in (0..PANEL).step_by(S::LANES) {
        // SAFETY: by the contract; f16 has no invalid bits and the load takes any alignment.
        let d = unsafe { simd.load_f16_ptr(at.cast::<half::f16>().add(row)) };
        simd.store(&mut to[row..], simd.mul(d, simd.splat(factor)));
    }
}

/// Exact dots of nibbles: eight quads of at most 15 stay below 2^15 in 16 bits.
///
/// # Safety
/// `x` is readable for 32 bytes.
#[inline(always)]
unsafe fn nibble_dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
    let zero = simd.splat_i32(0);
    // SAFETY: by the contract; 2 * 8 * 15 * 127 = 30480.
    [unsafe { simd.dot(zero, w, x) }, zero]
}

/// Exact dots of five bits: four quads of at most 31 stay below 2^15 in 16 bits.
///
/// # Safety
/// `x` is readable for 32 bytes.
#[inline(always)]
unsafe fn five_bit_dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
    let zero = simd.splat_i32(0);
    let [a, b, c, d, e, f, g, h] = w;
    // SAFETY: by the contract; 2 * 4 * 31 * 127 = 31496.
    unsafe {
        let first = simd.dot(zero, [a, b, c, d], x);
        [simd.dot(first, [e, f, g, h], x.add(16)), zero]
    }
}

macro_rules! simple_format {
    ($(#[$doc:meta])* $name:ident, $halves:literal, $offset:literal, $five_bits:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Format for $name {
            const GROUPS: usize = 1;
            const CELL_BYTES: usize =
                HALVES * $halves + VECTOR * (4 + if $five_bits { 1 } else { 0 });

            #[inline(always)]
            unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
                // SAFETY: the cell begins with the halves.
                unsafe {
                    half_scales(simd, cell, 1.0, &mut scales.scale[0]);
                    if $halves == 1 {
                        half_scales(simd, cell, -$offset, &mut scales.shift[0]);
                    } else {
                        half_scales(simd, cell.add(HALVES), 1.0, &mut scales.shift[0]);
                    }
                }
            }

            #[inline(always)]
            unsafe fn quads<S: Simd>(
                simd: S,
                cell: *const u8,
                group: usize,
                row: usize,
            ) -> [S::Bytes; 8] {
                let bits = HALVES * $halves;
                // SAFETY: the fifth bits, if any, and then the nibbles follow the halves.
                unsafe {
                    if $five_bits {
                        let mut quads = nibbles(simd, cell.add(bits + VECTOR), group, row);
                        fifth_bits(simd, cell.add(bits), row, &mut quads);
                        quads
                    } else {
                        nibbles(simd, cell.add(bits), group, row)
                    }
                }
            }

            #[inline(always)]
            unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
                // SAFETY: the contract is the same.
                unsafe {
                    if $five_bits { five_bit_dots(simd, w, x) } else { nibble_dots(simd, w, x) }
                }
            }
        }
    };
}

simple_format!(
    /// `d * (q - 8)`, four bits.
    Q40, 1, 8.0, false
);
simple_format!(
    /// `d * q + m`, four bits.
    Q41, 2, 0.0, false
);
simple_format!(
    /// `d * (q - 16)`, five bits.
    Q50, 1, 16.0, true
);
simple_format!(
    /// `d * q + m`, five bits.
    Q51, 2, 0.0, true
);

/// `d * q`, signed bytes.
pub(super) struct Q80;

impl Format for Q80 {
    const GROUPS: usize = 1;
    const CELL_BYTES: usize = HALVES + 8 * VECTOR;

    #[inline(always)]
    fn shifted<S: Simd>() -> bool {
        S::SIGNED_OFFSET != 0.0
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
        // SAFETY: the cell begins with the scales.
        unsafe {
            half_scales(simd, cell, 1.0, &mut scales.scale[0]);
            half_scales(simd, cell, -S::SIGNED_OFFSET, &mut scales.shift[0]);
        }
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, _: usize, row: usize) -> [S::Bytes; 8] {
        let mut quads = [simd.splat_u8(0); 8];
        for (q, quad) in quads.iter_mut().enumerate() {
            // SAFETY: eight vectors follow the scales.
            let bytes = unsafe { simd.load_bytes_ptr(cell.add(HALVES + q * VECTOR + 4 * row)) };
            *quad = simd.signed_weights(bytes);
        }
        quads
    }

    #[inline(always)]
    unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
        let zero = simd.splat_i32(0);
        // SAFETY: the contract is the same.
        [unsafe { simd.dot_signed(zero, w, x) }, zero]
    }
}

/// Scales `d * sc` and shifts `-dmin * m` of the eight groups of a K-quant cell.
///
/// # Safety
/// `cell` is a cell of Q4_K or Q5_K.
#[inline(always)]
unsafe fn k_scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
    // SAFETY: twelve scale bytes per row lie there.
    let packed: [[u8; PANEL]; 12] = unsafe { cell.add(K_SCALES).cast::<[_; 12]>().read() };
    // As `blocks::k_scales_and_minimums`, for sixteen rows at once.
    let (mut sc, mut m) = ([[0_u8; PANEL]; 8], [[0_u8; PANEL]; 8]);
    for i in 0..4 {
        for row in 0..PANEL {
            let (s, t, high) = (packed[i][row], packed[i + 4][row], packed[i + 8][row]);
            sc[i][row] = s & 0x3f;
            m[i][row] = t & 0x3f;
            sc[i + 4][row] = (high & 0x0f) | ((s >> 2) & 0x30);
            m[i + 4][row] = (high >> 4) | ((t >> 2) & 0x30);
        }
    }
    let (mut d, mut d_min) = ([0.0; PANEL], [0.0; PANEL]);
    // SAFETY: the cell begins with both halves.
    unsafe {
        half_scales(simd, cell, 1.0, &mut d);
        half_scales(simd, cell.add(HALVES), -1.0, &mut d_min);
    }
    for row in (0..PANEL).step_by(S::LANES) {
        let (d, d_min) = (simd.load(&d[row..]), simd.load(&d_min[row..]));
        for group in 0..8 {
            // SAFETY: the arrays have 16 bytes, `row + L <= 16`.
            let (sc, m) = unsafe {
                let m = simd.load_u8_ptr(m[group].as_ptr().add(row));
                (simd.load_u8_ptr(sc[group].as_ptr().add(row)), m)
            };
            simd.store(&mut scales.scale[group][row..], simd.mul(d, sc));
            simd.store(&mut scales.shift[group][row..], simd.mul(d_min, m));
        }
    }
}

/// `d * sc * q - dmin * m`, four bits.
pub(super) struct Q4K;

impl Format for Q4K {
    const GROUPS: usize = 8;
    const CELL_BYTES: usize = K_QUANTS + 32 * VECTOR;

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
        // SAFETY: the contract is the same.
        unsafe { k_scales(simd, cell, scales) }
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, group: usize, row: usize) -> [S::Bytes; 8] {
        // SAFETY: the nibbles of the eight groups begin there.
        unsafe { nibbles(simd, cell.add(K_QUANTS), group, row) }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
        // SAFETY: the contract is the same.
        unsafe { nibble_dots(simd, w, x) }
    }
}

/// `d * sc * q - dmin * m`, five bits.
pub(super) struct Q5K;

impl Format for Q5K {
    const GROUPS: usize = 8;
    const CELL_BYTES: usize = Q5_K_NIBBLES + 32 * VECTOR;

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
        // SAFETY: the contract is the same.
        unsafe { k_scales(simd, cell, scales) }
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, group: usize, row: usize) -> [S::Bytes; 8] {
        // SAFETY: a vector of fifth bits per group, then four of nibbles.
        unsafe {
            let mut quads = nibbles(simd, cell.add(Q5_K_NIBBLES), group, row);
            fifth_bits(simd, cell.add(K_QUANTS + group * VECTOR), row, &mut quads);
            quads
        }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
        // SAFETY: the contract is the same.
        unsafe { five_bit_dots(simd, w, x) }
    }
}

/// `d * sc * (q - 32)`, six bits, scales for every 16 columns.
pub(super) struct Q6K;

impl Format for Q6K {
    const GROUPS: usize = 8;
    const CELL_BYTES: usize = Q6_K_NIBBLES + 32 * VECTOR;
    const HALVED: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, cell: *const u8, scales: &mut Scales) {
        let mut d = [0.0; PANEL];
        // SAFETY: the cell begins with d.
        unsafe { half_scales(simd, cell, 1.0, &mut d) };
        for row in (0..PANEL).step_by(S::LANES) {
            let d = simd.load(&d[row..]);
            for half in 0..16 {
                let at = Q6_K_SCALES + half * PANEL + row;
                // SAFETY: sixteen scale bytes per row follow.
                let sc = unsafe { simd.load_i8_ptr(cell.add(at).cast()) };
                let scale = simd.mul(d, sc);
                simd.store(&mut scales.scale[half][row..], scale);
                simd.store(&mut scales.shift[half][row..], simd.mul(scale, simd.splat(-32.0)));
            }
        }
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, group: usize, row: usize) -> [S::Bytes; 8] {
        // SAFETY: two vectors of pairs per group, then four of nibbles.
        let (mut quads, pairs) = unsafe {
            let at = cell.add(Q6_K_PAIRS + 2 * group * VECTOR + 4 * row);
            let pairs = [simd.load_bytes_ptr(at), simd.load_bytes_ptr(at.add(VECTOR))];
            (nibbles(simd, cell.add(Q6_K_NIBBLES), group, row), pairs)
        };
        let mask = simd.splat_u8(0x30);
        for (a, bits) in pairs.into_iter().enumerate() {
            let shifted = [
                simd.shift_left::<4>(bits),
                simd.shift_left::<2>(bits),
                bits,
                simd.shift_right::<2>(bits),
            ];
            for i in 0..4 {
                quads[4 * a + i] = simd.or(quads[4 * a + i], simd.and(shifted[i], mask));
            }
        }
        quads
    }

    #[inline(always)]
    unsafe fn dots<S: Simd>(simd: S, w: [S::Bytes; 8], x: *const i8) -> [S::I32; 2] {
        let zero = simd.splat_i32(0);
        let [a, b, c, d, e, f, g, h] = w;
        // SAFETY: the contract is the same; 2 * 2 * 63 * 127 = 32004.
        unsafe {
            let first = simd.dot(zero, [a, b], x);
            let second = simd.dot(zero, [e, f], x.add(16));
            [simd.dot(first, [c, d], x.add(8)), simd.dot(second, [g, h], x.add(24))]
        }
    }
}

/// A plain type. `cell` points to one cell of 32 columns, readable whole.
pub(super) trait PlainFormat {
    /// Bytes of a cell.
    const CELL_BYTES: usize;

    /// Columns `2 pair` and `2 pair + 1` of the rows from `row` on.
    ///
    /// # Safety
    /// See the trait; `pair < 16`, `row` is a multiple of the lanes below 16.
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2];
}

/// Single precision.
pub(super) struct F32;

impl PlainFormat for F32 {
    const CELL_BYTES: usize = 32 * 4 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column][row]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<f32>().add(2 * pair * PANEL + row);
            [simd.load_ptr(at), simd.load_ptr(at.add(PANEL))]
        }
    }
}

/// Half precision.
pub(super) struct F16;

impl PlainFormat for F16 {
    const CELL_BYTES: usize = 32 * 2 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column][row]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<half::f16>().add(2 * pair * PANEL + row);
            [simd.load_f16_ptr(at), simd.load_f16_ptr(at.add(PANEL))]
        }
    }
}

/// The upper half of single precision.
pub(super) struct Bf16;

impl PlainFormat for Bf16 {
    const CELL_BYTES: usize = 32 * 2 * PANEL;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, cell: *const u8, pair: usize, row: usize) -> [S::F32; 2] {
        // SAFETY: `[column / 2][row][2]`; the load takes any alignment.
        unsafe {
            let at = cell.cast::<half::bf16>().add(2 * (pair * PANEL + row));
            let (first, second) = simd.load_bf16_pairs_ptr(at);
            [first, second]
        }
    }
}

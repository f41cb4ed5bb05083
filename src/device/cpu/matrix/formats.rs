//! What the kernels must know of each quantised type: its scales, and how its quants unpack.
//!
//! A [`Format`] turns 32 columns of a cell into eight vectors of bytes and gives each row a scale
//! (and, where it has one, a shift): `w = scale * q + shift`. Offsets follow `layout`. Invariant:
//! unpacked quants are the file's, exactly. Read next: `integer`, which calls this; `plain` is the
//! same for types without scales.

use super::layout::{
    HALVES, K_QUANTS, K_SCALES, PANEL, Q5_K_NIBBLES, Q6_K_NIBBLES, Q6_K_PAIRS, Q6_K_SCALES, VECTOR,
};
use crate::device::cpu::simd::Simd;

/// Scale and shift of a group for the rows of one vector: `w = scale * q + shift`. For a type with
/// [`Format::HALVED`] both are scales, of the group's first and last 16 columns.
#[derive(Clone, Copy)]
pub(super) struct GroupScales<S: Simd> {
    pub scale: S::F32,
    pub shift: S::F32,
}

/// A quantised block type. In all methods `cell` points to one cell of the type, readable whole.
pub(super) trait Format {
    /// Groups of 32 columns in a cell.
    const GROUPS: usize;
    /// Bytes of a cell.
    const CELL_BYTES: usize;
    /// Each half of a group has its own scale, and quants are centred on 32.
    const HALVED: bool = false;
    /// What is unpacked once per cell to find the scales of its groups.
    type Header;

    /// Whether weights have a shift at this level.
    #[inline(always)]
    fn shifted<S: Simd>() -> bool {
        true
    }

    /// Unpacks what the groups of the cell share.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn header(cell: *const u8) -> Self::Header;

    /// The scales of group `group` for the rows from `row` on.
    ///
    /// # Safety
    /// See the trait; `header` is that of the cell, `group < GROUPS`, `row` is a multiple of the
    /// lanes below 16.
    unsafe fn scales<S: Simd>(
        simd: S,
        cell: *const u8,
        header: &Self::Header,
        group: usize,
        row: usize,
    ) -> GroupScales<S>;

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

/// The `f16` values at `at` of the rows from `row` on.
///
/// # Safety
/// 32 bytes are readable from `at`.
#[inline(always)]
unsafe fn halves<S: Simd>(simd: S, at: *const u8, row: usize) -> S::F32 {
    // SAFETY: by the contract; f16 has no invalid bits and the load takes any alignment.
    unsafe { simd.load_f16_ptr(at.cast::<half::f16>().add(row)) }
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

            type Header = ();

            #[inline(always)]
            unsafe fn header(_: *const u8) {}

            #[inline(always)]
            unsafe fn scales<S: Simd>(
                simd: S,
                cell: *const u8,
                _: &(),
                _: usize,
                row: usize,
            ) -> GroupScales<S> {
                // SAFETY: the cell begins with the halves.
                unsafe {
                    let scale = halves(simd, cell, row);
                    let shift = if $halves == 1 {
                        simd.mul(scale, simd.splat(-$offset))
                    } else {
                        halves(simd, cell.add(HALVES), row)
                    };
                    GroupScales { scale, shift }
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
                    let at = if $five_bits { bits + VECTOR } else { bits };
                    let mut quads = nibbles(simd, cell.add(at), group, row);
                    if $five_bits {
                        fifth_bits(simd, cell.add(bits), row, &mut quads);
                    }
                    quads
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

    type Header = ();

    #[inline(always)]
    unsafe fn header(_: *const u8) {}

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        simd: S,
        cell: *const u8,
        _: &(),
        _: usize,
        row: usize,
    ) -> GroupScales<S> {
        // SAFETY: the cell begins with the scales.
        let scale = unsafe { halves(simd, cell, row) };
        GroupScales { scale, shift: simd.mul(scale, simd.splat(-S::SIGNED_OFFSET)) }
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

/// The six-bit scales and minimums of the eight groups of a K-quant cell, `[group][row]`.
pub(super) struct KHeader {
    scales: [[u8; PANEL]; 8],
    minimums: [[u8; PANEL]; 8],
}

/// As `blocks::k_scales_and_minimums`, for sixteen rows at once.
///
/// # Safety
/// `cell` is a cell of Q4_K or Q5_K.
#[inline(always)]
unsafe fn k_header(cell: *const u8) -> KHeader {
    // SAFETY: twelve scale bytes per row lie there.
    let packed: [[u8; PANEL]; 12] = unsafe { cell.add(K_SCALES).cast::<[_; 12]>().read() };
    let (mut scales, mut minimums) = ([[0; PANEL]; 8], [[0; PANEL]; 8]);
    for i in 0..4 {
        for row in 0..PANEL {
            let (s, m, high) = (packed[i][row], packed[i + 4][row], packed[i + 8][row]);
            scales[i][row] = s & 0x3f;
            minimums[i][row] = m & 0x3f;
            scales[i + 4][row] = (high & 0x0f) | ((s >> 2) & 0x30);
            minimums[i + 4][row] = (high >> 4) | ((m >> 2) & 0x30);
        }
    }
    KHeader { scales, minimums }
}

/// Scale `d * sc` and shift `-dmin * m` of a group.
///
/// # Safety
/// `cell` is a cell of Q4_K or Q5_K, `group < 8`, `row` is a multiple of the lanes below 16.
#[inline(always)]
unsafe fn k_scales<S: Simd>(
    simd: S,
    cell: *const u8,
    header: &KHeader,
    group: usize,
    row: usize,
) -> GroupScales<S> {
    // SAFETY: the cell begins with both halves; a group of the header has 16 bytes.
    unsafe {
        let scale = simd.load_u8_ptr(header.scales[group].as_ptr().add(row));
        let minimum = simd.load_u8_ptr(header.minimums[group].as_ptr().add(row));
        let d_min = simd.sub(simd.splat(0.0), halves(simd, cell.add(HALVES), row));
        GroupScales {
            scale: simd.mul(halves(simd, cell, row), scale),
            shift: simd.mul(d_min, minimum),
        }
    }
}

macro_rules! k_format {
    ($(#[$doc:meta])* $name:ident, $nibbles:expr, $five_bits:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Format for $name {
            const GROUPS: usize = 8;
            const CELL_BYTES: usize = $nibbles + 32 * VECTOR;
            type Header = KHeader;

            #[inline(always)]
            unsafe fn header(cell: *const u8) -> KHeader {
                // SAFETY: the contract is the same.
                unsafe { k_header(cell) }
            }

            #[inline(always)]
            unsafe fn scales<S: Simd>(
                simd: S,
                cell: *const u8,
                header: &KHeader,
                group: usize,
                row: usize,
            ) -> GroupScales<S> {
                // SAFETY: the contract is the same.
                unsafe { k_scales(simd, cell, header, group, row) }
            }

            #[inline(always)]
            unsafe fn quads<S: Simd>(
                simd: S,
                cell: *const u8,
                group: usize,
                row: usize,
            ) -> [S::Bytes; 8] {
                // SAFETY: a vector of fifth bits per group, if any, then four of nibbles.
                unsafe {
                    let mut quads = nibbles(simd, cell.add($nibbles), group, row);
                    if $five_bits {
                        fifth_bits(simd, cell.add(K_QUANTS + group * VECTOR), row, &mut quads);
                    }
                    quads
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

k_format!(
    /// `d * sc * q - dmin * m`, four bits.
    Q4K, K_QUANTS, false
);
k_format!(
    /// `d * sc * q - dmin * m`, five bits.
    Q5K, Q5_K_NIBBLES, true
);

/// `d * sc * (q - 32)`, six bits, scales for every 16 columns.
pub(super) struct Q6K;

impl Format for Q6K {
    const GROUPS: usize = 8;
    const CELL_BYTES: usize = Q6_K_NIBBLES + 32 * VECTOR;
    const HALVED: bool = true;

    type Header = ();

    #[inline(always)]
    unsafe fn header(_: *const u8) {}

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        simd: S,
        cell: *const u8,
        _: &(),
        group: usize,
        row: usize,
    ) -> GroupScales<S> {
        // SAFETY: the cell begins with d; sixteen scale bytes per row follow.
        unsafe {
            let d = halves(simd, cell, row);
            let at = cell.add(Q6_K_SCALES + 2 * group * PANEL + row).cast::<i8>();
            GroupScales {
                scale: simd.mul(d, simd.load_i8_ptr(at)),
                shift: simd.mul(d, simd.load_i8_ptr(at.add(PANEL))),
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

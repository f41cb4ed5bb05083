//! What the kernels must know of each K-quant: 256 columns whose inner scales are whole numbers.
//!
//! `w = d * s * q - d_min * m` (Q4_K, Q5_K, for every 32 columns) or `d * s * (q - 32)` (Q6_K, for
//! every 16). With activations in blocks of 256, all but `d` and `d_min` is integer arithmetic: a
//! [`SuperFormat`] unpacks quants and inner scales, and says what the offsets contribute.
//! Invariant: unpacked quants and scales are the file's, exactly, and sums fit 32 bits. Read next:
//! `super_blocks`, which calls this.

use super::formats::{fifth_bits, further, halves, nibbles};
use super::layout::{
    K_QUANTS, K_SCALES, PANEL, Q5_K_NIBBLES, Q6_K_NIBBLES, Q6_K_PAIRS, Q6_K_SCALES, VECTOR,
};
use super::quantise::Block256;
use crate::device::cpu::simd::Simd;

/// A K-quant. In all methods `cell` points to one cell of the type, readable whole, `header` is
/// that of the cell, `row` is a multiple of the lanes below 16, and `group < 8` is one of 32
/// columns.
pub(super) trait SuperFormat {
    /// Bytes of a cell.
    const CELL_BYTES: usize;
    /// Whether what [`SuperFormat::offset`] counts has a scale of its own, `d_min`; otherwise it
    /// is part of the dot.
    const MINIMUM: bool;
    /// What is unpacked once per cell to find the scales of its groups.
    type Header;
    /// The minimums, or the scales again, in pairs.
    type Pairs<S: Simd>: Copy;

    /// Unpacks what the groups of the cell share.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn header(cell: *const u8) -> Self::Header;

    /// `d` of the rows from `row` on.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn scale<S: Simd>(simd: S, cell: *const u8, row: usize) -> S::F32;

    /// Whole scales of the first and the last 16 columns of a group.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn scales<S: Simd>(
        simd: S,
        cell: *const u8,
        header: &Self::Header,
        group: usize,
        row: usize,
    ) -> [S::I32; 2];

    /// What [`SuperFormat::offset`] reads.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn pairs<S: Simd>(
        simd: S,
        cell: *const u8,
        header: &Self::Header,
        row: usize,
    ) -> Self::Pairs<S>;

    /// What the offsets of all quants take off the dot, `-Σ m * Σ q` or `-32 Σ s * Σ q`.
    fn offset<S: Simd>(simd: S, pairs: Self::Pairs<S>, x: &Block256) -> S::I32;

    /// The eight quads of a group.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn quads<S: Simd>(simd: S, cell: *const u8, group: usize, row: usize) -> [S::Bytes; 8];

    /// For each row `acc` plus the scaled dot of the quads of a group with the 32 bytes at `x`,
    /// exact.
    ///
    /// # Safety
    /// Every `x` is readable for 32 bytes, all above -128.
    unsafe fn dot<S: Simd, const R: usize>(
        simd: S,
        acc: [S::I32; R],
        w: [S::Bytes; 8],
        x: [*const i8; R],
        scales: [S::I32; 2],
    ) -> [S::I32; R];
}

/// The six-bit scales and minimums of the eight groups of a cell, `[group][row]`.
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

macro_rules! k_format {
    ($(#[$doc:meta])* $name:ident, $nibbles:expr, $five_bits:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl SuperFormat for $name {
            const CELL_BYTES: usize = $nibbles + 32 * VECTOR;
            const MINIMUM: bool = true;
            type Header = KHeader;
            /// The minimums of groups `2 i` and `2 i + 1`.
            type Pairs<S: Simd> = [S::I32; 4];

            #[inline(always)]
            unsafe fn header(cell: *const u8) -> KHeader {
                // SAFETY: the contract is the same.
                unsafe { k_header(cell) }
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(simd: S, cell: *const u8, row: usize) -> S::F32 {
                // SAFETY: the cell begins with `d`.
                unsafe { halves(simd, cell, row) }
            }

            #[inline(always)]
            unsafe fn scales<S: Simd>(
                simd: S,
                _: *const u8,
                header: &KHeader,
                group: usize,
                row: usize,
            ) -> [S::I32; 2] {
                let at = header.scales[group].as_ptr().cast::<i8>();
                // SAFETY: a group of the header has 16 bytes, all below 64.
                [unsafe { simd.load_scales_ptr(at.add(row)) }; 2]
            }

            #[inline(always)]
            unsafe fn pairs<S: Simd>(
                simd: S,
                _: *const u8,
                header: &KHeader,
                row: usize,
            ) -> [S::I32; 4] {
                let mut pairs = [simd.splat_i32(0); 4];
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let first = header.minimums[2 * i].as_ptr().cast::<i8>();
                    let second = header.minimums[2 * i + 1].as_ptr().cast::<i8>();
                    // SAFETY: a group of the header has 16 bytes, all below 64.
                    *pair = unsafe { simd.load_pairs_ptr(first.add(row), second.add(row)) };
                }
                pairs
            }

            #[inline(always)]
            fn offset<S: Simd>(simd: S, pairs: [S::I32; 4], x: &Block256) -> S::I32 {
                let mut sum = simd.splat_i32(0);
                for (i, pairs) in pairs.into_iter().enumerate() {
                    // SAFETY: the pair `2 i` of eight sums. 8 * 63 * 32 * 127 fits.
                    sum = unsafe { simd.dot_pairs(sum, pairs, x.minus_sums.as_ptr().add(2 * i)) };
                }
                sum
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
            unsafe fn dot<S: Simd, const R: usize>(
                simd: S,
                acc: [S::I32; R],
                w: [S::Bytes; 8],
                x: [*const i8; R],
                [scales, _]: [S::I32; 2],
            ) -> [S::I32; R] {
                // SAFETY: the contract is the same. In 16 bits eight quads of four bits reach
                // 2 * 8 * 15 * 127 = 30480, four quads of five bits 2 * 4 * 31 * 127 = 31496; in
                // 32 bits all of a cell 8 * 63 * 32 * 31 * 127 < 2^26.
                unsafe {
                    if S::WIDE_DOTS || !$five_bits {
                        return simd.dot_scaled(acc, w, x, scales);
                    }
                    let [a, b, c, d, e, f, g, h] = w;
                    let first = simd.dot_scaled(acc, [a, b, c, d], x, scales);
                    simd.dot_scaled(first, [e, f, g, h], further(x, 16), scales)
                }
            }
        }
    };
}

k_format!(
    /// `d * s * q - d_min * m`, four bits.
    Q4K, K_QUANTS, false
);
k_format!(
    /// `d * s * q - d_min * m`, five bits.
    Q5K, Q5_K_NIBBLES, true
);

/// `d * s * (q - 32)`, six bits, scales for every 16 columns.
pub(super) struct Q6K;

/// The scale bytes of Q6_K of 16 columns of a cell, for the rows from `row` on.
///
/// # Safety
/// `cell` is one of Q6_K, `half < 16`, `row < 16`.
#[inline(always)]
unsafe fn q6_k_scales(cell: *const u8, half: usize, row: usize) -> *const i8 {
    // SAFETY: by the contract; sixteen bytes for each 16 columns lie there.
    unsafe { cell.add(Q6_K_SCALES + half * PANEL + row).cast() }
}

impl SuperFormat for Q6K {
    const CELL_BYTES: usize = Q6_K_NIBBLES + 32 * VECTOR;
    const MINIMUM: bool = false;
    type Header = ();
    /// The scales of the two halves of each group.
    type Pairs<S: Simd> = [S::I32; 8];

    #[inline(always)]
    unsafe fn header(_: *const u8) {}

    #[inline(always)]
    unsafe fn scale<S: Simd>(simd: S, cell: *const u8, row: usize) -> S::F32 {
        // SAFETY: the cell begins with `d`.
        unsafe { halves(simd, cell, row) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        simd: S,
        cell: *const u8,
        (): &(),
        group: usize,
        row: usize,
    ) -> [S::I32; 2] {
        // SAFETY: the contract is the same.
        unsafe {
            [
                simd.load_scales_ptr(q6_k_scales(cell, 2 * group, row)),
                simd.load_scales_ptr(q6_k_scales(cell, 2 * group + 1, row)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn pairs<S: Simd>(simd: S, cell: *const u8, (): &(), row: usize) -> [S::I32; 8] {
        let mut pairs = [simd.splat_i32(0); 8];
        for (group, pair) in pairs.iter_mut().enumerate() {
            // SAFETY: the contract is the same.
            *pair = unsafe {
                let first = q6_k_scales(cell, 2 * group, row);
                simd.load_pairs_ptr(first, q6_k_scales(cell, 2 * group + 1, row))
            };
        }
        pairs
    }

    #[inline(always)]
    fn offset<S: Simd>(simd: S, pairs: [S::I32; 8], x: &Block256) -> S::I32 {
        let mut sum = simd.splat_i32(0);
        for (i, pairs) in pairs.into_iter().enumerate() {
            // SAFETY: the pair `2 i` of sixteen sums. 32 * 16 * 128 * 16 * 127 fits.
            sum = unsafe { simd.dot_pairs(sum, pairs, x.minus_half_sums.as_ptr().add(2 * i)) };
        }
        simd.shift_left_i32(sum, 5)
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
    unsafe fn dot<S: Simd, const R: usize>(
        simd: S,
        acc: [S::I32; R],
        w: [S::Bytes; 8],
        x: [*const i8; R],
        [first, last]: [S::I32; 2],
    ) -> [S::I32; R] {
        let [a, b, c, d, e, f, g, h] = w;
        // SAFETY: the contract is the same. In 16 bits two quads reach 2 * 2 * 63 * 127 = 32004; in
        // 32 bits all of a cell 256 * 128 * 63 * 127 < 2^29.
        unsafe {
            if S::WIDE_DOTS {
                let acc = simd.dot_scaled(acc, [a, b, c, d], x, first);
                return simd.dot_scaled(acc, [e, f, g, h], further(x, 16), last);
            }
            let acc = simd.dot_scaled(acc, [a, b], x, first);
            let acc = simd.dot_scaled(acc, [c, d], further(x, 8), first);
            let acc = simd.dot_scaled(acc, [e, f], further(x, 16), last);
            simd.dot_scaled(acc, [g, h], further(x, 24), last)
        }
    }
}

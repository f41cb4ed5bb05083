//! Reading, mapping and writing 32 lanes of a Rust type.
//!
//! The maps go through blocks of lanes: all sources of a block are read before its result is
//! written, so a destination may be one of its own sources. `map1` to `map3` take eight lanes at a
//! time, which for simple operations stay in vector registers; `long1` to `long3` take all 32,
//! which the compiler turns into vector code for operations of many steps too.
//! The invariant that the pointers rest on: planes are whole and blocks lie inside them.

use crate::exec::registers::{LANES, Plane, Registers};
use crate::ptx::ir::Operand;
use std::mem::MaybeUninit;

/// Lanes of a short block.
const SHORT: usize = 8;

/// A type that a register holds.
pub(super) trait Lane: Copy + Default {
    /// Planes a register of it takes: 1 or 2.
    const PLANES: usize;

    /// Values from their low and high words.
    fn from_words<const W: usize>(low: [u32; W], high: [u32; W]) -> [Self; W];

    /// The low and high words of values.
    fn to_words<const W: usize>(values: [Self; W]) -> [[u32; W]; 2];

    /// All lanes of a source.
    #[inline(always)]
    fn read(r: &Registers, operand: Operand) -> [Self; LANES] {
        let mut splat = MaybeUninit::uninit();
        let source = Source::<Self>::new(r, operand, &mut splat);
        source.block(0)
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    fn write(r: &mut Registers, plane: u32, mask: u32, values: &[Self; LANES]) {
        fill::<Self, LANES>(r, mask, plane, |_| *values);
    }
}

macro_rules! one_plane {
    ($($type:ty: |$word:ident| $from:expr, |$value:ident| $to:expr;)+) => { $(
        impl Lane for $type {
            const PLANES: usize = 1;

            #[inline(always)]
            fn from_words<const W: usize>(low: [u32; W], _: [u32; W]) -> [Self; W] {
                let mut out = [Self::default(); W];
                for (out, $word) in out.iter_mut().zip(low) {
                    *out = $from;
                }
                out
            }

            #[inline(always)]
            fn to_words<const W: usize>(values: [Self; W]) -> [[u32; W]; 2] {
                let mut low = [0; W];
                for (low, $value) in low.iter_mut().zip(values) {
                    *low = $to;
                }
                [low, [0; W]]
            }
        }
    )+ };
}

macro_rules! two_planes {
    ($($type:ty: |$long:ident| $from:expr, |$value:ident| $to:expr;)+) => { $(
        impl Lane for $type {
            const PLANES: usize = 2;

            #[inline(always)]
            fn from_words<const W: usize>(low: [u32; W], high: [u32; W]) -> [Self; W] {
                let mut out = [Self::default(); W];
                for i in 0..W {
                    let $long = u64::from(low[i]) | u64::from(high[i]) << 32;
                    out[i] = $from;
                }
                out
            }

            #[inline(always)]
            fn to_words<const W: usize>(values: [Self; W]) -> [[u32; W]; 2] {
                let (mut low, mut high) = ([0; W], [0; W]);
                for i in 0..W {
                    let $value = values[i];
                    let long: u64 = $to;
                    (low[i], high[i]) = (long as u32, (long >> 32) as u32);
                }
                [low, high]
            }
        }
    )+ };
}

one_plane! {
    u32: |w| w, |v| v;
    i32: |w| w as i32, |v| v as u32;
    u16: |w| w as u16, |v| u32::from(v);
    i16: |w| w as i16, |v| u32::from(v as u16);
    f32: |w| f32::from_bits(w), |v| v.to_bits();
}

two_planes! {
    u64: |l| l, |v| v;
    i64: |l| l as i64, |v| v as u64;
    f64: |l| f64::from_bits(l), |v| v.to_bits();
}

/// Storage for an immediate spread over all lanes.
type Splat = MaybeUninit<[Plane; 2]>;

/// The planes of a source.
#[derive(Clone, Copy)]
struct Source<T> {
    low: *const Plane,
    high: *const Plane,
    of: std::marker::PhantomData<T>,
}

impl<T: Lane> Source<T> {
    /// The planes of a register, or `splat` filled with an immediate. The result is only good as
    /// long as both arguments are.
    #[inline(always)]
    fn new(r: &Registers, operand: Operand, splat: &mut Splat) -> Self {
        let (low, high): (*const Plane, *const Plane) = match operand {
            Operand::Plane(plane) => {
                let planes = &r.planes[plane as usize..plane as usize + T::PLANES];
                (&raw const planes[0], &raw const planes[T::PLANES - 1])
            }
            Operand::Immediate(bits) => {
                let planes = splat.write([[bits as u32; LANES], [(bits >> 32) as u32; LANES]]);
                (&raw const planes[0], &raw const planes[1])
            }
        };
        Self { low, high, of: std::marker::PhantomData }
    }

    /// The values of a block.
    #[inline(always)]
    fn block<const W: usize>(self, block: usize) -> [T; W] {
        assert!(block < LANES / W);
        // SAFETY: `new` took the pointers from whole planes that its callers keep alive while they
        // use the source; nothing writes while a block is read; the block lies inside the plane.
        let (low, high) = unsafe {
            (
                self.low.cast::<[u32; W]>().add(block).read(),
                self.high.cast::<[u32; W]>().add(block).read(),
            )
        };
        T::from_words(low, high)
    }
}

/// The planes of a destination, and the lanes to write.
#[derive(Clone, Copy)]
struct Target {
    low: *mut Plane,
    high: *mut Plane,
    mask: u32,
}

impl Target {
    #[inline(always)]
    fn new<T: Lane>(r: &mut Registers, plane: u32, mask: u32) -> Self {
        let planes = &mut r.planes[plane as usize..plane as usize + T::PLANES];
        let low = planes.as_mut_ptr();
        // SAFETY: the slice has `PLANES` planes, so its last one is inside.
        Self { low, high: unsafe { low.add(T::PLANES - 1) }, mask }
    }

    /// Writes a block: wholly if `ALL`, else the lanes of the mask.
    #[inline(always)]
    fn put<T: Lane, const ALL: bool, const W: usize>(self, block: usize, values: [T; W]) {
        assert!(block < LANES / W);
        let words = T::to_words(values);
        for (plane, mut words) in [self.low, self.high].into_iter().zip(words).take(T::PLANES) {
            // SAFETY: `new` took the pointers from whole planes of registers that its callers hold
            // exclusively; no reference to them lives; the block lies inside the plane.
            let place = unsafe { plane.cast::<[u32; W]>().add(block) };
            if !ALL {
                let lanes = self.mask >> (block * W);
                // SAFETY: as above.
                let old = unsafe { place.read() };
                for i in 0..W {
                    words[i] = if lanes >> i & 1 != 0 { words[i] } else { old[i] };
                }
            }
            // SAFETY: as above.
            unsafe { place.write(words) };
        }
    }
}

/// Writes `f(block)` for every block of the destination.
#[inline(always)]
fn fill<D: Lane, const W: usize>(
    r: &mut Registers,
    mask: u32,
    dst: u32,
    f: impl Fn(usize) -> [D; W],
) {
    let target = Target::new::<D>(r, dst, mask);
    if mask == u32::MAX {
        for block in 0..LANES / W {
            target.put::<D, true, W>(block, f(block));
        }
    } else {
        for block in 0..LANES / W {
            target.put::<D, false, W>(block, f(block));
        }
    }
}

macro_rules! maps {
    ($one:ident, $two:ident, $three:ident, $width:expr) => {
        /// `dst = f(a)` in the lanes of `mask`.
        #[inline(always)]
        pub(super) fn $one<A: Lane, D: Lane>(
            r: &mut Registers,
            mask: u32,
            dst: u32,
            a: Operand,
            f: impl Fn(A) -> D,
        ) {
            let mut splat = Splat::uninit();
            let a = Source::<A>::new(r, a, &mut splat);
            fill::<D, $width>(r, mask, dst, |block| {
                let (a, mut out) = (a.block::<$width>(block), [D::default(); $width]);
                for i in 0..$width {
                    out[i] = f(a[i]);
                }
                out
            });
        }

        /// `dst = f(a, b)` in the lanes of `mask`.
        #[inline(always)]
        pub(super) fn $two<A: Lane, B: Lane, D: Lane>(
            r: &mut Registers,
            mask: u32,
            dst: u32,
            a: Operand,
            b: Operand,
            f: impl Fn(A, B) -> D,
        ) {
            let (mut splat_a, mut splat_b) = (Splat::uninit(), Splat::uninit());
            let a = Source::<A>::new(r, a, &mut splat_a);
            let b = Source::<B>::new(r, b, &mut splat_b);
            fill::<D, $width>(r, mask, dst, |block| {
                let (a, b) = (a.block::<$width>(block), b.block::<$width>(block));
                let mut out = [D::default(); $width];
                for i in 0..$width {
                    out[i] = f(a[i], b[i]);
                }
                out
            });
        }

        /// `dst = f(a, b, c)` in the lanes of `mask`.
        #[inline(always)]
        pub(super) fn $three<A: Lane, B: Lane, C: Lane, D: Lane>(
            r: &mut Registers,
            mask: u32,
            dst: u32,
            [a, b, c]: [Operand; 3],
            f: impl Fn(A, B, C) -> D,
        ) {
            let (mut splat_a, mut splat_b) = (Splat::uninit(), Splat::uninit());
            let mut splat_c = Splat::uninit();
            let a = Source::<A>::new(r, a, &mut splat_a);
            let b = Source::<B>::new(r, b, &mut splat_b);
            let c = Source::<C>::new(r, c, &mut splat_c);
            fill::<D, $width>(r, mask, dst, |block| {
                let (a, b) = (a.block::<$width>(block), b.block::<$width>(block));
                let (c, mut out) = (c.block::<$width>(block), [D::default(); $width]);
                for i in 0..$width {
                    out[i] = f(a[i], b[i], c[i]);
                }
                out
            });
        }
    };
}

maps!(map1, map2, map3, SHORT);
maps!(long1, long2, long3, LANES);

/// The lanes in which `f(a, b)` holds, as a mask.
#[inline(always)]
pub(super) fn test2<A: Lane>(
    r: &Registers,
    a: Operand,
    b: Operand,
    f: impl Fn(A, A) -> bool,
) -> u32 {
    let (a, b, mut bits) = (A::read(r, a), A::read(r, b), [0u32; LANES]);
    for i in 0..LANES {
        bits[i] = if f(a[i], b[i]) { 1 << i } else { 0 };
    }
    bits.iter().fold(0, |all, bit| all | bit)
}

/// The lanes in which `f(a)` holds, as a mask.
#[inline(always)]
pub(super) fn test1<A: Lane>(r: &Registers, a: Operand, f: impl Fn(A) -> bool) -> u32 {
    test2(r, a, Operand::Immediate(0), |a, _| f(a))
}

/// Applies `f` to both pairs of 16-bit halves of words.
#[inline(always)]
pub(super) fn halves2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

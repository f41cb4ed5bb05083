//! SIGNATURES ONLY.
use crate::error::DeviceError;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel { Portable, Avx2, Avx512 }
impl SimdLevel {
    pub fn detect() -> Self { unimplemented!() }
    pub fn available() -> Vec<Self> { unimplemented!() }
    /// `FORERUN_SIMD`, or the best available.
    pub fn from_env() -> Result<Self, DeviceError> { unimplemented!() }
    pub fn name(self) -> &'static str { unimplemented!() }
    /// Runs a kernel compiled for this level.
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output { unimplemented!() }
}
/// A generic kernel body; mark `run` and everything it calls `#[inline(always)]`.
pub trait Kernel { type Output; fn run<S: Simd>(self, simd: S) -> Self::Output; }
/// Lane operations; `self` is a token that proves that the instructions exist.
pub trait Simd: Copy + Send + Sync {
    const LANES: usize;
    type F32: Copy; type I32: Copy; type Bytes: Copy;
    fn splat(self, value: f32) -> Self::F32;
    fn load(self, from: &[f32]) -> Self::F32;          // first LANES; panics if shorter
    fn store(self, to: &mut [f32], v: Self::F32);
    fn load_bf16(self, from: &[half::bf16]) -> Self::F32;
    fn store_bf16(self, to: &mut [half::bf16], v: Self::F32); // nearest even
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32; // a * b + c
    fn exp(self, v: Self::F32) -> Self::F32;
    fn sum(self, v: Self::F32) -> f32;   // fixed tree
    fn max_lane(self, v: Self::F32) -> f32;
}

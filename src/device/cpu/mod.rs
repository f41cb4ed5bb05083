//! The CPU device: lanes, threads and matrices so far.

pub mod matrix;
pub mod simd;
pub mod threads;

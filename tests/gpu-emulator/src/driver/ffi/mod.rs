//! The C surface: one function for each symbol of `libcuda.so` that is answered.
//!
//! Every function has the signature in `cuda.h` of CUDA 12.8, returns a `CUresult` number, and does
//! three things: [`session::enter`], one or two calls of [`super::state::Driver`], and writing the
//! results out. Raw pointers exist only inside the argument types of [`arguments`].
//!
//! The contract of all of them is that of the CUDA driver API: a pointer is null or valid for what
//! it names, for as long as the documentation says. That is why they are `unsafe` and why none of
//! them repeats it.

#![allow(missing_docs, reason = "the functions are NVIDIA's, documented in its manual")]
#![allow(clippy::missing_safety_doc, reason = "one contract for all, in the header above")]
#![allow(non_snake_case, reason = "the names are the symbols")]
#![allow(clippy::too_many_arguments, reason = "the signatures are given")]

pub mod arguments;
pub mod context;
pub mod control;
pub mod copy;
pub mod device;
pub mod event;
pub mod function;
pub mod graph;
pub mod green;
pub mod launch;
pub mod memory;
pub mod module;
pub mod occupancy;
pub mod proc_address;
pub mod refused;
pub mod session;
pub mod stream;
pub mod value;

/// A `CUresult` as it is returned.
pub type Status = u32;

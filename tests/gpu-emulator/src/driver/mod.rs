//! The CUDA driver API over the software GPU.
//!
//! `ffi` holds the `cu*` symbols and nothing else: it turns pointers into values, takes the one
//! lock and calls `state`, which is the driver itself. `image` finds PTX in what is loaded,
//! `settings` reads the environment, `report` keeps what was done.
//! Read next: [`state`].

pub mod device;
pub mod failure;
pub mod ffi;
pub mod image;
pub mod report;
pub mod settings;
pub mod state;

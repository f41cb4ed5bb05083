//! device.

pub mod blocks;

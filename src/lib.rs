#![doc = include_str!("ARCHITECTURE.md")]

pub mod config;
pub mod error;
pub mod ids;
pub mod sample;
pub mod telemetry;

pub mod device;
pub mod text;

pub mod kv;

pub mod model;
pub mod schedule;

pub mod policy;

pub mod engine;

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod eval;
#[cfg(feature = "serve")]
pub mod server;

#[cfg(feature = "cli")]
pub mod cli;

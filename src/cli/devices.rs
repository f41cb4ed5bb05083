//! `forerun devices`: what this program can run on.

use super::ui;
use crate::device::Device;
use crate::device::cpu::{CpuDevice, CpuOptions};
use anyhow::Result;
use clap::Args;
use std::io::Write;

/// Flags of the verb: none.
#[derive(Debug, Args)]
pub(super) struct DevicesArgs {}

impl DevicesArgs {
    /// Prints one line per device.
    pub(super) fn run(self) -> Result<()> {
        let cpu = CpuDevice::new(CpuOptions::default())?.info();
        let mut out = std::io::stdout().lock();
        let memory = ui::bytes(cpu.memory_bytes);
        let threads = if cpu.units == 1 { "thread" } else { "threads" };
        writeln!(out, "cpu        {}, {} {threads}, {memory} available", cpu.name, cpu.units)?;
        writeln!(
            out,
            "cuda       built without CUDA kernels, which this version does not have yet; \
             --device auto takes the CPU"
        )?;
        writeln!(out, "reference  plain f32 loops: slow, for comparing the others against")?;
        Ok(())
    }
}

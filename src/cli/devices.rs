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
    /// Prints a few lines per device.
    pub(super) fn run(self) -> Result<()> {
        let cpu = CpuDevice::new(CpuOptions::default())?.info();
        let mut out = std::io::stdout().lock();
        let memory = ui::bytes(cpu.memory_bytes);
        let threads = if cpu.units == 1 { "thread" } else { "threads" };
        writeln!(out, "cpu        {}, {} {threads}, {memory} available", cpu.name, cpu.units)?;
        for (i, line) in cuda().into_iter().enumerate() {
            writeln!(out, "{:<10} {line}", if i == 0 { "cuda" } else { "" })?;
        }
        writeln!(out, "reference  plain f32 loops: slow, for comparing the others against")?;
        Ok(())
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<String> {
    vec!["built without CUDA support; fix: build with the feature `cuda`".to_owned()]
}

#[cfg(feature = "cuda")]
fn cuda() -> Vec<String> {
    use crate::device::cuda::{self, kernels::Built};

    let Some(kernels) = cuda::kernels::built() else {
        return vec![
            "built without CUDA kernels: there was no nvcc; --device auto takes the CPU".to_owned(),
            format!("fix: {}", Built::FIX),
        ];
    };
    let driver = if cuda::gpu::driver_present() {
        "a CUDA driver is there; --device cuda has only ever run on an emulator"
    } else {
        "no CUDA driver on this machine"
    };
    let early = match cuda::gpu::first() {
        Err(_) => "dependent launch: in use from compute capability 9.0 on".to_owned(),
        Ok(gpu) => {
            let (major, minor) = (gpu.capability / 10, gpu.capability % 10);
            let used = if gpu.dependent_launch() { "in use" } else { "not in use, it needs 9.0" };
            format!("{}, compute capability {major}.{minor}: dependent launch {used}", gpu.name)
        }
    };
    let (nvcc, ptx) = (kernels.nvcc, kernels.ptx_version());
    // Machine code runs on every driver of the same major version; text needs the minor one too.
    let release = nvcc.rsplit_once('.').map_or(nvcc, |(release, _)| release);
    vec![
        format!("{driver}; --device auto takes the CPU"),
        format!("{} kernels for {}", kernels.count(), kernels.archs().join(", ")),
        format!(
            "by nvcc {nvcc}, PTX {ptx}: a GPU outside the sm_ numbers needs a driver for CUDA \
             {release} or later"
        ),
        early,
    ]
}

//! One launch prepared for execution: what every CTA of it shares, and the limits it must keep.

use super::tally::Class;
use crate::launch::{Fault, FaultKind, Launch, Options};
use crate::memory::shared::LARGEST_BYTES;
use crate::memory::{FUNCTION_BASE, GlobalMemory};
use crate::ptx::ir::{Function, Module, Symbol};
use std::sync::OnceLock;

/// Static shared memory a kernel may declare, in bytes.
const STATIC_SHARED_BYTES: u32 = 48 * 1024;

/// A launch with everything looked up that the warps need often.
#[derive(Debug)]
pub(crate) struct Grid<'a> {
    pub(crate) launch: &'a Launch,
    pub(crate) module: &'a Module,
    pub(crate) memory: &'a GlobalMemory,
    pub(crate) options: Options,
    /// Warp instructions a CTA may execute without changing anything before it counts as stuck.
    pub(crate) spin_limit: u64,
    /// Threads of a CTA.
    pub(crate) threads: u32,
    /// Warps of a CTA.
    pub(crate) warps: usize,
    /// CTAs of the grid.
    pub(crate) ctas: u64,
    /// Shared memory of a CTA in bytes, static and dynamic.
    pub(crate) shared_bytes: u32,
    /// Instruction classes of the functions that have run, by index.
    classes: Vec<OnceLock<Vec<Class>>>,
}

impl<'a> Grid<'a> {
    /// Prepares a launch.
    ///
    /// # Errors
    /// When it breaks a limit of the device or of the kernel.
    pub(crate) fn new(
        launch: &'a Launch,
        memory: &'a GlobalMemory,
        options: Options,
        spin_limit: u64,
    ) -> Result<Self, Fault> {
        let module = &launch.module.module;
        let entry = launch.entry();
        let threads = check_shape(launch, entry)?;
        let shared_bytes = check_shared(launch, entry)?;
        let needed = entry.params.iter().map(|p| (p.offset + p.size) as usize).max().unwrap_or(0);
        if launch.params.len() < needed {
            let got = launch.params.len();
            return Err(refuse(launch, format!("{got} parameter bytes given, {needed} needed")));
        }
        Ok(Self {
            launch,
            module,
            memory,
            options,
            spin_limit,
            threads,
            warps: threads.div_ceil(32) as usize,
            ctas: launch.grid.iter().map(|n| u64::from(*n)).product(),
            shared_bytes,
            classes: module.functions.iter().map(|_| OnceLock::new()).collect(),
        })
    }

    /// The classes of a function's instructions.
    pub(crate) fn classes(&self, function: usize) -> &[Class] {
        let body = &self.module.functions[function].body;
        self.classes[function].get_or_init(|| body.iter().map(|i| Class::of(&i.op)).collect())
    }

    /// Coordinates of the CTA with a linear index.
    pub(crate) fn cta(&self, linear: u64) -> [u32; 3] {
        let [x, y, _] = self.launch.grid.map(u64::from);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / x / y) as u32]
    }

    /// The address of a symbol that does not depend on the running function.
    pub(crate) fn symbol(&self, symbol: Symbol) -> Option<u64> {
        match symbol {
            Symbol::Variable(index) => {
                let variable = self.module.variables.get(index as usize)?;
                self.launch.module.addresses.get(&variable.name).copied()
            }
            Symbol::Function(index) => Some(FUNCTION_BASE + u64::from(index)),
            Symbol::DynamicShared => Some(u64::from(self.launch.entry().dynamic_shared_offset)),
            Symbol::LocalFrame | Symbol::ParamFrame | Symbol::PendingShared(_) => None,
        }
    }
}

fn refuse(launch: &Launch, why: String) -> Fault {
    let name = &launch.entry().name;
    let message = format!("kernel '{name}' cannot be launched: {why} (launch {})", launch.serial);
    Fault { kind: FaultKind::Trap, message }
}

/// Checks grid and block; returns the threads of a CTA.
fn check_shape(launch: &Launch, entry: &Function) -> Result<u32, Fault> {
    let [x, y, z] = launch.block;
    let threads = u64::from(x) * u64::from(y) * u64::from(z);
    if x == 0 || y == 0 || z == 0 || threads > 1024 || x > 1024 || y > 1024 || z > 64 {
        let why = format!("a block of {x} x {y} x {z} threads; at most 1024, and 64 along z");
        return Err(refuse(launch, why));
    }
    let [gx, gy, gz] = launch.grid;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65_535 || gz > 65_535 {
        let why = format!("a grid of {gx} x {gy} x {gz} CTAs; y and z end at 65535, none is 0");
        return Err(refuse(launch, why));
    }
    if let Some(limit) = entry.limits.max_threads {
        let most: u64 = limit.iter().map(|n| u64::from(*n)).product();
        if threads > most {
            return Err(refuse(launch, format!("{threads} threads, compiled for at most {most}")));
        }
    }
    if let Some(required) = entry.limits.required_threads
        && required != launch.block
    {
        return Err(refuse(
            launch,
            format!("the block must be {required:?}, not {:?}", launch.block),
        ));
    }
    Ok(threads as u32)
}

/// Checks shared memory; returns its size.
fn check_shared(launch: &Launch, entry: &Function) -> Result<u32, Fault> {
    if entry.static_shared_bytes > STATIC_SHARED_BYTES {
        let bytes = entry.static_shared_bytes;
        let why = format!("{bytes} bytes of static shared memory; at most {STATIC_SHARED_BYTES}");
        return Err(refuse(launch, why));
    }
    let start = if launch.dynamic_shared_bytes == 0 {
        entry.static_shared_bytes
    } else {
        entry.dynamic_shared_offset.max(entry.static_shared_bytes)
    };
    let bytes = u64::from(start) + u64::from(launch.dynamic_shared_bytes);
    if bytes > u64::from(LARGEST_BYTES) {
        let why = format!("{bytes} bytes of shared memory; at most {LARGEST_BYTES}");
        return Err(refuse(launch, why));
    }
    Ok(bytes as u32)
}

//! The seam between the driver and the executor: one kernel launch, what it counted, how it failed.
//!
//! The driver resolves handles, copies the parameter bytes at launch time and calls
//! [`crate::exec::run`] when the launch's turn in its stream has come. The executor knows nothing
//! of streams; the driver knows nothing of warps.

use crate::memory::{FUNCTION_BASE, GlobalMemory, Violation};
use crate::ptx::ir::{Function, Module, Symbol};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A loaded module with its module-scope variables placed in global memory.
#[derive(Debug)]
pub struct LoadedModule {
    /// What the PTX said.
    pub module: Module,
    /// Device address of every `.global` and `.const` variable, by name.
    pub addresses: BTreeMap<String, u64>,
}

impl LoadedModule {
    /// Places the variables of a module in global memory and initialises them: with their bytes,
    /// then zeros, then the addresses of other variables and of functions they hold.
    ///
    /// # Errors
    /// When the memory has no room, or an initialiser names what the module does not define.
    pub fn place(module: Module, memory: &GlobalMemory) -> Result<Self, Violation> {
        let mut addresses = BTreeMap::new();
        for variable in module.variables.iter().filter(|v| !v.external) {
            let address = memory.allocate(variable.size.max(1), &variable.name)?;
            memory.fill(address, 0, variable.size)?;
            memory.write(address, &variable.init)?;
            addresses.insert(variable.name.clone(), address);
        }
        for variable in module.variables.iter().filter(|v| !v.external) {
            for relocation in &variable.relocations {
                let target = match relocation.symbol {
                    Symbol::Variable(index) => {
                        let name = module.variables.get(index as usize).map(|v| &v.name);
                        name.and_then(|name| addresses.get(name)).copied()
                    }
                    Symbol::Function(index) => Some(FUNCTION_BASE + u64::from(index)),
                    _ => None,
                };
                let at = addresses[&variable.name] + relocation.offset;
                let Some(target) = target else {
                    let detail = format!("'{}' holds an address nobody defines", variable.name);
                    return Err(Violation::at(FaultKind::Unsupported, at, detail));
                };
                let bytes = target.wrapping_add_signed(relocation.addend).to_le_bytes();
                memory.write(at, &bytes[..usize::from(relocation.bytes)])?;
            }
        }
        Ok(Self { module, addresses })
    }
}

/// One kernel launch, ready to run.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The module, for its variables and for device functions it calls.
    pub module: Arc<LoadedModule>,
    /// Index of the entry in `module.module.functions`.
    pub function: usize,
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared_bytes: u32,
    /// The parameter space: every parameter at its offset.
    pub params: Vec<u8>,
    /// SMs this launch may use, for `%smid`: the whole device or one green context's part.
    pub sms: std::ops::Range<u32>,
    /// What `%nsmid` says.
    pub sm_count: u32,
    /// The order number of the launch, for messages and for what wrote a byte last.
    pub serial: u64,
    /// Of a launch that may begin before the kernels before it have ended: what those stored to.
    /// `None`: it begins after them.
    pub unfinished: Option<Arc<Stored>>,
}

/// Base addresses of the allocations, or of the carved parts, that kernels stored to.
pub type Stored = BTreeSet<u64>;

impl Launch {
    /// The entry.
    #[must_use]
    pub fn entry(&self) -> &Function {
        &self.module.module.functions[self.function]
    }
}

/// How a run is scheduled and checked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Seeds the order of CTAs and the interleaving of warps.
    pub seed: u64,
    /// Host threads that run CTAs.
    pub threads: usize,
}

/// What a launch did; sums over all its warps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions by class: `alu`, `float`, `convert`, `control`, `global_load`,
    /// `global_store`, `shared_load`, `shared_store`, `local`, `atomic`, `shuffle`, `barrier`,
    /// `mma`, `ldmatrix`, `cp_async`, `other`.
    pub instructions: BTreeMap<&'static str, u64>,
    /// 32-byte sectors loaded from global memory, by the base address of the allocation.
    pub sectors_loaded: BTreeMap<u64, u64>,
    /// 32-byte sectors stored to global memory, by the base address of the allocation.
    pub sectors_stored: BTreeMap<u64, u64>,
    /// Global load requests (warp instructions), and the sum of sectors if each had been ideal.
    pub load_requests: u64,
    /// Sectors an ideal (dense) access of the same bytes would touch.
    pub ideal_load_sectors: u64,
    /// Shared-memory accesses in wavefronts, ideal and extra.
    pub shared_wavefronts: u64,
    /// Wavefronts beyond the ideal: bank conflicts.
    pub shared_replays: u64,
    /// The same by the instruction that took them: function and index in its body.
    pub replays: BTreeMap<(usize, u32), u64>,
    /// Loads of 16 bytes a lane.
    pub wide_loads: WideLoads,
    /// Any use of local memory, bytes a thread.
    pub local_bytes: u64,
    /// Warps that executed `griddepcontrol.wait`.
    pub dependency_waits: u64,
    /// Warps that executed `griddepcontrol.launch_dependents`.
    pub dependency_launches: u64,
    /// Global load requests before the wait, of launches that may begin early.
    pub early_load_requests: u64,
}

/// Global load requests of 16 bytes a lane, `cp.async` among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WideLoads {
    /// Warp instructions.
    pub requests: u64,
    /// Sectors they touched.
    pub sectors: u64,
    /// Sectors that as many distinct bytes fill: 16 where every lane has its own.
    pub ideal_sectors: u64,
}

impl WideLoads {
    /// Adds other requests.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
    }
}

impl Counters {
    /// Adds another launch's counts.
    pub fn add(&mut self, other: &Self) {
        let merge = |into: &mut BTreeMap<u64, u64>, from: &BTreeMap<u64, u64>| {
            for (key, count) in from {
                *into.entry(*key).or_default() += count;
            }
        };
        for (key, count) in &other.instructions {
            *self.instructions.entry(key).or_default() += count;
        }
        merge(&mut self.sectors_loaded, &other.sectors_loaded);
        merge(&mut self.sectors_stored, &other.sectors_stored);
        self.load_requests += other.load_requests;
        self.ideal_load_sectors += other.ideal_load_sectors;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_replays += other.shared_replays;
        for (at, count) in &other.replays {
            *self.replays.entry(*at).or_default() += count;
        }
        self.wide_loads.add(&other.wide_loads);
        self.local_bytes = self.local_bytes.max(other.local_bytes);
        self.dependency_waits += other.dependency_waits;
        self.dependency_launches += other.dependency_launches;
        self.early_load_requests += other.early_load_requests;
    }
}

/// What kind of rule a kernel broke; the driver maps it to a CUDA error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Outside every live allocation, or past the end of one.
    OutOfBounds,
    /// Not a multiple of the access size.
    Misaligned,
    /// A byte nobody wrote.
    Uninitialised,
    /// A byte an unwaited `cp.async` is still bringing.
    UnwaitedCopy,
    /// A store, a load of what an unfinished kernel stored to, or an exit, in a launch that has not
    /// waited for the kernels before it.
    UnwaitedKernel,
    /// Two threads touch the same shared byte with no barrier between, one of them writing.
    SharedRace,
    /// A barrier, shuffle, vote or mma not all named threads reach together.
    IllegalSync,
    /// No thread can go on.
    Deadlock,
    /// Something the interpreter does not know: an instruction, a form, a directive.
    Unsupported,
    /// `trap`, or a launch that cannot be (block too large, too much shared memory).
    Trap,
}

/// A kernel that broke a rule. The message names kernel, PTX line, source line where known, CTA,
/// thread and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The rule.
    pub kind: FaultKind,
    /// The whole story, one paragraph.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Fault {}

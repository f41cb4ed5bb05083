//! Kernels on the software GPU, launched through the builders of this module.
//!
//! [`Gpu`] loads kernel files, holds buffers and runs [`Launch`]es; a broken rule
//! (bounds, uninitialised reads, races, illegal barriers) fails the test with the emulator's
//! message. Read next: `attention`, `sample`, `copy`; `weights`, then `linear`, `qkv`, `heads`,
//! `rows`, `invariance`; `dependent`.

mod attention;
mod copy;
mod dependent;
mod heads;
mod invariance;
mod layout;
mod linear;
mod qkv;
mod rows;
mod sample;
mod weights;

use crate::device::cuda::kernels;
use crate::device::cuda::launch::Launch;
use crate::device::cuda::layout::Address;
use crate::sample::philox4x32_10;
use bytemuck::{AnyBitPattern, NoUninit};
use gpu_emulator::launch::{Counters, Fault, LoadedModule, Options, Stored};
use gpu_emulator::memory::GlobalMemory;
use gpu_emulator::{exec, ptx};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Seeds of the interleaving under which results must not differ.
const SEEDS: [u64; 3] = [1, 2, 3];
/// Architectures whose PTX must give the same results.
const ARCHS: [&str; 2] = ["compute_80", "compute_90"];

/// A software GPU with the kernels of some files.
struct Gpu {
    memory: GlobalMemory,
    modules: Vec<Arc<LoadedModule>>,
    options: Options,
    serial: Cell<u64>,
    /// Where kernels wait for one another: what those since the last copy from the host stored to.
    unfinished: Option<RefCell<Stored>>,
}

impl Gpu {
    /// Loads `kernels/<subject>.cu` for every subject.
    fn new(subjects: &[&str], arch: &str, seed: u64) -> Self {
        Self::with(subjects.iter().map(|subject| parsed(subject, arch)), arch, seed)
    }

    /// Loads these modules for `arch`.
    fn with(modules: impl Iterator<Item = ptx::ir::Module>, arch: &str, seed: u64) -> Self {
        let memory = GlobalMemory::with_bytes(1 << 30);
        let place = |module| Arc::new(LoadedModule::place(module, &memory).unwrap());
        let modules = modules.map(place).collect();
        let unfinished = (arch == "compute_90").then(RefCell::default);
        let options = Options { seed, threads: 2 };
        Self { memory, modules, options, serial: Cell::new(0), unfinished }
    }

    /// A buffer that nobody has written.
    fn unwritten(&self, bytes: usize, label: &str) -> Address {
        Address(self.memory.allocate(bytes.max(1) as u64, label).unwrap())
    }

    /// A buffer that holds `values`.
    fn upload<T: NoUninit>(&self, values: &[T], label: &str) -> Address {
        let at = self.unwritten(size_of_val(values), label);
        self.write(at, values);
        at
    }

    /// Overwrites a part of a buffer.
    fn write<T: NoUninit>(&self, at: Address, values: &[T]) {
        self.memory.write(at.0, bytemuck::cast_slice(values)).unwrap();
        // What runs next would be launched behind a copy.
        self.unfinished.iter().for_each(|stored| stored.borrow_mut().clear());
    }

    /// Whether nobody has written any of these bytes.
    fn untouched(&self, at: Address, bytes: usize) -> bool {
        let unwritten = |byte| self.memory.first_unwritten(byte, 1).unwrap() == Some(byte);
        (at.0..at.0 + bytes as u64).all(unwritten)
    }

    /// `count` values; all of them must have been written.
    fn read<T: AnyBitPattern + NoUninit>(&self, at: Address, count: usize) -> Vec<T> {
        let bytes = (count * size_of::<T>()) as u64;
        let unwritten = self.memory.first_unwritten(at.0, bytes).unwrap();
        assert_eq!(unwritten, None, "unwritten in {}", self.memory.describe(at.0));
        let mut values = vec![T::zeroed(); count];
        self.memory.read(at.0, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    /// Runs a launch to its end.
    #[track_caller]
    fn run(&self, launch: &Launch) -> Counters {
        self.try_run(launch).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Runs a launch to its end or its first fault. Kernels that wait for one another may begin
    /// early, and are held to it.
    #[track_caller]
    fn try_run(&self, launch: &Launch) -> Result<Counters, Fault> {
        self.serial.set(self.serial.get() + 1);
        let find = |m: &Arc<LoadedModule>| Some((Arc::clone(m), m.module.find(launch.kernel)?));
        let (module, function) =
            self.modules.iter().find_map(find).unwrap_or_else(|| panic!("no {}", launch.kernel));
        let launch = gpu_emulator::launch::Launch {
            module,
            function,
            grid: launch.grid,
            block: [launch.threads, 1, 1],
            dynamic_shared_bytes: launch.shared_bytes,
            params: bytemuck::cast_slice(launch.params()).to_vec(),
            sms: 0..4,
            sm_count: 4,
            serial: self.serial.get(),
            unfinished: self.unfinished.as_ref().map(|stored| Arc::new(stored.borrow().clone())),
        };
        let counters = exec::run(&launch, &self.memory, self.options)?;
        if let Some(stored) = &self.unfinished {
            stored.borrow_mut().extend(counters.sectors_stored.keys());
        }
        Ok(counters)
    }

    /// The words of a constant that a kernel file defines.
    fn constant(&self, name: &str) -> Vec<u32> {
        let find = |m: &Arc<LoadedModule>| m.module.variables.iter().position(|v| v.name == name);
        let (module, index) = self
            .modules
            .iter()
            .find_map(|m| Some((m, find(m)?)))
            .unwrap_or_else(|| panic!("no kernel file defines {name}"));
        let count = module.module.variables[index].size as usize / 4;
        self.read(Address(module.addresses[name]), count)
    }
}

/// The PTX of a kernel file, as it lies in the program.
fn text(subject: &str, arch: &str) -> String {
    let built = kernels::built().expect("these tests are only compiled where there are kernels");
    let file = built.files.iter().find(|file| file.subject == subject).expect("a kernel file");
    let image = file.images.iter().find(|image| image.arch() == arch).expect("PTX of it");
    let text = String::from_utf8(image.load()).expect("PTX is text");
    text.trim_end_matches('\0').to_owned()
}

/// The same parsed, once a process.
fn parsed(subject: &str, arch: &str) -> ptx::ir::Module {
    static PARSED: Mutex<BTreeMap<String, ptx::ir::Module>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let parse = || ptx::parse(&text(subject, arch)).unwrap_or_else(|e| panic!("{subject}: {e}"));
    parsed.entry(format!("{subject} {arch}")).or_insert_with(parse).clone()
}

/// Uniform numbers in `[-1, 1)`, the same for the same seed.
fn noise(seed: u32, count: usize) -> Vec<f32> {
    (0..count.div_ceil(4) as u32)
        .flat_map(|block| philox4x32_10([block, seed, 0, 0], [7, 7]))
        .map(|word| (word >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .take(count)
        .collect()
}

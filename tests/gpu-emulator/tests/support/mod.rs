//! A device for tests: PTX in, launches, buffers, faults out.

// Every test file uses its own part, and a test that cannot be set up should panic.
#![allow(dead_code, clippy::unwrap_used)]

use gpu_emulator::exec;
use gpu_emulator::launch::{Counters, Fault, FaultKind, Launch, LoadedModule, Options};
use gpu_emulator::memory::GlobalMemory;
use gpu_emulator::ptx;
use std::sync::Arc;

/// What every hand-written kernel starts with: `out` in `%rd1`, `%tid.x` in `%r1`, `4 tid` in `%r2`
/// and `%rd2`, `out + 4 tid` in `%rd3`.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n\
         .visible .entry test(.param .u64 out, .param .u64 in, .param .u32 n) {{\n\
         .reg .b16 %h<8>;\n.reg .b32 %r<64>;\n.reg .f32 %f<64>;\n.reg .b64 %rd<32>;\n\
         .reg .pred %p<8>;\n.shared .align 16 .b8 tile[4096];\n\
         ld.param.u64 %rd1, [out];\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\n\
         mul.wide.u32 %rd2, %r1, 4;\nadd.u64 %rd3, %rd1, %rd2;\nld.param.u64 %rd4, [in];\n\
         mov.u32 %r3, tile;\nadd.u32 %r4, %r3, %r2;\n\
         {body}\n}}\n"
    )
}

/// A module on a device of its own.
pub(crate) struct Device {
    pub(crate) memory: GlobalMemory,
    pub(crate) module: Arc<LoadedModule>,
    pub(crate) options: Options,
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) spin_limit: u64,
    serial: std::cell::Cell<u64>,
}

impl Device {
    pub(crate) fn new(ptx: &str) -> Self {
        let module = ptx::parse(ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
        let memory = GlobalMemory::with_bytes(1 << 28);
        let module = LoadedModule::place(module, &memory).unwrap();
        Self {
            memory,
            module: Arc::new(module),
            options: Options { seed: 0, threads: 1 },
            dynamic_shared_bytes: 0,
            spin_limit: 1 << 20,
            serial: std::cell::Cell::new(0),
        }
    }

    /// An unwritten buffer.
    pub(crate) fn empty(&self, bytes: usize, label: &str) -> u64 {
        self.memory.allocate(bytes as u64, label).unwrap()
    }

    /// A buffer of these words.
    pub(crate) fn words(&self, words: &[u32], label: &str) -> u64 {
        let at = self.empty(words.len() * 4, label);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.memory.write(at, &bytes).unwrap();
        at
    }

    pub(crate) fn floats(&self, floats: &[f32], label: &str) -> u64 {
        self.words(&floats.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), label)
    }

    pub(crate) fn read(&self, at: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; count * 4];
        self.memory.read(at, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    pub(crate) fn read_floats(&self, at: u64, count: usize) -> Vec<f32> {
        self.read(at, count).into_iter().map(f32::from_bits).collect()
    }

    pub(crate) fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &[u8],
    ) -> Result<Counters, Fault> {
        self.launch_behind(None, name, grid, block, params)
    }

    /// A launch that may begin before kernels have ended that stored to buffers at these addresses.
    pub(crate) fn launch_behind(
        &self,
        unfinished: Option<&[u64]>,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &[u8],
    ) -> Result<Counters, Fault> {
        self.serial.set(self.serial.get() + 1);
        let launch = Launch {
            function: self.module.module.find(name).expect("the kernel exists"),
            module: Arc::clone(&self.module),
            grid,
            block,
            dynamic_shared_bytes: self.dynamic_shared_bytes,
            params: params.to_vec(),
            sms: 0..4,
            sm_count: 4,
            serial: self.serial.get(),
            unfinished: unfinished.map(|stored| Arc::new(stored.iter().copied().collect())),
        };
        exec::run_with_spin_limit(&launch, &self.memory, self.options, self.spin_limit)
    }
}

/// Parameter bytes with C alignment.
#[derive(Default)]
pub(crate) struct Params(pub(crate) Vec<u8>);

impl Params {
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// The result of one CTA of a hand-written kernel on a 4096-word output and an input that counts
/// up from 0.
pub(crate) fn run(body: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    run_grid(body, 1, threads, Options { seed: 0, threads: 1 }).map(|(words, _)| words)
}

pub(crate) fn run_grid(
    body: &str,
    ctas: u32,
    threads: u32,
    options: Options,
) -> Result<(Vec<u32>, Counters), Fault> {
    let mut device = Device::new(&kernel(body));
    device.options = options;
    device.spin_limit = 1 << 12;
    let out = device.words(&[0; 4096], "out");
    let input = device.words(&(0..4096).collect::<Vec<u32>>(), "in");
    let params = Params::default().u64(out).u64(input).u32(4096);
    let counters = device.launch("test", [ctas, 1, 1], [threads, 1, 1], &params.0)?;
    Ok((device.read(out, 4096), counters))
}

/// Asserts that a kernel breaks `kind` under every one of some seeds, and returns a message.
#[track_caller]
pub(crate) fn faults(kind: FaultKind, body: &str, threads: u32) -> String {
    let mut message = String::new();
    for seed in 0..6 {
        match run_grid(body, 1, threads, Options { seed, threads: 1 }) {
            Ok(_) => panic!("seed {seed}: ran, but should be {kind:?}:\n{body}"),
            Err(fault) => {
                assert_eq!(fault.kind, kind, "seed {seed}: {fault}\n{body}");
                message = fault.message;
            }
        }
    }
    assert!(message.contains("kernel 'test'") || message.contains("'test'"), "{message}");
    message
}

/// Asserts that a kernel runs under every one of some seeds, always with one result.
#[track_caller]
pub(crate) fn runs(body: &str, threads: u32) -> Vec<u32> {
    let mut results = (0..6).map(|seed| {
        run_grid(body, 1, threads, Options { seed, threads: 1 })
            .unwrap_or_else(|fault| panic!("seed {seed}: {fault}\n{body}"))
            .0
    });
    let first = results.next().expect("six seeds");
    for other in results {
        assert_eq!(first, other);
    }
    first
}

//! The driver's core against a stand-in for the executor: three kernels of a few lines of Rust.
//!
//! Each test runs what it claims under several seeds; a claim that a mistake is found says under
//! how many it is.

mod capture;
mod dependent;
mod graphs;
mod launches;
mod memory;
mod ordering;

use super::handles::Handle;
use super::host_memory::HostSpan;
use super::launch::LaunchRequest;
use super::work::Fill;
use super::{Driver, Machine};
use crate::driver::failure::{Code, Outcome};
use crate::driver::settings::Settings;
use crate::launch::{Counters, Fault, FaultKind, Launch};
use crate::memory::GlobalMemory;
use crate::ptx::ir;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Seeds that reach every temper of the scheduler, and the random one often.
const SEEDS: Range<u64> = 0..16;

const PTX: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

fn entry(name: &str, sizes: &[u32], limits: ir::Limits) -> ir::Function {
    let mut offset = 0;
    let mut params = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        offset = u32::next_multiple_of(offset, *size);
        params.push(ir::Param { name: format!("p{index}"), offset, size: *size, align: *size });
        offset += size;
    }
    ir::Function {
        name: name.to_owned(),
        kind: ir::Kind::Entry,
        params,
        returns: Vec::new(),
        param_bytes: offset,
        call_bytes: 0,
        planes: 0,
        predicates: 0,
        shared: Vec::new(),
        static_shared_bytes: 1024,
        dynamic_shared_offset: 1024,
        local_bytes: 0,
        limits,
        body: Vec::new(),
        line: 1,
    }
}

fn module() -> ir::Module {
    let limits = ir::Limits { max_threads: Some([128, 1, 1]), ..ir::Limits::default() };
    let variable = |name: &str, init: &[u8], relocations| ir::Variable {
        name: name.to_owned(),
        space: ir::Space::Global,
        align: 8,
        size: 8,
        init: init.to_vec(),
        relocations,
        external: false,
    };
    let relocation =
        ir::Relocation { offset: 0, bytes: 8, symbol: ir::Symbol::Variable(0), addend: 4 };
    ir::Module {
        version: (8, 0),
        target: "sm_80".to_owned(),
        functions: vec![
            entry("copy_word", &[8, 8], ir::Limits::default()),
            entry("add_word", &[8, 4], limits),
            entry("break_a_rule", &[4], ir::Limits::default()),
        ],
        variables: vec![
            variable("table", &[1, 2, 3], Vec::new()),
            variable("pointer", &[], vec![relocation]),
        ],
        ..ir::Module::default()
    }
}

const KINDS: [FaultKind; 9] = [
    FaultKind::OutOfBounds,
    FaultKind::Misaligned,
    FaultKind::Uninitialised,
    FaultKind::UnwaitedCopy,
    FaultKind::SharedRace,
    FaultKind::IllegalSync,
    FaultKind::Deadlock,
    FaultKind::Unsupported,
    FaultKind::Trap,
];

/// Runs one of the three kernels.
fn run(launch: &Launch, memory: &GlobalMemory) -> Result<(), Fault> {
    let u64_at = |at: usize| u64::from_le_bytes(launch.params[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(launch.params[at..at + 4].try_into().unwrap());
    let broken = |v: crate::memory::Violation| Fault { kind: v.kind, message: v.to_string() };
    let load = |at: u64| {
        if memory.first_unwritten(at, 4).map_err(broken)?.is_some() {
            let message = format!("{at:#x} was never written");
            return Err(Fault { kind: FaultKind::Uninitialised, message });
        }
        let mut bytes = [0; 4];
        memory.read(at, &mut bytes).map_err(broken)?;
        Ok(u32::from_le_bytes(bytes))
    };
    match launch.entry().name.as_str() {
        "copy_word" => {
            let word = load(u64_at(8))?;
            memory.write(u64_at(0), &word.to_le_bytes()).map_err(broken)
        }
        "add_word" => {
            let sum = load(u64_at(0))?.wrapping_add(u32_at(8));
            memory.write(u64_at(0), &sum.to_le_bytes()).map_err(broken)
        }
        _ => Err(Fault { kind: KINDS[u32_at(0) as usize], message: "as asked".to_owned() }),
    }
}

/// A device with a context, the module, and what its kernels were launched with.
struct Bench {
    driver: Driver,
    module: Handle,
    launches: Arc<Mutex<Vec<Launch>>>,
}

fn bench(seed: u64) -> Bench {
    bench_with(Settings { seed, memory_bytes: 1 << 24, threads: 1, ..Settings::default() })
}

fn bench_with(settings: Settings) -> Bench {
    let launches = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&launches);
    let machine = Machine {
        parse: Box::new(|text| {
            if text.contains("nonsense") {
                Err("line 4: nonsense".to_owned())
            } else {
                Ok(module())
            }
        }),
        run: Box::new(move |launch, memory, _| {
            seen.lock().unwrap().push(launch.clone());
            run(launch, memory)?;
            // Those that end well store to the word their first parameter points to.
            let at = u64::from_le_bytes(launch.params[..8].try_into().unwrap());
            let sectors_stored = [(at, 1)].into();
            Ok(Counters { load_requests: 1, sectors_stored, ..Counters::default() })
        }),
    };
    let mut driver = Driver::new(settings, machine);
    let context = driver.retain_primary();
    driver.caller = super::Caller { context: Some(context), thread: 1 };
    let module = driver.load_module(PTX).unwrap();
    Bench { driver, module, launches }
}

impl Bench {
    fn stream(&mut self) -> Handle {
        let stream = self.driver.create_stream(super::stream::NON_BLOCKING, 0).unwrap();
        self.settle();
        stream
    }

    /// What the C surface does after each call.
    fn settle(&mut self) {
        for _ in 0..self.driver.unasked() {
            match self.driver.step(None) {
                super::Step::Ran => {}
                super::Step::Host(id, call) => {
                    call.invoke();
                    self.driver.finish_host_call(id);
                }
                super::Step::Stuck => return,
            }
        }
    }

    fn word(&mut self) -> u64 {
        self.driver.allocate(4, "word").unwrap()
    }

    fn request(&mut self, name: &str, params: Vec<u8>) -> LaunchRequest {
        LaunchRequest {
            function: self.driver.function(self.module, name).unwrap(),
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared_bytes: 0,
            params,
            cooperative: false,
            programmatic: false,
            cluster: [1; 3],
        }
    }

    fn launch(&mut self, stream: Handle, name: &str, params: Vec<u8>) -> Outcome {
        let request = self.request(name, params);
        let outcome = self.driver.launch(stream, &request).map(|_| ());
        self.settle();
        outcome
    }

    fn copy_word(&mut self, stream: Handle, to: u64, from: u64) -> Outcome {
        self.launch(stream, "copy_word", pair(to, from))
    }

    fn add_word(&mut self, stream: Handle, at: u64, value: u32) -> Outcome {
        self.launch(stream, "add_word", addend(at, value))
    }

    fn set_word(&mut self, stream: Handle, at: u64, value: u32) {
        let fill =
            Fill { destination: at, value, element_bytes: 4, width: 1, height: 1, pitch_bytes: 0 };
        self.driver.fill(stream, fill).unwrap();
        self.settle();
    }

    fn record(&mut self, event: Handle, stream: Handle) {
        self.driver.record_event(event, stream).unwrap();
        self.settle();
    }

    fn wait(&mut self, stream: Handle, event: Handle) {
        self.driver.wait_event(stream, event).unwrap();
        self.settle();
    }

    fn synchronize(&mut self) -> Outcome {
        let everything = self.driver.everything();
        self.driver.complete(&everything)
    }

    fn synchronize_stream(&mut self, stream: Handle) -> Outcome {
        let targets = self.driver.stream_targets(stream)?;
        self.driver.complete(&targets)
    }

    fn peek(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.driver.memory.read(at, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
}

fn pair(to: u64, from: u64) -> Vec<u8> {
    [to.to_le_bytes(), from.to_le_bytes()].concat()
}

fn addend(at: u64, value: u32) -> Vec<u8> {
    [&at.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()
}

fn span_of(words: &[u32]) -> HostSpan {
    // SAFETY: the tests keep the words until the copy has run, and only read them after it.
    unsafe { HostSpan::new(words.as_ptr() as usize, size_of_val(words)) }
}

fn code(outcome: Outcome) -> Code {
    outcome.map_or_else(|failure| failure.code, |()| Code::Success)
}

/// Runs a scenario under every seed; answers how many of them it failed or gave another word.
fn seeds_that_differ(wanted: u32, scenario: impl Fn(&mut Bench) -> Outcome<u32>) -> usize {
    SEEDS.filter(|seed| scenario(&mut bench(*seed)) != Ok(wanted)).count()
}

//! What was done on the device: kernels and their counts, allocations, and the calls in order.
//!
//! Written as JSON to `FORERUN_EMULATOR_REPORT` at exit or on demand. It holds counts, never times.
//! Read next: the emulator's README, which describes the fields.

use super::failure::Failure;
use super::settings::Settings;
use crate::launch::{Counters, Launch};
use crate::memory::GlobalMemory;
use crate::ptx::loops::of_mma_loops;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Calls the log holds; later ones are only counted.
const LOG_ENTRIES_MAX: usize = 1 << 20;

/// One driver call, as the log keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// The entry point.
    pub name: &'static str,
    /// Number of the stream; 0 is the default stream.
    pub stream: Option<u32>,
    /// Bytes moved or allocated.
    pub bytes: Option<u64>,
    /// The kernel of a launch.
    pub kernel: Option<String>,
    /// The executable graph of a launch, by its number in `graphs`.
    pub graph: Option<u32>,
    /// Grid and block of a launch.
    pub shape: Option<([u32; 3], [u32; 3])>,
    /// Whether a launch asked to begin before its predecessor has ended.
    pub programmatic: bool,
    /// Whether the host waited, or may have had to, for the device.
    pub host_sync: bool,
    /// Whether the host side of a copy was pageable memory.
    pub pageable: bool,
    /// Whether a failure is a runtime's way of asking, and not worth a line on stderr.
    pub is_question: bool,
    /// What the call returned, when it was not success.
    pub code: Option<u32>,
    /// Why.
    pub reason: String,
}

#[derive(Debug)]
enum Entry {
    Call(Call),
    Mark(String),
}

#[derive(Debug, Default)]
struct Kernel {
    launches: u64,
    /// Of them, those that may begin before their predecessor has ended.
    early_launches: u64,
    counters: Counters,
    sectors_loaded: BTreeMap<String, u64>,
    sectors_stored: BTreeMap<String, u64>,
    /// By source line, and whether that is of a loop that multiplies.
    replays: BTreeMap<(String, bool), u64>,
    dynamic_shared_bytes_max: u32,
    static_shared_bytes: u32,
}

#[derive(Debug)]
struct Allocation {
    bytes: u64,
    label: String,
    freed: bool,
    parts: Vec<(u64, u64, String)>,
}

/// Everything that goes into the report.
#[derive(Debug)]
pub struct Report {
    device: Value,
    kernels: BTreeMap<String, Kernel>,
    /// Kernels of executable graphs, and whether each may begin before its predecessor has ended.
    graphs: BTreeMap<u32, Vec<(String, bool)>>,
    allocations: BTreeMap<u64, Allocation>,
    log: Vec<Entry>,
    calls: BTreeMap<&'static str, u64>,
    dropped: u64,
    unwritten_downloads: u64,
    failures: Vec<Failure>,
}

impl Report {
    /// An empty report of a device.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            device: json!({
                "name": super::device::NAME,
                "capability": settings.capability.number(),
                "sm_count": settings.sm_count,
                "memory_bytes": settings.memory_bytes,
                "seed": settings.seed,
            }),
            kernels: BTreeMap::new(),
            graphs: BTreeMap::new(),
            allocations: BTreeMap::new(),
            log: Vec::new(),
            calls: BTreeMap::new(),
            dropped: 0,
            unwritten_downloads: 0,
            failures: Vec::new(),
        }
    }

    /// Forgets kernels, calls and failures; live allocations stay.
    pub fn clear(&mut self) {
        self.kernels.clear();
        self.allocations.retain(|_, allocation| !allocation.freed);
        self.log.clear();
        self.calls.clear();
        self.dropped = 0;
        self.unwritten_downloads = 0;
        self.failures.clear();
    }

    fn push(&mut self, entry: Entry) {
        if self.log.len() < LOG_ENTRIES_MAX {
            self.log.push(entry);
        } else {
            self.dropped += 1;
        }
    }

    /// A call was answered.
    pub fn called(&mut self, call: Call) {
        *self.calls.entry(call.name).or_default() += 1;
        self.push(Entry::Call(call));
    }

    /// A call too frequent and too cheap to keep was answered.
    pub fn counted(&mut self, name: &'static str) {
        *self.calls.entry(name).or_default() += 1;
    }

    /// The program under test marks a place in the log.
    pub fn mark(&mut self, text: &str) {
        self.push(Entry::Mark(text.to_owned()));
    }

    /// An executable graph of that number runs these kernels, in this order; `true`: it may begin
    /// before its predecessor has ended.
    pub fn instantiated(&mut self, number: u32, kernels: Vec<(String, bool)>) {
        self.graphs.insert(number, kernels);
    }

    /// The device failed, or refused an image.
    pub fn failed(&mut self, failure: &Failure) {
        self.failures.push(failure.clone());
    }

    /// Bytes nobody wrote were copied to the host.
    pub fn downloaded_unwritten(&mut self) {
        self.unwritten_downloads += 1;
    }

    /// An allocation was made.
    pub fn allocated(&mut self, address: u64, bytes: u64, label: &str) {
        let label = label.to_owned();
        self.allocations
            .insert(address, Allocation { bytes, label, freed: false, parts: Vec::new() });
    }

    /// An allocation was freed, or its free was enqueued.
    pub fn freed(&mut self, address: u64) {
        if let Some(allocation) = self.allocations.get_mut(&address) {
            allocation.freed = true;
        }
    }

    /// An allocation has a name.
    pub fn labelled(&mut self, address: u64, label: &str) {
        if let Some(allocation) = self.allocations.get_mut(&address) {
            label.clone_into(&mut allocation.label);
        }
    }

    /// A part of an allocation has a name.
    pub fn carved(&mut self, address: u64, bytes: u64, label: &str) {
        if let Some((_, allocation)) = self.allocations.range_mut(..=address).next_back() {
            let parts = &mut allocation.parts;
            parts.retain(|(at, size, _)| at + size <= address || *at >= address + bytes);
            parts.push((address, bytes, label.to_owned()));
            parts.sort_unstable();
        }
    }

    /// The name of whatever lies at `address`: a part, an allocation, or the address itself.
    fn name_of(&self, address: u64, memory: &GlobalMemory) -> String {
        let base = memory.allocation(address).map_or(address, |found| found.base);
        let Some(allocation) = self.allocations.get(&base) else { return format!("{address:#x}") };
        let part =
            allocation.parts.iter().find(|(at, bytes, _)| (*at..at + bytes).contains(&address));
        match part {
            Some((_, _, label)) => label.clone(),
            None if allocation.label.is_empty() => format!("{base:#x}"),
            None => allocation.label.clone(),
        }
    }

    /// A kernel ran.
    pub fn ran(&mut self, name: &str, launch: &Launch, counters: &Counters, memory: &GlobalMemory) {
        let named = |sectors: &BTreeMap<u64, u64>| -> Vec<(String, u64)> {
            sectors.iter().map(|(at, count)| (self.name_of(*at, memory), *count)).collect()
        };
        let (loaded, stored) = (named(&counters.sectors_loaded), named(&counters.sectors_stored));
        let replays = replays(launch, counters);
        let kernel = self.kernels.entry(name.to_owned()).or_default();
        kernel.launches += 1;
        kernel.early_launches += u64::from(launch.unfinished.is_some());
        kernel.counters.add(counters);
        for (label, count) in loaded {
            *kernel.sectors_loaded.entry(label).or_default() += count;
        }
        for (label, count) in stored {
            *kernel.sectors_stored.entry(label).or_default() += count;
        }
        for (place, count) in replays {
            *kernel.replays.entry(place).or_default() += count;
        }
        kernel.dynamic_shared_bytes_max =
            kernel.dynamic_shared_bytes_max.max(launch.dynamic_shared_bytes);
        kernel.static_shared_bytes = launch.entry().static_shared_bytes;
    }

    /// The whole report.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let calls = self.log.iter().filter_map(|entry| match entry {
            Entry::Call(call) => Some(call),
            Entry::Mark(_) => None,
        });
        let graphs = |of: fn(&(String, bool)) -> Value| -> Map<String, Value> {
            let kernels = |kernels: &Vec<_>| kernels.iter().map(of).collect();
            self.graphs.iter().map(|(number, all)| (number.to_string(), kernels(all))).collect()
        };
        json!({
            "device": self.device,
            "failures": self.failures.iter().map(|failure| json!({
                "code": failure.code as u32,
                "name": failure.code.name().to_string_lossy(),
                "reason": failure.reason,
            })).collect::<Vec<_>>(),
            "kernels": self.kernels.iter().map(|(name, kernel)| (name.clone(), kernel.to_json()))
                .collect::<Map<_, _>>(),
            "graphs": graphs(|(name, _)| name.as_str().into()),
            "early_in_graphs": graphs(|(_, early)| (*early).into()),
            "allocations": self.allocations.iter().map(|(at, allocation)| allocation.to_json(*at))
                .collect::<Vec<_>>(),
            "calls": self.calls,
            "host_syncs": calls.filter(|call| call.host_sync).count(),
            "log": self.log.iter().map(Entry::to_json).collect::<Vec<_>>(),
            "log_entries_dropped": self.dropped,
            "unwritten_downloads": self.unwritten_downloads,
        })
    }
}

/// A launch's bank conflicts by source line, else by line of the PTX, and whether each is of a loop
/// that multiplies.
fn replays(launch: &Launch, counters: &Counters) -> BTreeMap<(String, bool), u64> {
    let module = &launch.module.module;
    let mut of_mma_loop = BTreeMap::new();
    let mut replays = BTreeMap::new();
    for ((function, at), count) in &counters.replays {
        let body = &module.functions[*function].body;
        let loops = of_mma_loop.entry(function).or_insert_with(|| of_mma_loops(body));
        let instruction = &body[*at as usize];
        let source =
            instruction.source.and_then(|(file, line)| Some((module.files.get(&file)?, line)));
        let place = match source {
            Some((file, line)) => format!("{file}:{line}"),
            None => format!("PTX line {}", instruction.line),
        };
        *replays.entry((place, loops[*at as usize])).or_default() += count;
    }
    replays
}

impl Kernel {
    fn to_json(&self) -> Value {
        let counters = &self.counters;
        json!({
            "launches": self.launches,
            "early_launches": self.early_launches,
            "registers": null,
            "static_shared_bytes": self.static_shared_bytes,
            "dynamic_shared_bytes_max": self.dynamic_shared_bytes_max,
            "instructions": counters.instructions,
            "sectors_loaded": self.sectors_loaded,
            "sectors_stored": self.sectors_stored,
            "load_requests": counters.load_requests,
            "ideal_load_sectors": counters.ideal_load_sectors,
            "shared_wavefronts": counters.shared_wavefronts,
            "shared_replays": counters.shared_replays,
            "replays": self.replays.iter().map(|((place, of_mma_loop), count)| json!({
                "place": place,
                "of_mma_loop": of_mma_loop,
                "count": count,
            })).collect::<Vec<_>>(),
            "wide_loads": {
                "requests": counters.wide_loads.requests,
                "sectors": counters.wide_loads.sectors,
                "ideal_sectors": counters.wide_loads.ideal_sectors,
            },
            "local_bytes": counters.local_bytes,
            "dependency_waits": counters.dependency_waits,
            "dependency_launches": counters.dependency_launches,
            "early_load_requests": counters.early_load_requests,
        })
    }
}

impl Allocation {
    fn to_json(&self, address: u64) -> Value {
        json!({
            "address": format!("{address:#x}"),
            "bytes": self.bytes,
            "label": self.label,
            "freed": self.freed,
            "parts": self.parts.iter().map(|(at, bytes, label)| json!({
                "address": format!("{at:#x}"),
                "bytes": bytes,
                "label": label,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Entry {
    fn to_json(&self) -> Value {
        let call = match self {
            Self::Mark(text) => return json!({ "mark": text }),
            Self::Call(call) => call,
        };
        let mut entry = Map::new();
        entry.insert("call".into(), call.name.into());
        if let Some(stream) = call.stream {
            entry.insert("stream".into(), stream.into());
        }
        if let Some(bytes) = call.bytes {
            entry.insert("bytes".into(), bytes.into());
        }
        if let Some(kernel) = &call.kernel {
            entry.insert("kernel".into(), kernel.as_str().into());
        }
        if let Some(graph) = call.graph {
            entry.insert("graph".into(), graph.into());
        }
        if let Some((grid, block)) = call.shape {
            entry.insert("grid".into(), json!(grid));
            entry.insert("block".into(), json!(block));
        }
        if call.programmatic {
            entry.insert("programmatic".into(), true.into());
        }
        if call.host_sync {
            entry.insert("host_sync".into(), true.into());
        }
        if call.pageable {
            entry.insert("pageable".into(), true.into());
        }
        if let Some(code) = call.code {
            entry.insert("code".into(), code.into());
            if !call.reason.is_empty() {
                entry.insert("reason".into(), call.reason.as_str().into());
            }
        }
        entry.into()
    }
}

//! What one launch did, out of the software GPU's report.

use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes of a sector.
pub(crate) const SECTOR_BYTES: u64 = 32;

/// Whose memory it is. Allocations are labelled with the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Region {
    /// Packed matrices.
    Weights,
    /// The page pool.
    Kv,
    /// Norm weights, biases, the rotary table.
    Vectors,
    /// Rows between kernels, partial sums, results.
    Activations,
    /// Staged batches.
    Staged,
}

impl Region {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Weights, Self::Kv, Self::Vectors, Self::Activations, Self::Staged];

    /// The label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Kv => "KV",
            Self::Vectors => "vectors",
            Self::Activations => "activations",
            Self::Staged => "staged",
        }
    }
}

/// One launch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launch {
    pub(crate) kernel: String,
    /// CTAs along x, y, z.
    pub(crate) grid: [u32; 3],
    /// Of a CTA.
    pub(crate) threads: u32,
    /// Of a CTA, dynamic.
    pub(crate) shared_bytes: u32,
    /// Sectors loaded and stored, by region, every request counted.
    pub(crate) sectors: BTreeMap<Region, u64>,
    /// Requests of 16 bytes a lane, the sectors they touched, and would have ideally.
    pub(crate) wide_loads: [u64; 3],
    /// Passes over the banks of shared memory, conflicts among them.
    pub(crate) wavefronts: u64,
    /// Passes that conflicts cost: in loops around an `mma`, and elsewhere.
    pub(crate) replays: [u64; 2],
    /// The source lines of the conflicts.
    pub(crate) replay_places: Vec<String>,
    /// Instructions of warps, and of them `mma` and barriers.
    pub(crate) instructions: u64,
    pub(crate) mmas: u64,
    pub(crate) barriers: u64,
    /// Local memory of a thread.
    pub(crate) local_bytes: u64,
}

impl Launch {
    /// CTAs.
    pub(crate) fn ctas(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }

    /// Bytes requested of all regions.
    pub(crate) fn all_bytes(&self) -> u64 {
        self.sectors.values().sum::<u64>() * SECTOR_BYTES
    }

    /// Bytes requested of a region.
    pub(crate) fn bytes(&self, region: Region) -> u64 {
        self.sectors.get(&region).copied().unwrap_or(0) * SECTOR_BYTES
    }
}

/// The launches since the report was cleared, in order.
///
/// # Panics
/// If a kernel was launched twice: its counts would be of both; or if it touched memory nobody
/// labelled.
pub(crate) fn launches(report: &Value) -> Vec<Launch> {
    assert_eq!(report["failures"], Value::Array(vec![]), "the software GPU found a fault");
    let log = report["log"].as_array().expect("a log");
    let calls = log.iter().filter(|call| call["kernel"].is_string());
    calls.map(|call| launch(call, &report["kernels"])).collect()
}

fn launch(call: &Value, kernels: &Value) -> Launch {
    let name = call["kernel"].as_str().expect("a name");
    let kernel = &kernels[name];
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{name}: {value}"));
    assert_eq!(count(&kernel["launches"]), 1, "{name} was launched more than once");
    let side = |value: &Value| [0, 1, 2].map(|i| count(&value[i]) as u32);
    let mut sectors = BTreeMap::new();
    for which in ["sectors_loaded", "sectors_stored"] {
        for (label, n) in kernel[which].as_object().expect("sectors by label") {
            let region = Region::ALL.into_iter().find(|region| region.name() == label);
            // The kernels' own constants lie in their module.
            let region = region.unwrap_or(Region::Staged);
            *sectors.entry(region).or_default() += count(n);
        }
    }
    let (mut replays, mut replay_places) = ([0; 2], vec![]);
    for replay in kernel["replays"].as_array().expect("replays") {
        let of_loop = replay["of_mma_loop"] == Value::Bool(true);
        replays[usize::from(!of_loop)] += count(&replay["count"]);
        replay_places.push(format!("{}: {}", replay["place"], replay["count"]));
    }
    let wide = &kernel["wide_loads"];
    let classes = kernel["instructions"].as_object().expect("instructions by class");
    let class = |name: &str| classes.get(name).map_or(0, count);
    Launch {
        kernel: name.to_owned(),
        grid: side(&call["grid"]),
        threads: side(&call["block"])[0],
        shared_bytes: count(&kernel["dynamic_shared_bytes_max"]) as u32,
        sectors,
        wide_loads: ["requests", "sectors", "ideal_sectors"].map(|name| count(&wide[name])),
        wavefronts: count(&kernel["shared_wavefronts"]),
        replays,
        replay_places,
        instructions: classes.values().map(count).sum(),
        mmas: class("mma"),
        barriers: class("barrier"),
        local_bytes: count(&kernel["local_bytes"]),
    }
}

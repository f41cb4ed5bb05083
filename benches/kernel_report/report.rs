//! Counts, machine code and the model together: what a token and a scoring take.

use crate::counts::{Launch, Region};
use crate::measure::{LAYER, Measured, Op, Pass};
use crate::model::{Gpu, Work, ends_us};
use crate::sass::{Compilation, Compiled, Format};
use crate::shapes::{Fixture, Mix, Part};
use forerun::device::BlockType;

/// One model's measurements.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) fixture: Fixture,
    pub(crate) mix: Mix,
    pub(crate) measured: Vec<Measured>,
}

/// A predicted time, and the time its bytes alone take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Predicted {
    pub(crate) us: f64,
    pub(crate) floor_us: f64,
}

impl Predicted {
    /// How near the time is to the floor, at most 1.
    pub(crate) fn share(&self) -> f64 {
        self.floor_us / self.us
    }
}

/// The format that a block type is kept in.
fn format_of(kind: BlockType) -> Format {
    match kind {
        BlockType::Q8_0 | BlockType::Q5_0 => Format::Q8_0,
        BlockType::Q4_K => Format::Q4_K,
        BlockType::Q6_K => Format::Q6_K,
        _ => Format::Bf16,
    }
}

/// Bytes a CTA has in flight.
fn in_flight_bytes(measured: &Measured, launch: &Launch, compiled: &Compiled) -> f64 {
    let of_loop = measured.kind.zip(compiled.code.as_ref());
    let of_loop = of_loop.and_then(|(kind, code)| code.in_flight_bytes.get(&format_of(kind)));
    let bytes = match (of_loop, launch.shared_bytes) {
        (Some(bytes), _) => bytes * launch.threads,
        // Attention: two stages of keys and values of five such parts, the queries the fifth.
        (None, 1..) => launch.shared_bytes / 5 * 4,
        (None, 0) => 64 * launch.threads,
    };
    f64::from(bytes)
}

/// Equal parts that a launch's CTAs have one or several of.
fn parts(measured: &Measured, launch: &Launch) -> usize {
    let ctas = launch.ctas() as usize;
    let Some(panels) = measured.dealt_panels else { return ctas };
    // As many panels a CTA as `ops::matrix` says.
    let of_group = match launch.kernel.rsplit('_').next() {
        Some("n32") => 4,
        Some("n64") => 8,
        _ => 1,
    };
    panels.div_ceil(of_group) * (launch.grid[0] * launch.grid[2]) as usize
}

/// A measured launch as the model sees it; none where the program has no cubin for the GPU, or
/// nothing disassembled it.
pub(crate) fn work(
    gpu: &Gpu,
    compilation: &Compilation,
    measured: &Measured,
    launch: &Launch,
) -> Option<Work> {
    let compiled = compilation.get(gpu.arch)?.get(&launch.kernel)?;
    let code = compiled.code.as_ref()?;
    let ctas = launch.ctas();
    let warps = u64::from(launch.threads.div_ceil(32)) * ctas;
    let is_attention = measured.op == Op::Attention;
    let reads_memory = launch.bytes(Region::Weights) + launch.bytes(Region::Kv) > 0;
    let has_weights = measured.weight_bytes > 0 && launch.bytes(Region::Weights) > 0;
    let distinct = if measured.op == Op::Attention && launch.bytes(Region::Kv) > 0 {
        measured.kv_bytes
    } else if has_weights {
        measured.weight_bytes
    } else {
        0
    };
    let bytes = launch.all_bytes() as f64;
    Some(Work {
        ctas: ctas as usize,
        parts: parts(measured, launch),
        threads: launch.threads,
        registers: compiled.registers,
        shared_bytes: launch.shared_bytes + compiled.static_shared_bytes,
        bytes,
        memory_bytes: if reads_memory { (distinct as f64).min(bytes) } else { 0.0 },
        in_flight_bytes: in_flight_bytes(measured, launch, compiled),
        loads_ahead: has_weights,
        lets_begin_early: code.lets_begin_early,
        // Attention waits for a tile and says when it is done with it: two barriers a round.
        barriers: launch.barriers as f64 / warps as f64 / if is_attention { 2.0 } else { 1.0 },
        instructions: launch.instructions as f64,
        mmas: launch.mmas as f64,
    })
}

impl Model {
    /// One operation of one pass.
    pub(crate) fn of(&self, part: Part, pass: Pass, op: Op) -> Option<&Measured> {
        self.measured.iter().find(|m| (m.part, m.pass, m.op) == (part, pass, op))
    }

    /// The operations of a layer, in order; empty where it was not measured.
    pub(crate) fn layer(&self, part: Part, pass: Pass) -> Vec<&Measured> {
        LAYER.iter().filter_map(|op| self.of(part, pass, *op)).collect()
    }

    /// Kinds of layers that were measured, and how many the model has of each.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (Part, usize)> {
        self.mix.layers(&self.fixture).into_iter().filter(|(_, count)| *count > 0)
    }

    /// Sums something over every operation of a pass, with its head.
    pub(crate) fn sum(&self, pass: Pass, of: impl Fn(&Measured) -> u64) -> u64 {
        let layers = self.layers().map(|(part, count)| {
            count as u64 * self.layer(part, pass).into_iter().map(&of).sum::<u64>()
        });
        layers.sum::<u64>() + self.of(Part::Head, pass, Op::Head).map_or(0, &of)
    }

    /// Bytes of a pass that memory must give: weights, keys and values, once.
    pub(crate) fn floor_bytes(&self, pass: Pass) -> u64 {
        self.sum(pass, |m| m.weight_bytes + m.kv_bytes)
    }

    fn works(&self, gpu: &Gpu, all: &Compilation, of: &[&Measured]) -> Option<Vec<Work>> {
        let each = |m: &&Measured| -> Option<Vec<Work>> {
            m.launches.iter().map(|launch| work(gpu, all, m, launch)).collect()
        };
        Some(of.iter().map(each).collect::<Option<Vec<_>>>()?.concat())
    }

    /// What each launch adds to the time of a layer among its like, the third of three; nothing
    /// where that is not known.
    pub(crate) fn adds_us(&self, gpu: &Gpu, all: &Compilation, part: Part, pass: Pass) -> Vec<f64> {
        let Some(layer) = self.works(gpu, all, &self.layer(part, pass)) else { return vec![] };
        let ends = ends_us(gpu, &[&layer[..]; 3].concat());
        let third = ends.len() / 3 * 2..ends.len();
        third.map(|i| ends[i] - ends[i - 1]).collect()
    }

    /// The time of a whole pass: embedding, layers, head.
    pub(crate) fn predicted(&self, gpu: &Gpu, all: &Compilation, pass: Pass) -> Option<Predicted> {
        let mut us = 0.0;
        for (part, count) in self.layers() {
            let adds = self.adds_us(gpu, all, part, pass);
            if adds.is_empty() {
                return None;
            }
            us += count as f64 * adds.iter().sum::<f64>();
        }
        let ends = [self.of(Part::Head, pass, Op::Head)?, self.of(Part::Layer, pass, Op::Embed)?];
        let layer = self.works(gpu, all, &self.layer(Part::Layer, pass))?;
        let around = self.works(gpu, all, &ends)?;
        let times = ends_us(gpu, &[layer.clone(), around].concat());
        us += times.last()? - times[layer.len() - 1];
        let floor_us = self.floor_bytes(pass) as f64 / (gpu.gb_per_s * 1e3);
        Some(Predicted { us, floor_us })
    }
}

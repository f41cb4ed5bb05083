//! What the kernels must keep to, and what they reach.

use crate::counts::{Launch, Region};
use crate::measure::{Measured, Op, Pass};
use crate::model::{GPUS, Gpu, H100};
use crate::report::Model;
use crate::sass::{Compilation, Format};
use crate::shapes::{Fixture, Mix, Part, QWQ_32B, R1_1_5B};

/// A number with its bound.
#[derive(Debug, Clone)]
pub(crate) struct Contract {
    pub(crate) what: &'static str,
    /// Of which model, kernel or architecture.
    pub(crate) of: String,
    pub(crate) bound: Bound,
    pub(crate) reached: f64,
    /// Whether it is the model's, not counted.
    pub(crate) is_model: bool,
}

/// A limit from above or below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Contract {
    fn new(what: &'static str, of: impl Into<String>, bound: Bound, reached: f64) -> Self {
        Self { what, of: of.into(), bound, reached, is_model: false }
    }

    fn by_model(self) -> Self {
        Self { is_model: true, ..self }
    }

    /// Whether the contract is kept.
    pub(crate) fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(limit) => self.reached <= limit,
            Bound::AtLeast(limit) => self.reached >= limit,
        }
    }
}

/// All that can be said of `models` and the kernels.
pub(crate) fn contracts(models: &[Model], compilation: &Compilation) -> Vec<Contract> {
    let mut all = vec![];
    for model in models {
        all.extend(of_traffic(model));
        all.extend(of_shared_memory(model));
    }
    all.extend(of_compilation(compilation));
    all.extend(of_in_flight(compilation));
    all.extend(models.iter().filter_map(|model| of_decode(model, compilation)));
    all.extend(models.iter().filter_map(|model| of_scoring(model, compilation)));
    all
}

fn named(model: &Model, pass: Pass) -> String {
    format!("{} {}, {} rows", model.fixture.name, model.mix.name(), pass.rows())
}

fn bytes(measured: &Measured, regions: &[Region]) -> u64 {
    let of = |launch: &Launch| regions.iter().map(|r| launch.bytes(*r)).sum::<u64>();
    measured.launches.iter().map(of).sum()
}

fn of_traffic(model: &Model) -> Vec<Contract> {
    let mut all = vec![];
    let was_measured = |pass| !model.layer(Part::Layer, pass).is_empty();
    for pass in [Pass::Decode, Pass::Verify].into_iter().filter(|pass| was_measured(*pass)) {
        let asked = model.sum(pass, |m| bytes(m, &[Region::Weights]));
        let needed = model.sum(pass, |m| m.weight_bytes);
        let ratio = asked as f64 / needed as f64;
        let bound = Bound::AtMost(1.05);
        let name = "bytes of weights requested, of those there are";
        all.push(Contract::new(name, named(model, pass), bound, ratio));
    }
    if let Some(attention) = model.of(Part::Layer, Pass::Decode, Op::Attention) {
        let ratio = bytes(attention, &[Region::Kv]) as f64 / attention.kv_bytes as f64;
        let name = "bytes of keys and values requested, of those there are";
        all.push(Contract::new(name, named(model, Pass::Decode), Bound::AtMost(1.1), ratio));
        let layer = model.layer(Part::Layer, Pass::Decode);
        let count = layer.iter().map(|m| m.launches.len()).sum::<usize>() as f64;
        let name = "launches a layer";
        all.push(Contract::new(name, named(model, Pass::Decode), Bound::AtMost(6.0), count));
    }
    if model.fixture == QWQ_32B && was_measured(Pass::Decode) {
        let rest = [Region::Activations, Region::Vectors, Region::Staged];
        let rest = model.sum(Pass::Decode, |m| bytes(m, &rest)) as f64;
        let all_bytes = model.sum(Pass::Decode, |m| bytes(m, &Region::ALL)) as f64;
        let name = "activations, partial sums and vectors, of all bytes requested";
        all.push(Contract::new(
            name,
            named(model, Pass::Decode),
            Bound::AtMost(0.1),
            rest / all_bytes,
        ));
    }
    if let Some(head) = model.of(Part::Head, Pass::Propose, Op::Head) {
        let ratio = bytes(head, &[Region::Weights]) as f64 / head.weight_bytes as f64;
        let name = "bytes of a head's first ids requested, of those there are";
        all.push(Contract::new(name, named(model, Pass::Propose), Bound::AtMost(1.05), ratio));
    }
    let head = |pass| model.of(Part::Head, pass, Op::Head).map(|m| bytes(m, &Region::ALL) as f64);
    if let (Some(labels), Some(full)) = (head(Pass::Score), head(Pass::Decode)) {
        let name = "bytes of ten labels, of the whole head's";
        all.push(Contract::new(
            name,
            named(model, Pass::Score),
            Bound::AtMost(0.01),
            labels / full,
        ));
    }
    all
}

fn of_shared_memory(model: &Model) -> Vec<Contract> {
    let launches = || model.measured.iter().flat_map(|m| &m.launches);
    let of = format!("{} {}", model.fixture.name, model.mix.name());
    let wide = |l: &Launch| {
        let [requests, touched, ideal] = l.wide_loads;
        (requests > 0).then(|| touched as f64 / ideal as f64)
    };
    let worst_wide = launches().filter_map(|l| Some((wide(l)?, l.kernel.as_str())));
    let (wide, of_kernel) = worst_wide.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((1.0, "none"));
    let of_loops: u64 = launches().map(|l| l.replays[0]).sum();
    let worst = launches()
        .filter(|l| l.mmas > 0)
        .map(|l| l.replays.iter().sum::<u64>() as f64 / l.wavefronts.max(1) as f64)
        .fold(0.0, f64::max);
    let local: u64 = launches().map(|l| l.local_bytes).sum();
    vec![
        Contract::new(
            "sectors of 16-byte loads, of the ideal; the worst kernel",
            format!("{of}, {of_kernel}"),
            Bound::AtMost(1.0),
            wide,
        ),
        Contract::new(
            "bank replays in loops that multiply",
            &of,
            Bound::AtMost(0.0),
            of_loops as f64,
        ),
        Contract::new(
            "bank replays, of all passes over the banks; the worst kernel",
            &of,
            Bound::AtMost(0.01),
            worst,
        ),
        Contract::new("bytes of local memory", &of, Bound::AtMost(0.0), local as f64),
    ]
}

fn of_compilation(compilation: &Compilation) -> Vec<Contract> {
    let mut all = vec![];
    for (arch, kernels) in compilation {
        let spilled: u32 = kernels.values().map(|k| k.spilled_bytes + k.stack_bytes).sum();
        let name = "bytes of spills and stack in all kernels";
        all.push(Contract::new(name, *arch, Bound::AtMost(0.0), f64::from(spilled)));
        if kernels.values().all(|kernel| kernel.code.is_some()) {
            let codes = kernels.values().filter_map(|kernel| kernel.code.as_ref());
            let local: usize = codes.map(|code| code.local).sum();
            let name = "loads and stores of local memory in the machine code";
            all.push(Contract::new(name, *arch, Bound::AtMost(0.0), local as f64));
        }
    }
    all
}

/// The kernels of decode that stream matrices.
const DECODE_KERNELS: [&str; 4] =
    ["forerun_qkv_n8", "forerun_project_n8", "forerun_gate_up_n8", "forerun_head_n8"];

/// KiB an SM has under way in a decode matmul of `format`, on `gpu`.
pub(crate) fn in_flight_kib(
    gpu: &Gpu,
    compilation: &Compilation,
    kernel: &str,
    shared_bytes: u32,
    format: Format,
) -> Option<f64> {
    let compiled = compilation.get(gpu.arch)?.get(kernel)?;
    let bytes = *compiled.code.as_ref()?.in_flight_bytes.get(&format)?;
    let by_registers = (1 << 16) / ((compiled.registers * 32).next_multiple_of(256) * 8);
    let by_shared = gpu.shared_bytes / (shared_bytes + compiled.static_shared_bytes + (1 << 10));
    Some(f64::from(by_registers.min(by_shared).min(8) * 256 * bytes) / 1024.0)
}

/// Shared memory of a CTA of 8 tokens.
const DECODE_SHARED_BYTES: u32 = 36_896;

fn of_in_flight(compilation: &Compilation) -> Vec<Contract> {
    let mut all = vec![];
    for gpu in GPUS.iter().filter(|gpu| gpu.name != "H200") {
        for format in [Format::Bf16, Format::Q8_0, Format::Q4_K, Format::Q6_K] {
            let of = DECODE_KERNELS.iter().filter_map(|kernel| {
                in_flight_kib(gpu, compilation, kernel, DECODE_SHARED_BYTES, format)
            });
            let Some(least) = of.min_by(f64::total_cmp) else { continue };
            all.push(Contract::new(
                "KiB in flight an SM in decode; the least of the matrix kernels",
                format!("{} {}", gpu.arch, format.name()),
                Bound::AtLeast(32.0),
                least,
            ));
        }
    }
    all
}

fn of_decode(model: &Model, compilation: &Compilation) -> Option<Contract> {
    let bound = match model.fixture {
        QWQ_32B => 0.85,
        R1_1_5B => 0.78,
        _ => return None,
    };
    let token = model.predicted(&H100, compilation, Pass::Decode)?;
    (model.mix == Mix::Bf16).then(|| {
        let name = "decode on an H100, of the bandwidth floor";
        Contract::new(name, named(model, Pass::Decode), Bound::AtLeast(bound), token.share())
            .by_model()
    })
}

fn of_scoring(model: &Model, compilation: &Compilation) -> Option<Contract> {
    let of = |fixture: Fixture| fixture == model.fixture && model.mix == Mix::Bf16;
    if !of(QWQ_32B) {
        return None;
    }
    let [token, score] = [Pass::Decode, Pass::Score]
        .map(|pass| model.predicted(&H100, compilation, pass).map(|predicted| predicted.us));
    let name = "a scoring on an H100, in decoded tokens";
    let of = named(model, Pass::Score);
    Some(Contract::new(name, of, Bound::AtMost(1.1), score? / token?).by_model())
}

//! A **model** of two models on one GPU: what a round of SpecReason takes in each overlap mode, and
//! why. No figure of it was measured.
//!
//! In a round the draft writes a step while the base scores the one before, or rewrites one. Each
//! model is a sequence of [`Kernel`]s. One alone takes the longest of
//!
//! - its bytes over the memory's bandwidth,
//! - on the fullest of its SMs, its bytes over what an SM has in flight each latency (Little's
//!   law), and its operations over an SM's peak,
//!
//! behind [`Gpu::launch_us`] in which its stream moves nothing. Kernels of two streams that run at
//! the same time ask for the bandwidth together, and on the same SMs for the peak; where they ask
//! for more than there is, both slow down by as much. So a round never beats
//! `max(Σ bytes / bandwidth, Σ operations / peak)`, and what overlap can win is the time in which
//! one stream leaves something idle: boundaries of launches, kernels with fewer CTAs than SMs, the
//! other resource.
//!
//! Left out: caches, clocks, what CTAs of two kernels do to one another on an SM, the host, and how
//! long a draft of high priority waits for a CTA of the base to end. Read next: [`passes`], where
//! the kernels of a pass come from.

pub mod passes;
pub mod table;
#[cfg(test)]
mod tests;
pub mod timeline;

/// A GPU of the data sheets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// As people call it.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub sms: usize,
    /// Bandwidth of the memory.
    pub gb_per_s: f64,
    /// Peak of bf16, dense.
    pub tflops: f64,
    /// From the last byte of a kernel to the first of the next on its stream: the boundary and the
    /// latencies on both sides of it. The sums of `benches/kernel_report/model.rs`.
    pub launch_us: f64,
    /// Green contexts have at least so many SMs, and a multiple of that.
    pub split_sms: usize,
}

/// On Hopper a kernel waits for its predecessor where it is: 0.7 µs for the release, 0.4 for its
/// rows, 0.7 for the last load and 0.5 behind it.
const H100: Gpu =
    Gpu { name: "H100", sms: 132, gb_per_s: 3350.0, tflops: 989.0, launch_us: 2.3, split_sms: 8 };

/// The GPUs predictions are made for.
pub const GPUS: [Gpu; 3] = [
    // Without dependent launch: 1.3 µs for the boundary and 0.3 to the first load instead.
    Gpu { name: "A100", sms: 108, gb_per_s: 2039.0, tflops: 312.0, launch_us: 3.2, split_sms: 4 },
    H100,
    Gpu { name: "H200", gb_per_s: 4800.0, ..H100 },
];

/// Bytes an SM has in flight: the least that the kernels' contracts ask for.
const IN_FLIGHT_BYTES: f64 = 32.0 * 1024.0;
/// A load from memory under load.
const LATENCY_US: f64 = 0.7;
/// Share of the peak that `mma.sync` reaches.
const MMA_SHARE: f64 = 0.6;

/// The assumptions, as they are printed below every table.
#[must_use]
pub fn assumptions() -> String {
    let launches: Vec<_> =
        GPUS.iter().map(|gpu| format!("{} µs on {}", gpu.launch_us, gpu.name)).collect();
    format!(
        "Model, nothing measured: bandwidth and peak of the data sheets, {:.0} % of the peak for \
         mma.sync, {:.0} KiB in flight an SM, {LATENCY_US} µs a load, a boundary between two \
         launches with its latencies {}; no caches, no host.",
        MMA_SHARE * 100.0,
        IN_FLIGHT_BYTES / 1024.0,
        launches.join(", "),
    )
}

impl Gpu {
    /// The GPU that a device's name tells of.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        GPUS.into_iter().find(|gpu| name.contains(gpu.name))
    }

    /// Bytes a microsecond of the memory.
    #[must_use]
    pub fn bytes_per_us(&self) -> f64 {
        self.gb_per_s * 1e3
    }

    fn flop_per_us(&self) -> f64 {
        self.tflops * 1e6 * MMA_SHARE
    }

    /// The number of SMs the draft gets of a share, as the hardware can split them: 1 to 99 %.
    #[must_use]
    pub fn split(&self, draft_pct: u32) -> usize {
        let wanted = (self.sms * draft_pct as usize / 100).max(1);
        let most = (self.sms - 1) / self.split_sms * self.split_sms;
        wanted.next_multiple_of(self.split_sms).min(most)
    }
}

/// One launch, as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Kernel {
    /// CTAs; at least 1.
    pub ctas: usize,
    /// Bytes that come from memory, once.
    pub bytes: f64,
    /// Multiplications and additions.
    pub flop: f64,
}

/// What a kernel takes where nothing else runs, and asks for meanwhile.
#[derive(Debug, Clone, Copy)]
struct Alone {
    us: f64,
    bytes_per_us: f64,
    flop_per_us: f64,
}

impl Kernel {
    fn alone(&self, gpu: &Gpu, sms: usize) -> Alone {
        // CTAs on the fullest SM, as a share of all.
        let fullest = self.ctas.div_ceil(sms) as f64 / self.ctas as f64;
        let of_memory = self.bytes / gpu.bytes_per_us();
        let of_sm = fullest * self.bytes / (IN_FLIGHT_BYTES / LATENCY_US);
        let of_peak = fullest * self.flop / (gpu.flop_per_us() / gpu.sms as f64);
        let us = of_memory.max(of_sm).max(of_peak);
        let rate = |amount: f64| if us > 0.0 { amount / us } else { 0.0 };
        Alone { us, bytes_per_us: rate(self.bytes), flop_per_us: rate(self.flop) }
    }
}

/// How the two models share the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One pass at a time.
    Off,
    /// Two streams on all SMs.
    Stream,
    /// The draft has so many SMs of its own, the base the rest; 1 to all but one.
    Split(usize),
}

/// What both models do in a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Round {
    /// Kernels of the draft, in order.
    pub draft: Vec<Kernel>,
    /// Kernels of the base, in order.
    pub base: Vec<Kernel>,
}

/// What a time is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The memory gives all it can.
    Bandwidth,
    /// A kernel runs, and the memory could give more: too few SMs, CTAs or bytes in flight, or the
    /// peak is reached.
    Sms,
    /// No kernel runs.
    Launches,
}

impl Bound {
    /// All of them, in the order of [`Prediction::bounds_us`].
    pub const ALL: [Self; 3] = [Self::Bandwidth, Self::Sms, Self::Launches];

    /// As tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Sms => "SMs",
            Self::Launches => "launches",
        }
    }
}

/// What the model says of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// The whole round.
    pub us: f64,
    /// When the draft is done.
    pub draft_us: f64,
    /// When the base is done.
    pub base_us: f64,
    /// The same time by what it is spent on, in the order of [`Bound::ALL`].
    pub bounds_us: [f64; 3],
}

impl Prediction {
    /// What most of the time is spent on, and which share; nothing in a round without kernels.
    #[must_use]
    pub fn bound(&self) -> Option<(Bound, f64)> {
        let each = Bound::ALL.into_iter().zip(self.bounds_us);
        let (bound, us) = each.max_by(|a, b| a.1.total_cmp(&b.1))?;
        (self.us > 0.0).then(|| (bound, us / self.us))
    }
}

impl Round {
    /// The time no mode can beat: all bytes at full bandwidth, all operations at the peak.
    #[must_use]
    pub fn floor_us(&self, gpu: &Gpu) -> f64 {
        let all = || self.draft.iter().chain(&self.base);
        let bytes: f64 = all().map(|k| k.bytes).sum();
        let flop: f64 = all().map(|k| k.flop).sum();
        (bytes / gpu.bytes_per_us()).max(flop / gpu.flop_per_us())
    }

    /// The time of the round on `gpu` in `mode`.
    ///
    /// # Panics
    /// If a split leaves a model no SM, or a kernel has no CTA.
    #[must_use]
    pub fn predict(&self, gpu: &Gpu, mode: Mode) -> Prediction {
        let stream = |kernels: &[Kernel], sms: usize| -> Vec<Alone> {
            assert!(sms > 0 && sms <= gpu.sms, "{sms} of {} SMs", gpu.sms);
            kernels
                .iter()
                .map(|kernel| {
                    assert!(kernel.ctas > 0, "a kernel without CTAs");
                    kernel.alone(gpu, sms)
                })
                .collect()
        };
        let (draft_sms, base_sms) = match mode {
            Mode::Off | Mode::Stream => (gpu.sms, gpu.sms),
            Mode::Split(draft) => (draft, gpu.sms.saturating_sub(draft)),
        };
        let (draft, base) = (stream(&self.draft, draft_sms), stream(&self.base, base_sms));
        let mut bounds_us = [0.0; 3];
        let [draft_us, base_us] = match mode {
            Mode::Off => {
                let [draft_us, _] = gpu.run([&draft, &[]], &mut bounds_us);
                let [_, base_us] = gpu.run([&[], &base], &mut bounds_us);
                [draft_us, draft_us + base_us]
            }
            Mode::Stream | Mode::Split(_) => gpu.run([&draft, &base], &mut bounds_us),
        };
        Prediction { us: draft_us.max(base_us), draft_us, base_us, bounds_us }
    }
}

/// A stream under way.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// The kernel that runs, or comes next.
    at: usize,
    /// Until it runs.
    waits_us: f64,
    /// What it still has to do, in microseconds of a kernel alone.
    left_us: f64,
}

/// Shares this near to full are full.
const FULL: f64 = 1.0 - 1e-9;

impl Gpu {
    /// When each stream is done; adds what every moment was spent on to `bounds_us`.
    fn run(&self, streams: [&[Alone]; 2], bounds_us: &mut [f64; 3]) -> [f64; 2] {
        let begin = |stream: &[Alone], at: usize| {
            stream.get(at).map(|k| Progress { at, waits_us: self.launch_us, left_us: k.us })
        };
        let mut progress = streams.map(|stream| begin(stream, 0));
        let (mut now, mut ends) = (0.0, [0.0; 2]);
        while progress.iter().any(Option::is_some) {
            let runs =
                |i: usize| progress[i].filter(|p| p.waits_us <= 0.0).map(|p| streams[i][p.at]);
            let running = [runs(0), runs(1)];
            let asked = |of: fn(&Alone) -> f64| running.iter().flatten().map(of).sum::<f64>();
            let of_memory = asked(|k| k.bytes_per_us) / self.bytes_per_us();
            let slowdown = of_memory.max(asked(|k| k.flop_per_us) / self.flop_per_us()).max(1.0);
            let step = progress.iter().flatten().map(|p| match p.waits_us > 0.0 {
                true => p.waits_us,
                false => p.left_us * slowdown,
            });
            let step = step.fold(f64::INFINITY, f64::min);
            let bound = match running {
                [None, None] => Bound::Launches,
                _ if of_memory / slowdown >= FULL => Bound::Bandwidth,
                _ => Bound::Sms,
            };
            bounds_us[bound as usize] += step;
            now += step;
            for (i, slot) in progress.iter_mut().enumerate() {
                let Some(p) = slot else { continue };
                // Whoever determined the step ends in it, whatever rounding says.
                if p.waits_us > 0.0 {
                    p.waits_us = if p.waits_us <= step { 0.0 } else { p.waits_us - step };
                    continue;
                }
                if p.left_us * slowdown > step {
                    p.left_us -= step / slowdown;
                    continue;
                }
                ends[i] = now;
                *slot = begin(streams[i], p.at + 1);
            }
        }
        ends
    }
}

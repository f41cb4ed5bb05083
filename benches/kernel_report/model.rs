//! A **model** of time on GPUs that are not at hand: what the measured counts, the registers and
//! the machine code mean for a memory system of given width. No figure of it was measured.
//!
//! CTAs are placed on SMs as registers, shared memory and threads allow, in the order of launches.
//! A CTA begins ([`START_US`]), asks for weights up to what its loop keeps in flight, waits for the
//! kernel before it, then for its first rows ([`ROUND_US`]), then streams. All that stream share
//! the memory evenly; one alone gets at most what it has in flight each [`LATENCY_US`] (Little's
//! law), at most its share of its SM's instruction issue, and takes at least [`ROUND_US`] for what
//! each of its barriers waits for. It ends [`EPILOGUE_US`] after its last byte. Bytes are those
//! requested, so whatever several CTAs read again is traffic of the L2; each distinct byte of
//! weights and keys comes from memory once.
//!
//! A launch follows the end of the one before by [`LAUNCH_US`], the cost of a boundary in a graph.
//! A programmatic one is placed beside it as soon as all CTAs of that have let it begin, which none
//! does before its own wait, and there is room; its wait ends [`RELEASE_US`] after the last CTA
//! before it.
//!
//! Bandwidth and peak are the data sheets'. Memory reaches some nine tenths of that in practice:
//! floors and times grow by as much, their ratio does not.

/// From a CTA's launch to its first load.
const START_US: f64 = 0.3;
/// A load from memory under load.
pub(crate) const LATENCY_US: f64 = 0.7;
/// What a barrier waits for: a copy from L2 and the warps behind it. An idle H100's L2 answers in
/// 263 cycles, 0.15 µs (arXiv 2402.13499, latency of memory scopes).
const ROUND_US: f64 = 0.4;
/// From the last weights to the end: partial sums through shared memory, a store.
const EPILOGUE_US: f64 = 0.5;
/// From the end of a kernel to the begin of the next one's CTAs, in a graph.
const LAUNCH_US: f64 = 1.3;
/// From the end of a kernel to the end of the next one's wait, where that is there already.
const RELEASE_US: f64 = 0.7;
/// Share of the issue slots that arithmetic between loads fills.
const ISSUE_SHARE: f64 = 0.75;
/// Share of the peak that `mma.sync` reaches.
const MMA_SHARE: f64 = 0.6;

/// The assumptions, as the report prints them.
pub(crate) fn assumptions() -> String {
    format!(
        "a boundary in a graph {LAUNCH_US} µs; where the next launch is there already, \
         {RELEASE_US} µs from the last CTA to the end of its wait; {START_US} µs from a CTA's \
         begin to its first load, at least {ROUND_US} µs for the rows from L2 that each of its \
         barriers waits for, {EPILOGUE_US} µs behind the last byte; {LATENCY_US} µs a load; \
         {:.0} % of the issue slots, {:.0} % of the peak for `mma.sync`; bandwidth and peak of \
         the data sheet, on both sides of every ratio",
        ISSUE_SHARE * 100.0,
        MMA_SHARE * 100.0,
    )
}

/// A GPU of the data sheets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gpu {
    pub(crate) name: &'static str,
    /// The cubin it loads.
    pub(crate) arch: &'static str,
    pub(crate) sms: usize,
    pub(crate) gb_per_s: f64,
    /// Of the L2, about.
    pub(crate) l2_gb_per_s: f64,
    /// bf16, dense.
    pub(crate) tflops: f64,
    pub(crate) ghz: f64,
    /// Of an SM.
    pub(crate) shared_bytes: u32,
    /// Whether launches may begin early.
    pub(crate) programmatic: bool,
}

/// The three of the report.
pub(crate) const GPUS: [Gpu; 3] = [
    Gpu {
        name: "A100",
        arch: "sm_80",
        sms: 108,
        gb_per_s: 2039.0,
        l2_gb_per_s: 4500.0,
        tflops: 312.0,
        ghz: 1.41,
        shared_bytes: 164 << 10,
        programmatic: false,
    },
    H100,
    Gpu { name: "H200", gb_per_s: 4800.0, ..H100 },
];

/// The one the contracts name.
pub(crate) const H100: Gpu = Gpu {
    name: "H100",
    arch: "sm_90a",
    sms: 132,
    gb_per_s: 3350.0,
    l2_gb_per_s: 5500.0,
    tflops: 989.0,
    ghz: 1.755,
    shared_bytes: 228 << 10,
    programmatic: true,
};

/// Of every SM here.
const REGISTERS: u32 = 1 << 16;
const THREADS: u32 = 2048;
const ISSUES_PER_CLOCK: f64 = 4.0;
/// Shared memory that each CTA costs beside its own.
const RESERVED_SHARED_BYTES: u32 = 1 << 10;
/// Multiplications and additions of a warp's `mma.m16n8k16`.
const MMA_FLOP: f64 = 2.0 * 16.0 * 8.0 * 16.0;

/// One launch, as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) ctas: usize,
    /// Equal parts of the work that CTAs have one or several of, dealt in turn.
    pub(crate) parts: usize,
    pub(crate) threads: u32,
    /// Of a thread.
    pub(crate) registers: u32,
    /// Of a CTA.
    pub(crate) shared_bytes: u32,
    /// Requested by all CTAs.
    pub(crate) bytes: f64,
    /// Of them, what comes from memory.
    pub(crate) memory_bytes: f64,
    /// Of a CTA at most.
    pub(crate) in_flight_bytes: f64,
    /// Whether a CTA asks for weights before its wait.
    pub(crate) loads_ahead: bool,
    /// Whether it lets the next begin before it multiplies.
    pub(crate) lets_begin_early: bool,
    /// Of a CTA.
    pub(crate) barriers: f64,
    /// Of all warps.
    pub(crate) instructions: f64,
    pub(crate) mmas: f64,
}

impl Work {
    /// CTAs an SM has room for.
    pub(crate) fn ctas_per_sm(&self, gpu: &Gpu) -> u32 {
        Room::of(gpu).fits(self)
    }

    /// Bytes that CTA `index` asks for.
    fn bytes_of_cta(&self, index: usize) -> f64 {
        let parts = self.parts / self.ctas + usize::from(index < self.parts % self.ctas);
        self.bytes * parts as f64 / self.parts as f64
    }

    fn registers_of_cta(&self) -> u32 {
        // Registers are given to warps, 256 at a time.
        (self.registers * 32).next_multiple_of(256) * self.threads.div_ceil(32)
    }

    fn shared_of_cta(&self) -> u32 {
        self.shared_bytes + RESERVED_SHARED_BYTES
    }

    /// Bytes a second of one CTA alone, in bytes a microsecond.
    fn bytes_per_us_max(&self, gpu: &Gpu) -> f64 {
        let each = self.bytes / self.ctas as f64;
        let from_memory = (self.memory_bytes / self.bytes).max(0.05);
        let by_flight = self.in_flight_bytes / LATENCY_US / from_memory;
        // All CTAs of an SM share its issue slots and its tensor cores.
        let share =
            f64::from(self.ctas_per_sm(gpu)).min((self.ctas as f64 / gpu.sms as f64).ceil());
        let issue_us =
            self.instructions / self.ctas as f64 / (ISSUES_PER_CLOCK * gpu.ghz * 1e3 * ISSUE_SHARE);
        let flop_per_us = gpu.tflops * 1e6 * MMA_SHARE / gpu.sms as f64;
        let mma_us = self.mmas / self.ctas as f64 * MMA_FLOP / flop_per_us;
        by_flight.min(each / (issue_us.max(mma_us) * share).max(1e-9))
    }
}

/// What an SM has left.
#[derive(Debug, Clone, Copy)]
struct Room {
    registers: u32,
    shared_bytes: u32,
    threads: u32,
}

impl Room {
    fn of(gpu: &Gpu) -> Self {
        Self { registers: REGISTERS, shared_bytes: gpu.shared_bytes, threads: THREADS }
    }

    fn fits(&self, work: &Work) -> u32 {
        let by_registers = self.registers / work.registers_of_cta().max(1);
        let by_shared = self.shared_bytes / work.shared_of_cta();
        by_registers.min(by_shared).min(self.threads / work.threads)
    }

    fn take(&mut self, work: &Work) {
        self.registers -= work.registers_of_cta();
        self.shared_bytes -= work.shared_of_cta();
        self.threads -= work.threads;
    }

    fn give(&mut self, work: &Work) {
        self.registers += work.registers_of_cta();
        self.shared_bytes += work.shared_of_cta();
        self.threads += work.threads;
    }
}

/// A CTA on its SM.
#[derive(Debug, Clone, Copy)]
struct Cta {
    launch: usize,
    sm: usize,
    /// When it asks for its first bytes.
    begins: f64,
    /// When it may multiply; infinite while the kernel before it runs.
    opens: f64,
    /// Bytes it asks for, and those it still has to.
    bytes: f64,
    left: f64,
    /// When it lets the next launch begin; infinite while that is not known, and afterwards.
    lets_go: f64,
    /// When it ends; infinite while bytes are left.
    ends: f64,
}

/// A launch under way.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    placed: usize,
    /// CTAs that have let the next launch begin.
    let_go: usize,
    ended: usize,
    end: f64,
}

/// When each launch of a sequence ends, in microseconds.
pub(crate) fn ends_us(gpu: &Gpu, works: &[Work]) -> Vec<f64> {
    Timeline::new(gpu, works).run()
}

struct Timeline<'a> {
    gpu: &'a Gpu,
    works: &'a [Work],
    /// Bytes a microsecond a CTA of each launch takes at most.
    most: Vec<f64>,
    rooms: Vec<Room>,
    progress: Vec<Progress>,
    ctas: Vec<Cta>,
    now: f64,
}

/// Times closer than this are one event.
const TIE_US: f64 = 1e-6;

impl<'a> Timeline<'a> {
    fn new(gpu: &'a Gpu, works: &'a [Work]) -> Self {
        Self {
            gpu,
            works,
            most: works.iter().map(|work| work.bytes_per_us_max(gpu)).collect(),
            rooms: vec![Room::of(gpu); gpu.sms],
            progress: vec![Progress::default(); works.len()],
            ctas: vec![],
            now: 0.0,
        }
    }

    fn run(mut self) -> Vec<f64> {
        loop {
            self.place();
            let rates = self.rates();
            let Some(next) = self.next_event(&rates) else { break };
            let elapsed = next - self.now;
            for (cta, rate) in self.ctas.iter_mut().zip(&rates) {
                cta.left = (cta.left - rate * elapsed).max(0.0);
            }
            self.now = next;
            self.settle();
        }
        assert!(self.progress.iter().all(|p| p.end > 0.0), "a launch that never ends");
        self.progress.iter().map(|p| p.end).collect()
    }

    fn has_ended(&self, launch: usize) -> bool {
        self.progress[launch].ended == self.works[launch].ctas
    }

    /// When CTAs of a launch may be placed; none: not yet known.
    fn may_begin(&self, launch: usize) -> Option<f64> {
        let Some(before) = launch.checked_sub(1) else { return Some(0.0) };
        if self.gpu.programmatic {
            let all = self.works[before].ctas;
            return (self.progress[before].let_go == all).then_some(self.now);
        }
        self.has_ended(before).then(|| self.progress[before].end + LAUNCH_US)
    }

    /// When the wait of a launch ends.
    fn released(&self, launch: usize) -> f64 {
        match launch.checked_sub(1) {
            None => 0.0,
            Some(_) if !self.gpu.programmatic => 0.0,
            Some(before) if self.has_ended(before) => self.progress[before].end + RELEASE_US,
            Some(_) => f64::INFINITY,
        }
    }

    fn place(&mut self) {
        for launch in 0..self.works.len() {
            let work = &self.works[launch];
            if self.progress[launch].placed == work.ctas {
                continue;
            }
            let Some(at) = self.may_begin(launch).filter(|at| *at <= self.now + TIE_US) else {
                return;
            };
            while self.progress[launch].placed < work.ctas {
                // The SM with most room, as a scheduler spreads CTAs.
                let room = self.rooms.iter().enumerate().max_by_key(|(i, room)| {
                    (room.fits(work), room.registers, std::cmp::Reverse(*i))
                });
                let Some((sm, _)) = room.filter(|(_, room)| room.fits(work) > 0) else { return };
                self.rooms[sm].take(work);
                let begins = at.max(self.now) + START_US;
                let waited = self.released(launch).max(begins);
                let bytes = work.bytes_of_cta(self.progress[launch].placed);
                self.ctas.push(Cta {
                    launch,
                    sm,
                    begins,
                    opens: waited + ROUND_US,
                    bytes,
                    left: bytes,
                    lets_go: if work.lets_begin_early { waited } else { f64::INFINITY },
                    ends: f64::INFINITY,
                });
                self.progress[launch].placed += 1;
            }
        }
    }

    /// Bytes a CTA has left when it has asked for all it may before it opens.
    fn before_it_opens(&self, cta: &Cta) -> f64 {
        let work = &self.works[cta.launch];
        cta.bytes - if work.loads_ahead { work.in_flight_bytes.min(cta.bytes) } else { 0.0 }
    }

    /// Whether a CTA asks for bytes now.
    fn asks(&self, cta: &Cta) -> bool {
        let wants = if cta.opens <= self.now + TIE_US { 0.0 } else { self.before_it_opens(cta) };
        cta.left > wants + 1e-3 && cta.begins <= self.now + TIE_US
    }

    /// Bytes a microsecond of every CTA: even shares of memory, nobody above what it can take;
    /// then of the L2.
    fn rates(&self) -> Vec<f64> {
        let share_of_memory = |launch: usize| {
            let work: &Work = &self.works[launch];
            (work.memory_bytes / work.bytes).clamp(0.0, 1.0)
        };
        let mut rates: Vec<f64> = self
            .ctas
            .iter()
            .map(|cta| if self.asks(cta) { self.most[cta.launch] } else { 0.0 })
            .collect();
        for (capacity, of_memory) in
            [(self.gpu.gb_per_s * 1e3, true), (self.gpu.l2_gb_per_s * 1e3, false)]
        {
            let weight = |cta: &Cta| if of_memory { share_of_memory(cta.launch) } else { 1.0 };
            // Water filling: whoever wants less than an even share keeps what it wants.
            let mut wanted: Vec<f64> = rates
                .iter()
                .zip(&self.ctas)
                .map(|(rate, cta)| rate * weight(cta))
                .filter(|rate| *rate > 0.0)
                .collect();
            wanted.sort_by(f64::total_cmp);
            let (mut left, mut level) = (capacity, f64::INFINITY);
            for (i, rate) in wanted.iter().enumerate() {
                let even = left / (wanted.len() - i) as f64;
                if *rate > even {
                    level = even;
                    break;
                }
                left -= rate;
            }
            for (rate, cta) in rates.iter_mut().zip(&self.ctas) {
                let weight = weight(cta);
                if *rate * weight > level {
                    *rate = level / weight;
                }
            }
        }
        rates
    }

    fn next_event(&self, rates: &[f64]) -> Option<f64> {
        let mut next = f64::INFINITY;
        for (cta, rate) in self.ctas.iter().zip(rates) {
            if *rate > 0.0 {
                let opened = cta.opens <= self.now + TIE_US;
                let until = if opened { 0.0 } else { self.before_it_opens(cta) };
                next = next.min(self.now + (cta.left - until) / rate);
            }
            for at in [cta.begins, cta.opens, cta.lets_go, cta.ends] {
                if at > self.now + TIE_US {
                    next = next.min(at);
                }
            }
        }
        let waiting =
            (0..self.works.len()).find(|i| self.progress[*i].placed < self.works[*i].ctas);
        if let Some(at) = waiting.and_then(|launch| self.may_begin(launch))
            && at > self.now + TIE_US
        {
            next = next.min(at);
        }
        next.is_finite().then_some(next.max(self.now + TIE_US))
    }

    /// Brings every CTA's state up to now.
    fn settle(&mut self) {
        let now = self.now + TIE_US;
        for cta in &mut self.ctas {
            let work = &self.works[cta.launch];
            if cta.left <= 1e-3 && cta.ends.is_infinite() && cta.opens <= now {
                let rounds = cta.opens + (work.barriers - 1.0).max(0.0) * ROUND_US;
                let bytes = self.now + if work.bytes > 0.0 { LATENCY_US } else { 0.0 };
                cta.ends = bytes.max(rounds) + EPILOGUE_US;
                if !work.lets_begin_early {
                    cta.lets_go = cta.ends - EPILOGUE_US;
                }
            }
            if cta.lets_go <= now {
                cta.lets_go = f64::INFINITY;
                self.progress[cta.launch].let_go += 1;
            }
        }
        let mut still = Vec::with_capacity(self.ctas.len());
        for cta in std::mem::take(&mut self.ctas) {
            if cta.ends > now {
                still.push(cta);
                continue;
            }
            self.rooms[cta.sm].give(&self.works[cta.launch]);
            let progress = &mut self.progress[cta.launch];
            progress.ended += 1;
            progress.end = progress.end.max(cta.ends);
        }
        self.ctas = still;
        for i in 0..self.ctas.len() {
            if self.ctas[i].opens.is_infinite() {
                let launch = self.ctas[i].launch;
                let waited = self.released(launch).max(self.ctas[i].begins);
                self.ctas[i].opens = waited + ROUND_US;
                if self.works[launch].lets_begin_early {
                    self.ctas[i].lets_go = waited;
                }
            }
        }
    }
}

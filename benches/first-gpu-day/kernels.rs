//! Achieved bandwidth of every kernel of a layer and of the head, by the device's own events:
//! `cargo bench --bench first_gpu_day [-- MODEL ...]`; with `--emulated` on the software GPU, at
//! tiny sizes, where no time is a GPU's.
//!
//! An operation is enqueued some dozens of times in one submission, each time on another copy of
//! its weights so that none lies in the L2 any more; its time is what as many again add. The floor
//! is the operation's weights, keys and values once over the data sheet's bandwidth.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

#[path = "../kernel_report/shapes.rs"]
#[allow(dead_code, reason = "the kernel report uses the rest")]
mod shapes;
#[path = "../kernel_report/weights.rs"]
mod weights;

use forerun::bench::overlap::Gpu;
use forerun::device::cuda::{CudaDevice, CudaOptions, has_kernels};
use forerun::device::{
    Device, Element, GateUpWeights, HeadKind, HeadRow, HeadWeights, Linear, Mask, MatrixView,
    PassLimits, QkvWeights, RaggedBatch, RowGroup, Shape, Span,
};
use forerun::error::DeviceError;
use forerun::ids::{PageId, Role, TokenId};
use shapes::{FIXTURES, Fixture, Mix, Part, Weight};
use std::error::Error;
use weights::{Rng, random};

type Buffer = <CudaDevice as Device>::Buffer;
type Batch = <CudaDevice as Device>::Batch;
type Stream = <CudaDevice as Device>::Stream;

/// For the software GPU.
const TINY: Fixture = Fixture {
    name: "tiny",
    hidden: 256,
    heads: [4, 2],
    head_dim: 64,
    ffn: 512,
    vocab: 2048,
    layers: 1,
};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Keys before the rows of a pass.
    context: usize,
    /// Rows of the passes.
    rows: &'static [usize],
    /// Bytes of all copies of an operation's weights together: several times any L2.
    spread_bytes: u64,
    /// Times an operation is enqueued in the shorter of two submissions.
    times: usize,
    /// Submissions of each length: the first is launched, the second captured, the others replay.
    submissions: usize,
}

const HARDWARE: Effort = Effort {
    context: 1024,
    rows: &[1, 8, 42],
    spread_bytes: 512 << 20,
    times: 64,
    submissions: 12,
};
const EMULATED: Effort =
    Effort { context: 300, rows: &[1, 42], spread_bytes: 0, times: 1, submissions: 3 };

/// Rows of a pass that fills the pool.
const FILL_ROWS: usize = 64;
/// Rows of the table that hidden states come from.
const EMBEDDED: usize = 64;
const LABELS: usize = 10;

/// One operation at one number of rows.
struct Line {
    rows: usize,
    operation: &'static str,
    kind: &'static str,
    bytes: u64,
    us: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let emulated = arguments.iter().any(|argument| argument == "--emulated");
    let names: Vec<_> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if !has_kernels() {
        return Err("built without CUDA kernels: there was no nvcc".into());
    }
    let wanted = |fixture: &Fixture| {
        names.is_empty() || names.iter().any(|name| fixture.name.contains(name.as_str()))
    };
    let fixtures: Vec<Fixture> = match emulated {
        true => vec![TINY],
        false => FIXTURES.into_iter().filter(wanted).collect(),
    };
    let effort = if emulated { EMULATED } else { HARDWARE };
    let driver = if emulated { Some(gpu_emulator::load::path()?) } else { None };
    for (i, fixture) in fixtures.iter().enumerate() {
        if fixtures[..i].iter().any(|other| fixture.has_sizes_of(other)) {
            println!("{}: the sizes of a model above\n", fixture.name);
            continue;
        }
        for mix in Mix::ALL {
            let device =
                CudaDevice::open(&CudaOptions { driver: driver.clone(), ..Default::default() })?;
            let name = device.info().name;
            if device.info().is_emulated() != emulated {
                return Err(format!("{name}: expected {}", expected(emulated)).into());
            }
            eprintln!("{} {} on {name}", fixture.name, mix.name());
            let lines = Bench::new(device, fixture, mix, effort)?.lines()?;
            println!("{}", table(fixture, mix, &name, emulated, &lines));
        }
    }
    Ok(())
}

fn expected(emulated: bool) -> &'static str {
    if emulated { "the software GPU" } else { "a GPU; --emulated takes the software GPU" }
}

fn table(fixture: &Fixture, mix: Mix, name: &str, emulated: bool, lines: &[Line]) -> String {
    let gpu = Gpu::named(name);
    let label = if emulated { " — **not a GPU: no time is shown**" } else { "" };
    let roof = gpu.map_or("no floor known for it".to_owned(), |gpu| {
        format!("floor at {:.0} GB/s of the data sheet", gpu.gb_per_s)
    });
    let mut text = format!(
        "### {}, {} on {name}{label}\n\n{roof}\n\n\
         | rows | operation | weights | MB | µs | GB/s | floor, µs | of the floor |\n\
         |---:|---|---|---:|---:|---:|---:|---:|\n",
        fixture.name,
        mix.name()
    );
    for Line { rows, operation, kind, bytes, us } in lines {
        let mb = *bytes as f64 / 1e6;
        let floor_us = gpu.map(|gpu| *bytes as f64 / gpu.bytes_per_us());
        let cells = match (emulated, floor_us) {
            (true, _) => "| | | |".to_owned(),
            (false, None) => format!("{us:.2} | {:.0} | | |", mb * 1e3 / us),
            (false, Some(floor_us)) => {
                let (rate, share) = (mb * 1e3 / us, 100.0 * floor_us / us);
                format!("{us:.2} | {rate:.0} | {floor_us:.2} | {share:.0} % |")
            }
        };
        text += &format!("| {rows} | {operation} | {kind} | {mb:.3} | {cells}\n");
    }
    text
}

/// Copies of an operation's weights, taken in turn.
struct Copies<T> {
    each: Vec<T>,
    /// Bytes of one.
    bytes: u64,
    kind: &'static str,
}

impl<T> Copies<T> {
    fn new(
        spread_bytes: u64,
        bytes: u64,
        kind: &'static str,
        make: impl Fn() -> Result<T, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let count = spread_bytes.div_ceil(bytes).clamp(1, 256);
        Ok(Self { each: (0..count).map(|_| make()).collect::<Result<_, _>>()?, bytes, kind })
    }

    fn get(&self, i: usize) -> &T {
        &self.each[i % self.each.len()]
    }
}

struct Bench {
    device: CudaDevice,
    effort: Effort,
    shape: Shape,
    stream: Stream,
    hidden: Buffer,
    q: Buffer,
    mixed: Buffer,
    act: Buffer,
    logits: Buffer,
    pool: Buffer,
    rope: <CudaDevice as Device>::Vector,
    norm: <CudaDevice as Device>::Vector,
    table: <CudaDevice as Device>::Matrix,
    qkv: Copies<QkvWeights<CudaDevice>>,
    out: Copies<Linear<CudaDevice>>,
    gate_up: Copies<GateUpWeights<CudaDevice>>,
    down: Copies<Linear<CudaDevice>>,
    head: Copies<<CudaDevice as Device>::Matrix>,
}

impl Bench {
    fn new(
        device: CudaDevice,
        fixture: &Fixture,
        mix: Mix,
        effort: Effort,
    ) -> Result<Self, DeviceError> {
        let shape = fixture.layer_shape();
        let Shape { hidden, heads, kv_heads, head_dim, ffn, vocab, page_tokens, .. } = shape;
        let (queries, kv) = (heads * head_dim, kv_heads * head_dim);
        let vector = |count: usize| {
            let mut rng = Rng(count as u64);
            let values: Vec<f32> = (0..count).map(|_| 1.0 + rng.signed() * 0.3).collect();
            device.vector(&values)
        };
        let kind = |weight, columns| mix.kind(Part::Layer, weight, columns);
        let most = kind(Weight::Most, hidden);
        let rows_max = FILL_ROWS.max(effort.rows.iter().copied().max().unwrap_or(1));
        let pages = (effort.context + rows_max).div_ceil(page_tokens) + 1;
        let limits = PassLimits { rows: rows_max, full_rows: 1, positions: pages * page_tokens };
        let rows_of = |width: usize| device.buffer(rows_max * width, Element::Activation, "rows");
        let bytes_of =
            |rows, columns| device.matrix_bytes(rows, columns, kind(Weight::Most, columns));
        let linear = |rows: usize, columns: usize| {
            let kind = kind(Weight::Most, columns);
            let bytes = random(kind, rows, columns);
            let device = &device;
            move || -> Result<Linear<CudaDevice>, DeviceError> {
                let view = MatrixView { name: "m", rows, cols: columns, kind, bytes: &bytes };
                Ok(Linear { matrix: device.matrix(view)?, bias: None })
            }
        };
        let rotary = |rows: usize| -> Result<Linear<CudaDevice>, DeviceError> {
            let bytes = random(most, rows, hidden);
            let view = MatrixView { name: "m", rows, cols: hidden, kind: most, bytes: &bytes };
            let matrix = device.rotary_matrix(view, head_dim)?;
            Ok(Linear { matrix, bias: Some(vector(rows)?) })
        };
        // One for all: rows are prepared once, for whichever operation is timed.
        let norm = vector(hidden)?;
        let value = linear(kv, hidden);
        let qkv_bytes = bytes_of(queries, hidden) + 2 * bytes_of(kv, hidden);
        let qkv = Copies::new(effort.spread_bytes, qkv_bytes, most.name(), || {
            Ok(QkvWeights {
                norm: norm.clone(),
                q: rotary(queries)?,
                k: rotary(kv)?,
                v: Linear { bias: Some(vector(kv)?), ..value()? },
                q_norm: None,
                k_norm: None,
            })
        })?;
        let pairs = random(most, ffn, hidden);
        let pair = MatrixView { name: "m", rows: ffn, cols: hidden, kind: most, bytes: &pairs };
        let pair_bytes = device.gate_up_bytes(ffn, hidden, [most; 2]);
        let gate_up = Copies::new(effort.spread_bytes, pair_bytes, most.name(), || {
            let matrices = device.gate_up_matrices(pair, pair)?;
            Ok(GateUpWeights { norm: norm.clone(), matrices })
        })?;
        let copies = |rows: usize, columns: usize| {
            let name = kind(Weight::Most, columns).name();
            let make = linear(rows, columns);
            Copies::new(effort.spread_bytes, bytes_of(rows, columns), name, make)
        };
        let of_head = mix.kind(Part::Head, Weight::Head, hidden);
        let head_bytes = random(of_head, vocab, hidden);
        let view =
            MatrixView { name: "m", rows: vocab, cols: hidden, kind: of_head, bytes: &head_bytes };
        let head_size = device.matrix_bytes(vocab, hidden, of_head);
        let head =
            Copies::new(effort.spread_bytes, head_size, of_head.name(), || device.matrix(view))?;
        Ok(Self {
            effort,
            stream: device.stream(Role::Base, &shape, &limits)?,
            hidden: rows_of(hidden)?,
            q: rows_of(queries)?,
            mixed: rows_of(queries)?,
            act: rows_of(ffn)?,
            logits: device.buffer(vocab, Element::Logit, "logits")?,
            pool: device.buffer(pages * shape.page_bytes, Element::KvByte, "pool")?,
            rope: vector(limits.positions * head_dim)?,
            norm,
            table: linear(EMBEDDED, hidden)()?.matrix,
            qkv,
            out: copies(hidden, queries)?,
            gate_up,
            down: copies(hidden, ffn)?,
            head,
            shape,
            device,
        })
    }

    /// Stages `rows` rows behind `before` keys, with the heads of the operation.
    fn stage(
        &mut self,
        before: usize,
        rows: usize,
        head: Option<HeadKind>,
    ) -> Result<Batch, DeviceError> {
        let pages = (before + rows).div_ceil(self.shape.page_tokens);
        let batch = RaggedBatch {
            tokens: (0..rows).map(|i| TokenId((i % EMBEDDED) as u32)).collect(),
            positions: (0..rows).map(|i| (before + i) as u32).collect(),
            groups: vec![RowGroup {
                rows: 0..rows,
                prefix: Span::default(),
                own: Span { pages: 0..pages, len: before },
                mask: Mask::Causal,
            }],
            pages: (0..pages as u32).map(PageId).collect(),
            heads: head.into_iter().map(|kind| HeadRow::new(rows - 1, kind)).collect(),
            ..RaggedBatch::default()
        };
        let batch = self.device.stage(&self.stream, batch)?;
        let Self { device, stream, table, hidden, norm, .. } = self;
        device.embed(stream, table, &batch, norm, hidden)?;
        Ok(batch)
    }

    /// Enqueues an operation on copy `i` of its weights.
    fn enqueue(
        &mut self,
        operation: &'static str,
        batch: &Batch,
        i: usize,
    ) -> Result<(), DeviceError> {
        let Self { device, shape, stream, hidden, q, mixed, act, logits, pool, rope, norm, .. } =
            self;
        match operation {
            "qkv" => device.qkv(stream, shape, 0, self.qkv.get(i), rope, batch, hidden, q, pool),
            "attention" => device.attention(stream, shape, 0, batch, q, pool, mixed),
            "out" => device.project(stream, self.out.get(i), batch, mixed, norm, hidden),
            "gate, up" => device.gate_up(stream, shape, self.gate_up.get(i), batch, hidden, act),
            "down" => device.project(stream, self.down.get(i), batch, act, norm, hidden),
            _ => {
                let weights = HeadWeights { norm, matrix: self.head.get(i) };
                device.head(stream, shape, &weights, batch, hidden, logits, &mut ())
            }
        }
    }

    /// Every operation at every number of rows.
    fn lines(mut self) -> Result<Vec<Line>, DeviceError> {
        for before in (0..self.effort.context).step_by(FILL_ROWS) {
            let rows = FILL_ROWS.min(self.effort.context - before);
            let batch = self.stage(before, rows, None)?;
            self.enqueue("qkv", &batch, 0)?;
            self.device.submit_timed(&self.stream)?;
        }
        let labels = HeadKind::Labels((0..LABELS).map(|i| TokenId(i as u32)).collect());
        let mut lines = vec![];
        for rows in self.effort.rows {
            for (head, name) in [(HeadKind::Argmax, "head"), (labels.clone(), "head, ten labels")] {
                let batch = self.stage(self.effort.context, *rows, Some(head))?;
                let whole = name == "head";
                // Rows that later operations read are written once.
                for operation in ["qkv", "attention", "out", "gate, up", "down", name] {
                    self.enqueue(operation, &batch, 0)?;
                    self.device.submit_timed(&self.stream)?;
                }
                let layer = ["qkv", "attention", "out", "gate, up", "down"];
                for operation in layer.into_iter().filter(|_| whole).chain([name]) {
                    lines.push(self.line(operation, &batch, *rows)?);
                }
            }
        }
        Ok(lines)
    }

    fn line(
        &mut self,
        operation: &'static str,
        batch: &Batch,
        rows: usize,
    ) -> Result<Line, DeviceError> {
        let Shape { kv_heads, head_dim, vocab, .. } = self.shape;
        let keys = self.effort.context + rows;
        let (bytes, kind) = match operation {
            "qkv" => (self.qkv.bytes, self.qkv.kind),
            "attention" => ((keys * kv_heads * head_dim * 2 * 2) as u64, "KV"),
            "out" => (self.out.bytes, self.out.kind),
            "gate, up" => (self.gate_up.bytes, self.gate_up.kind),
            "down" => (self.down.bytes, self.down.kind),
            "head" => (self.head.bytes, self.head.kind),
            _ => (self.head.bytes * LABELS as u64 / vocab as u64, self.head.kind),
        };
        let times = self.effort.times;
        let once = self.best_ms(operation, batch, times)?;
        let twice = self.best_ms(operation, batch, 2 * times)?;
        // A clock too coarse for the difference must not give a negative time.
        let us = ((twice - once) * 1e3 / times as f64).max(1e-3);
        Ok(Line { rows, operation, kind, bytes, us })
    }

    /// The shortest submission of `times` times the operation.
    fn best_ms(
        &mut self,
        operation: &'static str,
        batch: &Batch,
        times: usize,
    ) -> Result<f64, DeviceError> {
        let mut best = f64::INFINITY;
        for _ in 0..self.effort.submissions {
            for i in 0..times {
                self.enqueue(operation, batch, i)?;
            }
            best = best.min(self.device.submit_timed(&self.stream)?);
        }
        Ok(best)
    }
}

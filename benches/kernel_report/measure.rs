//! Runs the operations of one layer, and of what comes after the last, at a model's own sizes on
//! the software GPU, and takes its counts.
//!
//! Operations run one by one through the `Device` trait, as a forward pass would run them, so that
//! each launch's counts are its own. The pool is filled by a small projection with the same heads.

use crate::counts::{Launch, Region, launches};
use crate::shapes::{Fixture, Mix, Part, Weight};
use crate::weights::{Rng, random};
use forerun::device::cuda::{CudaDevice, CudaOptions};
use forerun::device::{
    BlockType, Device, Element, GateUpWeights, HeadKind, HeadRow, HeadWeights, Linear, Mask,
    MatrixView, PassLimits, QkvWeights, RaggedBatch, RowGroup, Shape, Span,
};
use forerun::ids::{PageId, Role, TokenId};
use gpu_emulator::load::Emulator;

/// Keys a row sees before the pass.
pub(crate) const CONTEXT: usize = 1024;
/// Rows of a step and of the suffix that asks for its score.
pub(crate) const SCORED_ROWS: [usize; 2] = [30, 12];
/// Labels of a score.
pub(crate) const LABELS: usize = 10;
/// SMs of the software GPU: an H100's, which is what attention is cut for.
const SMS: &str = "132";
const MEMORY_BYTES: &str = "8589934592";
/// Rows of a pass that fills the pool.
const FILL_ROWS: usize = 256;
/// Columns of the projection that fills it.
const FILL_COLUMNS: usize = 32;
/// Ids that a draft proposes from, of the two numbers `auto` knows the smaller.
const PROPOSED_IDS: usize = 1 << 15;
/// Rows of the table that hidden states come from.
const EMBEDDED: usize = 64;

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pass {
    /// One token.
    Decode,
    /// One token of the first [`PROPOSED_IDS`] ids: a decode up to its head.
    Propose,
    /// Eight rows of one branch.
    Verify,
    /// [`SCORED_ROWS`]: a step, then a scratch suffix, and [`LABELS`] probabilities.
    Score,
}

impl Pass {
    /// All that differ before the head.
    pub(crate) const ALL: [Self; 3] = [Self::Decode, Self::Verify, Self::Score];

    /// Rows.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Decode | Self::Propose => 1,
            Self::Verify => 8,
            Self::Score => SCORED_ROWS.iter().sum(),
        }
    }

    /// Keys that some row sees.
    pub(crate) fn keys(self) -> usize {
        CONTEXT + self.rows()
    }

    fn batch(self) -> RaggedBatch {
        match self {
            Self::Decode | Self::Propose | Self::Verify => {
                let mut batch = branch(CONTEXT, self.rows());
                let (kind, first) = (HeadKind::Argmax, self == Self::Propose);
                let first_ids = first.then_some(PROPOSED_IDS);
                let head = |row| HeadRow { row, kind: kind.clone(), first_ids };
                batch.heads = (0..self.rows()).map(head).collect();
                batch
            }
            Self::Score => {
                let [step, suffix] = SCORED_ROWS;
                let mut batch = branch(CONTEXT, step);
                let pages = batch.pages.len();
                batch.pages.push(PageId(POOL_PAGES as u32 - 1));
                let prefix = Span { len: CONTEXT + step, ..batch.groups[0].own.clone() };
                batch.groups.push(RowGroup {
                    rows: step..step + suffix,
                    prefix,
                    own: Span { pages: pages..pages + 1, len: 0 },
                    mask: Mask::Causal,
                });
                batch.tokens.extend((0..suffix).map(|i| TokenId(i as u32)));
                batch.positions.extend((0..suffix).map(|i| (CONTEXT + step + i) as u32));
                let labels = (0..LABELS).map(|i| TokenId(15 + i as u32)).collect();
                batch.heads.push(HeadRow::new(step + suffix - 1, HeadKind::Labels(labels)));
                batch
            }
        }
    }
}

/// Pages of the pool: the context, the rows of a pass, a scratch page.
const POOL_PAGES: usize = CONTEXT / 16 + 4 + 1;

/// `rows` rows behind `len` keys of the one branch there is.
fn branch(len: usize, rows: usize) -> RaggedBatch {
    let pages = (len + rows).div_ceil(16);
    RaggedBatch {
        tokens: (0..rows).map(|i| TokenId((i % EMBEDDED) as u32)).collect(),
        positions: (0..rows).map(|i| (len + i) as u32).collect(),
        groups: vec![RowGroup {
            rows: 0..rows,
            prefix: Span::default(),
            own: Span { pages: 0..pages, len },
            mask: Mask::Causal,
        }],
        pages: (0..pages as u32).map(PageId).collect(),
        ..RaggedBatch::default()
    }
}

/// A step of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    Embed,
    Qkv,
    Attention,
    Out,
    GateUp,
    Down,
    Head,
}

/// The operations of a layer, in order.
pub(crate) const LAYER: [Op; 5] = [Op::Qkv, Op::Attention, Op::Out, Op::GateUp, Op::Down];

impl Op {
    /// As the kernels' files are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::Attention => "attention",
            Self::Out => "out",
            Self::GateUp => "gate, up",
            Self::Down => "down",
            Self::Head => "head",
        }
    }
}

/// One operation of one pass.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) part: Part,
    pub(crate) pass: Pass,
    pub(crate) op: Op,
    /// Block type of its matrices, or of the largest.
    pub(crate) kind: Option<BlockType>,
    /// Bytes of its matrices that the pass needs, as packed.
    pub(crate) weight_bytes: u64,
    /// Panels of 16 features whose groups are dealt to CTAs; none where each has its own.
    pub(crate) dealt_panels: Option<usize>,
    /// Bytes of keys and values that the rows see.
    pub(crate) kv_bytes: u64,
    pub(crate) launches: Vec<Launch>,
}

/// The software GPU with a device open on it, and what its allocations are for.
struct Gpu {
    emulator: Emulator,
    device: CudaDevice,
}

impl Gpu {
    fn open() -> Self {
        let library = gpu_emulator::load::path().unwrap_or_else(|e| panic!("{e}"));
        let emulator = Emulator::open_at(&library).unwrap_or_else(|e| panic!("{e}"));
        let options =
            CudaOptions { driver: Some(library.clone()), graphs: false, ..CudaOptions::default() };
        // The driver is initialised by the first device; the reset then gives it the sizes.
        drop(CudaDevice::open(&options).unwrap_or_else(|e| panic!("{e}")));
        emulator.reset(&[
            ("FORERUN_EMULATOR_SMS", SMS),
            ("FORERUN_EMULATOR_MEMORY_BYTES", MEMORY_BYTES),
        ]);
        let device = CudaDevice::open(&options).unwrap_or_else(|e| panic!("{e}"));
        assert!(device.info().is_emulated(), "{}", device.info().name);
        let gpu = Self { emulator, device };
        gpu.label(Region::Staged);
        gpu
    }

    /// Labels the allocations made since the last call.
    fn label(&self, region: Region) {
        let report = self.emulator.report();
        for allocation in report["allocations"].as_array().expect("allocations") {
            let address = allocation["address"].as_str().expect("an address");
            let address = u64::from_str_radix(address.trim_start_matches("0x"), 16);
            if allocation["label"] == "" && allocation["freed"] == false {
                self.emulator.label(address.expect("a number"), region.name());
            }
        }
        self.emulator.clear_report();
    }

    fn linear(&self, kind: BlockType, rows: usize, cols: usize, head_dim: Option<usize>) -> Packed {
        let bytes = random(kind, rows, cols);
        let view = MatrixView { name: "m", rows, cols, kind, bytes: &bytes };
        let matrix = match head_dim {
            Some(head_dim) => self.device.rotary_matrix(view, head_dim),
            None => self.device.matrix(view),
        };
        let bytes = self.device.matrix_bytes(rows, cols, kind);
        Packed { linear: Linear { matrix: matrix.expect("room"), bias: None }, kind, bytes }
    }

    fn vector(&self, count: usize) -> <CudaDevice as Device>::Vector {
        let mut rng = Rng(count as u64);
        let values: Vec<f32> = (0..count).map(|_| 1.0 + rng.signed() * 0.3).collect();
        self.device.vector(&values).expect("room")
    }
}

struct Packed {
    linear: Linear<CudaDevice>,
    kind: BlockType,
    bytes: u64,
}

type Buffer = <CudaDevice as Device>::Buffer;

/// Rows between operations.
struct Rows {
    stream: <CudaDevice as Device>::Stream,
    hidden: Buffer,
    q: Buffer,
    mixed: Buffer,
    act: Buffer,
    logits: Buffer,
    pool: Buffer,
}

impl Rows {
    fn new(gpu: &Gpu, shape: &Shape) -> Self {
        let limits =
            PassLimits { rows: FILL_ROWS, full_rows: 1, positions: POOL_PAGES * shape.page_tokens };
        let take = |count: usize| {
            gpu.device.buffer(FILL_ROWS * count, Element::Activation, "rows").expect("room")
        };
        let heads = shape.heads * shape.head_dim;
        let (hidden, q, mixed, act) =
            (take(shape.hidden), take(heads), take(heads), take(shape.ffn));
        let logits = gpu.device.buffer(shape.vocab, Element::Logit, "logits").expect("room");
        let stream = gpu.device.stream(Role::Base, shape, &limits).expect("room");
        gpu.label(Region::Activations);
        let bytes = POOL_PAGES * shape.page_bytes;
        let pool = gpu.device.buffer(bytes, Element::KvByte, "pool").expect("room");
        gpu.label(Region::Kv);
        Self { stream, hidden, q, mixed, act, logits, pool }
    }
}

/// The matrices of one kind of layer.
struct Layer {
    qkv: QkvWeights<CudaDevice>,
    out: Linear<CudaDevice>,
    gate_up: GateUpWeights<CudaDevice>,
    down: Linear<CudaDevice>,
    /// Bytes of qkv, out, gate and up, down.
    bytes: [u64; 4],
    /// Their block types, or that of the largest.
    kinds: [BlockType; 4],
}

impl Layer {
    fn new(gpu: &Gpu, shape: &Shape, mix: Mix, part: Part) -> Self {
        let Shape { hidden, heads, kv_heads, head_dim, ffn, .. } = *shape;
        let kind = |weight, cols| mix.kind(part, weight, cols);
        let most = kind(Weight::Most, hidden);
        let q = gpu.linear(most, heads * head_dim, hidden, Some(head_dim));
        let k = gpu.linear(most, kv_heads * head_dim, hidden, Some(head_dim));
        let v = gpu.linear(kind(Weight::Fine, hidden), kv_heads * head_dim, hidden, None);
        let out_cols = heads * head_dim;
        let out = gpu.linear(kind(Weight::Most, out_cols), hidden, out_cols, None);
        let down = gpu.linear(kind(Weight::Fine, ffn), hidden, ffn, None);
        let bytes = random(most, ffn, hidden);
        let view = MatrixView { name: "m", rows: ffn, cols: hidden, kind: most, bytes: &bytes };
        let matrices = gpu.device.gate_up_matrices(view, view).expect("room");
        let pairs = gpu.device.gate_up_bytes(ffn, hidden, [most; 2]);
        gpu.label(Region::Weights);
        let bytes = [q.bytes + k.bytes + v.bytes, out.bytes, pairs, down.bytes];
        let kinds = [q.kind, out.kind, most, down.kind];
        let biased = |packed: Packed, heads: usize| Linear {
            matrix: packed.linear.matrix,
            bias: Some(gpu.vector(heads * head_dim)),
        };
        let layer = Self {
            qkv: QkvWeights {
                norm: gpu.vector(hidden),
                q: biased(q, heads),
                k: biased(k, kv_heads),
                v: biased(v, kv_heads),
                q_norm: None,
                k_norm: None,
            },
            out: out.linear,
            gate_up: GateUpWeights { norm: gpu.vector(hidden), matrices },
            down: down.linear,
            bytes,
            kinds,
        };
        gpu.label(Region::Vectors);
        layer
    }
}

/// Measures `passes` through a layer of each kind that the mix has, and `heads` through the head.
pub(crate) fn measure(
    fixture: &Fixture,
    mix: Mix,
    passes: &[Pass],
    heads: &[Pass],
) -> Vec<Measured> {
    let gpu = Gpu::open();
    let shape = fixture.layer_shape();
    let mut rows = Rows::new(&gpu, &shape);
    let table = gpu.linear(BlockType::BF16, EMBEDDED, shape.hidden, None);
    let rope = gpu.vector(POOL_PAGES * shape.page_tokens * shape.head_dim);
    gpu.label(Region::Vectors);
    fill(&gpu, &shape, &mut rows, &rope);
    let mut measured = vec![];
    for (part, layers) in mix.layers(fixture) {
        if layers > 0 {
            let layer = Layer::new(&gpu, &shape, mix, part);
            for pass in passes {
                let one = LayerPass { gpu: &gpu, shape: &shape, part, pass: *pass };
                measured.extend(one.run(&table, &rope, &layer, &mut rows));
            }
        }
    }
    if !heads.is_empty() {
        let kind = mix.kind(Part::Head, Weight::Head, shape.hidden);
        let head = gpu.linear(kind, shape.vocab, shape.hidden, None);
        gpu.label(Region::Weights);
        let norm = gpu.vector(shape.hidden);
        gpu.label(Region::Vectors);
        for pass in heads {
            let one = LayerPass { gpu: &gpu, shape: &shape, part: Part::Head, pass: *pass };
            measured.push(one.head(&table, &norm, &head, &mut rows));
        }
    }
    measured
}

/// Writes every key and value that a pass reads.
fn fill(gpu: &Gpu, shape: &Shape, rows: &mut Rows, rope: &<CudaDevice as Device>::Vector) {
    let narrow = Shape { hidden: FILL_COLUMNS, ..*shape };
    let matrix = |heads: usize, head_dim: Option<usize>| {
        gpu.linear(BlockType::BF16, heads * shape.head_dim, FILL_COLUMNS, head_dim).linear
    };
    let table = gpu.linear(BlockType::BF16, EMBEDDED, FILL_COLUMNS, None);
    let weights = QkvWeights {
        norm: gpu.vector(FILL_COLUMNS),
        q: matrix(shape.heads, Some(shape.head_dim)),
        k: matrix(shape.kv_heads, Some(shape.head_dim)),
        v: matrix(shape.kv_heads, None),
        q_norm: None,
        k_norm: None,
    };
    let Rows { stream, hidden, q, pool, .. } = rows;
    let device = &gpu.device;
    for start in (0..CONTEXT).step_by(FILL_ROWS) {
        let batch = device.stage(stream, branch(start, FILL_ROWS)).expect("a batch");
        let norm = &weights.norm;
        device.embed(stream, &table.linear.matrix, &batch, norm, hidden).expect("embed");
        device.qkv(stream, &narrow, 0, &weights, rope, &batch, hidden, q, pool).expect("qkv");
        finish(gpu, stream);
    }
    gpu.label(Region::Vectors);
}

/// Runs what was enqueued.
fn finish(gpu: &Gpu, stream: &<CudaDevice as Device>::Stream) {
    gpu.device.submit(stream).expect("a pass");
    gpu.device.collect(stream, &[], &mut []).expect("a pass");
}

struct LayerPass<'a> {
    gpu: &'a Gpu,
    shape: &'a Shape,
    part: Part,
    pass: Pass,
}

impl LayerPass<'_> {
    /// Runs what was enqueued and takes its counts.
    fn take(&self, op: Op, kind: Option<BlockType>, bytes: [u64; 2], rows: &Rows) -> Measured {
        self.gpu.emulator.clear_report();
        finish(self.gpu, &rows.stream);
        let launches = launches(&self.gpu.emulator.report());
        let [weight_bytes, kv_bytes] = bytes;
        // A panel is eight rows of gate and of up.
        let dealt_panels = (op == Op::GateUp).then(|| self.shape.ffn.div_ceil(8));
        let (part, pass) = (self.part, self.pass);
        Measured { part, pass, op, kind, weight_bytes, dealt_panels, kv_bytes, launches }
    }

    fn kv_bytes(&self) -> u64 {
        let Shape { kv_heads, head_dim, .. } = *self.shape;
        (self.pass.keys() * kv_heads * head_dim * 2 * 2) as u64
    }

    fn run(
        &self,
        table: &Packed,
        rope: &<CudaDevice as Device>::Vector,
        layer: &Layer,
        rows: &mut Rows,
    ) -> Vec<Measured> {
        let (device, shape) = (&self.gpu.device, self.shape);
        let batch = device.stage(&rows.stream, self.pass.batch()).expect("a batch");
        let Rows { stream, hidden, .. } = rows;
        let norms = [&layer.qkv.norm, &layer.gate_up.norm];
        device.embed(stream, &table.linear.matrix, &batch, norms[0], hidden).expect("embed");
        let embedded = self.take(Op::Embed, None, [0, 0], rows);
        let mut all = vec![embedded];
        for op in LAYER {
            let Rows { stream, hidden, q, mixed, act, pool, .. } = rows;
            let [qkv, out, pairs, down] = layer.bytes;
            let (done, bytes) = match op {
                Op::Qkv => (
                    device.qkv(stream, shape, 0, &layer.qkv, rope, &batch, hidden, q, pool),
                    [qkv, 0],
                ),
                Op::Attention => (
                    device.attention(stream, shape, 0, &batch, q, pool, mixed),
                    [0, self.kv_bytes()],
                ),
                Op::Out => {
                    let done = device.project(stream, &layer.out, &batch, mixed, norms[1], hidden);
                    (done, [out, 0])
                }
                Op::GateUp => {
                    (device.gate_up(stream, shape, &layer.gate_up, &batch, hidden, act), [pairs, 0])
                }
                _ => {
                    let done = device.project(stream, &layer.down, &batch, act, norms[0], hidden);
                    (done, [down, 0])
                }
            };
            done.unwrap_or_else(|e| panic!("{}: {e}", op.name()));
            let place = [Op::Qkv, Op::Out, Op::GateUp, Op::Down].iter().position(|o| *o == op);
            all.push(self.take(op, place.map(|i| layer.kinds[i]), bytes, rows));
        }
        all
    }

    fn head(
        &self,
        table: &Packed,
        norm: &<CudaDevice as Device>::Vector,
        head: &Packed,
        rows: &mut Rows,
    ) -> Measured {
        let device = &self.gpu.device;
        let batch = device.stage(&rows.stream, self.pass.batch()).expect("a batch");
        let Rows { stream, hidden, .. } = rows;
        device.embed(stream, &table.linear.matrix, &batch, norm, hidden).expect("embed");
        self.take(Op::Embed, None, [0, 0], rows);
        let Rows { stream, hidden, logits, .. } = rows;
        let weights = HeadWeights { norm, matrix: &head.linear.matrix };
        let done = device.head(stream, self.shape, &weights, &batch, hidden, logits, &mut ());
        done.unwrap_or_else(|e| panic!("head: {e}"));
        let bytes = match self.pass {
            Pass::Score => head.bytes / self.shape.vocab as u64 * LABELS as u64,
            Pass::Propose => head.bytes / self.shape.vocab as u64 * PROPOSED_IDS as u64,
            Pass::Decode | Pass::Verify => head.bytes,
        };
        self.take(Op::Head, Some(head.kind), [bytes, 0], rows)
    }
}

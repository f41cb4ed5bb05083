//! Small random models and batches over any device.

use forerun::device::{
    BlockType, Device, Element, GateUpWeights, HeadKind, HeadRow, HeadWeights, Linear, Mask,
    MatrixView, PassLimits, QkvWeights, RaggedBatch, Results, RowGroup, Shape, Span,
};
use forerun::ids::{PageId, Role, TokenId};
use half::{bf16, f16};

/// SplitMix64: the tests need numbers that are the same everywhere, nothing more.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[-1, 1)`.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn vector(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.signed() * scale).collect()
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }
}

/// What a model is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) shape: Shape,
    /// Of every matrix whose rows are whole blocks of it; `F32` of the others.
    pub(crate) kind: BlockType,
    /// Biases of q, k, v (Qwen2).
    pub(crate) bias: bool,
    /// Per-head norms (Qwen3).
    pub(crate) head_norm: bool,
    pub(crate) positions: usize,
}

/// For operations that take all their sizes from their operands.
pub(crate) const BARE: Shape = Shape {
    hidden: 4096,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    ffn: 512,
    vocab: 300,
    rms_eps: 1e-6,
    layers: 1,
    page_tokens: 16,
    page_bytes: 2 * 16 * 32 * 4,
};

/// Passes of the tests are no larger.
pub(crate) const LIMITS: PassLimits = PassLimits { rows: 1280, full_rows: 16, positions: 2048 };

impl Spec {
    /// A model of `layers` layers with `[H, G, D, P]`, for a pool of elements of `kv_bytes`.
    pub(crate) fn new(
        layers: usize,
        [h, g, d, p]: [usize; 4],
        kind: BlockType,
        kv_bytes: usize,
    ) -> Self {
        let shape = Shape {
            hidden: 256,
            heads: h,
            kv_heads: g,
            head_dim: d,
            ffn: 512,
            vocab: 300,
            rms_eps: 1e-6,
            layers,
            page_tokens: p,
            page_bytes: layers * 2 * g * p * d * kv_bytes,
        };
        Self { shape, kind, bias: true, head_norm: false, positions: 2048 }
    }
}

/// Blocks of random values of about `amplitude` at most.
pub(crate) fn encode(
    kind: BlockType,
    rows: usize,
    cols: usize,
    amplitude: f32,
    rng: &mut Rng,
) -> Vec<u8> {
    let blocks = rows * cols / kind.block_elements();
    let mut bytes = Vec::with_capacity(blocks * kind.block_bytes());
    for _ in 0..blocks {
        let value = rng.signed() * amplitude;
        match kind {
            BlockType::F32 => bytes.extend(value.to_le_bytes()),
            BlockType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            BlockType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            _ => {
                let start = bytes.len();
                bytes.extend((0..kind.block_bytes()).map(|_| rng.word() as u8));
                // The largest quantised value times the scale is the amplitude.
                let scale = |largest: f32| f16::from_f32(amplitude / largest).to_le_bytes();
                let (scale_at, largest, minimum) = match kind {
                    BlockType::Q8_0 => (0, 127.0, None),
                    BlockType::Q4_0 => (0, 8.0, None),
                    BlockType::Q4_1 => (0, 7.5, Some(-1.0)),
                    BlockType::Q5_0 => (0, 16.0, None),
                    BlockType::Q5_1 => (0, 15.5, Some(-1.0)),
                    BlockType::Q4_K => (0, 15.0 * 63.0, Some(63.0)),
                    BlockType::Q5_K => (0, 31.0 * 63.0, Some(63.0)),
                    BlockType::Q6_K => (208, 32.0 * 127.0, None),
                    plain => unreachable!("{plain} was encoded above"),
                };
                bytes[start + scale_at..][..2].copy_from_slice(&scale(largest));
                if let Some(divisor) = minimum {
                    bytes[start + 2..][..2].copy_from_slice(&scale(divisor));
                }
            }
        }
    }
    bytes
}

pub(crate) fn matrix<D: Device>(
    device: &D,
    rows: usize,
    cols: usize,
    kind: BlockType,
    bytes: &[u8],
) -> D::Matrix {
    device.matrix(MatrixView { name: "m", rows, cols, kind, bytes }).unwrap()
}

/// Queries' or keys' matrix of a model, for [`Device::qkv`].
pub(crate) fn rotated<D: Device>(
    device: &D,
    shape: &Shape,
    head_norm: bool,
    (kind, rows): (BlockType, usize),
    bytes: &[u8],
) -> D::Matrix {
    let view = MatrixView { name: "m", rows, cols: shape.hidden, kind, bytes };
    let packed = match head_norm {
        true => device.matrix(view),
        false => device.rotary_matrix(view, shape.head_dim),
    };
    packed.unwrap()
}

/// Gate and up, each as rows, columns, block type and bytes.
pub(crate) fn gate_up<D: Device>(
    device: &D,
    matrices: [(usize, usize, BlockType, &[u8]); 2],
) -> D::GateUp {
    let view = |(rows, cols, kind, bytes)| MatrixView { name: "m", rows, cols, kind, bytes };
    let [gate, up] = matrices.map(view);
    device.gate_up_matrices(gate, up).unwrap()
}

/// Values as a matrix of f32.
pub(crate) fn plain<D: Device>(device: &D, cols: usize, values: &[f32]) -> D::Matrix {
    matrix(device, values.len() / cols, cols, BlockType::F32, bytemuck::cast_slice(values))
}

pub(crate) struct Layer<D: Device> {
    pub(crate) qkv: QkvWeights<D>,
    pub(crate) out: Linear<D>,
    pub(crate) gate_up: GateUpWeights<D>,
    pub(crate) down: Linear<D>,
}

pub(crate) struct Model<D: Device> {
    pub(crate) spec: Spec,
    pub(crate) embedding: D::Matrix,
    pub(crate) layers: Vec<Layer<D>>,
    pub(crate) norm: D::Vector,
    pub(crate) head: D::Matrix,
    pub(crate) rope: D::Vector,
}

/// `[positions][cos, sin]` with the usual base.
pub(crate) fn rope_table(positions: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| p as f64 / 10_000_f64.powf(i as f64 / half as f64);
    (0..positions)
        .flat_map(|p| {
            let cos = (0..half).map(move |i| angle(p, i).cos() as f32);
            cos.chain((0..half).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

impl<D: Device> Model<D> {
    /// The same model on every device.
    pub(crate) fn new(device: &D, spec: Spec) -> Self {
        let mut rng = Rng(spec.kind.block_bytes() as u64);
        let Shape { hidden, heads, kv_heads, head_dim, ffn, layers, .. } = spec.shape;
        let mut encoded = |rows: usize, cols: usize| {
            let whole = cols.is_multiple_of(spec.kind.block_elements());
            let kind = if whole { spec.kind } else { BlockType::F32 };
            (kind, encode(kind, rows, cols, 1.5 / (cols as f32).sqrt(), &mut rng))
        };
        let mut rng = Rng(77);
        let mut vector = |count: usize, around: f32| {
            let values: Vec<f32> = (0..count).map(|_| around + rng.signed() * 0.3).collect();
            device.vector(&values).unwrap()
        };
        let layers = (0..layers)
            .map(|_| {
                let mut biased = |heads: usize, is_rotated: bool| {
                    let rows = heads * head_dim;
                    let (kind, bytes) = encoded(rows, hidden);
                    let matrix = match is_rotated {
                        true => rotated(device, &spec.shape, spec.head_norm, (kind, rows), &bytes),
                        false => matrix(device, rows, hidden, kind, &bytes),
                    };
                    Linear { matrix, bias: spec.bias.then(|| vector(rows, 0.0)) }
                };
                let (q, k) = (biased(heads, true), biased(kv_heads, true));
                let v = biased(kv_heads, false);
                let mut weight = |rows: usize, cols: usize| {
                    let (kind, bytes) = encoded(rows, cols);
                    matrix(device, rows, cols, kind, &bytes)
                };
                let out = Linear { matrix: weight(hidden, heads * head_dim), bias: None };
                let down = Linear { matrix: weight(hidden, ffn), bias: None };
                let [gate, up] = [(); 2].map(|()| encoded(ffn, hidden));
                let matrices = gate_up(
                    device,
                    [&gate, &up].map(|(kind, bytes)| (ffn, hidden, *kind, bytes.as_slice())),
                );
                let head_norm = spec.head_norm.then_some(head_dim);
                let qkv = QkvWeights {
                    norm: vector(hidden, 1.0),
                    q,
                    k,
                    v,
                    q_norm: head_norm.map(|d| vector(d, 1.0)),
                    k_norm: head_norm.map(|d| vector(d, 1.0)),
                };
                let gate_up = GateUpWeights { norm: vector(hidden, 1.0), matrices };
                Layer { qkv, out, gate_up, down }
            })
            .collect();
        let rope = device.vector(&rope_table(spec.positions, head_dim)).unwrap();
        let (kind, bytes) = encoded(spec.shape.vocab, hidden);
        let head = matrix(device, spec.shape.vocab, hidden, kind, &bytes);
        // Plain, so that a row of NaN can stand for what is left in recycled pages.
        let mut rows = Rng(5).vector(spec.shape.vocab * hidden, 1.0);
        rows[POISON as usize * hidden..][..hidden].fill(f32::NAN);
        let embedding = plain(device, hidden, &rows);
        Self { spec, embedding, layers, norm: vector(hidden, 1.0), head, rope }
    }
}

/// The token whose hidden state is NaN.
pub(crate) const POISON: u32 = 299;

/// Buffers for passes of up to `rows` rows over a pool of `pages` pages.
pub(crate) struct Buffers<D: Device> {
    pub(crate) stream: D::Stream,
    pub(crate) hidden: D::Buffer,
    pub(crate) q: D::Buffer,
    pub(crate) mixed: D::Buffer,
    pub(crate) act: D::Buffer,
    pub(crate) logits: D::Buffer,
    pub(crate) pool: D::Buffer,
    pub(crate) results: D::Results,
}

impl<D: Device> Buffers<D> {
    pub(crate) fn new(device: &D, spec: &Spec, rows: usize, pages: usize) -> Self {
        let shape = &spec.shape;
        let take = |count: usize| device.buffer(count, Element::Activation, "test").unwrap();
        Self {
            stream: device.stream(Role::Base, shape, &LIMITS).unwrap(),
            hidden: take(rows * shape.hidden),
            q: take(rows * shape.heads * shape.head_dim),
            mixed: take(rows * shape.heads * shape.head_dim),
            act: take(rows * shape.ffn),
            logits: device.buffer(16 * spec.shape.vocab, Element::Logit, "test").unwrap(),
            pool: device.buffer(pages * shape.page_bytes, Element::KvByte, "test").unwrap(),
            results: device.results(&LIMITS).unwrap(),
        }
    }

    /// Fills a buffer of width `cols` through `embed`, which is the only way in. `norm` is what the
    /// next operation norms the rows by; one that does not takes any.
    pub(crate) fn upload(
        device: &D,
        stream: &D::Stream,
        cols: usize,
        values: &[f32],
        norm: &D::Vector,
        to: &mut D::Buffer,
    ) {
        let table = plain(device, cols, values);
        let rows = values.len() / cols;
        let tokens = (0..rows as u32).map(TokenId).collect();
        let batch = RaggedBatch { tokens, ..RaggedBatch::default() };
        let batch = device.stage(stream, batch).unwrap();
        device.embed(stream, &table, &batch, norm, to).unwrap();
    }

    /// One pass through the whole model.
    pub(crate) fn forward(&mut self, device: &D, model: &Model<D>, batch: RaggedBatch) -> Results {
        let spec = &model.spec;
        batch.validate(spec.shape.vocab, spec.shape.page_tokens, spec.positions).unwrap();
        let Self { stream, hidden, q, mixed, act, logits, pool, results } = self;
        let (shape, rope) = (&spec.shape, &model.rope);
        let batch = device.stage(stream, batch).unwrap();
        let norm_of = |n: usize| model.layers.get(n).map_or(&model.norm, |layer| &layer.qkv.norm);
        device.embed(stream, &model.embedding, &batch, norm_of(0), hidden).unwrap();
        for (n, layer) in model.layers.iter().enumerate() {
            device.qkv(stream, shape, n, &layer.qkv, rope, &batch, hidden, q, pool).unwrap();
            device.attention(stream, shape, n, &batch, q, pool, mixed).unwrap();
            device.project(stream, &layer.out, &batch, mixed, &layer.gate_up.norm, hidden).unwrap();
            device.gate_up(stream, shape, &layer.gate_up, &batch, hidden, act).unwrap();
            device.project(stream, &layer.down, &batch, act, norm_of(n + 1), hidden).unwrap();
        }
        let head = HeadWeights { norm: &model.norm, matrix: &model.head };
        device.head(stream, shape, &head, &batch, hidden, logits, results).unwrap();
        device.sample(stream, &batch, logits, results).unwrap();
        let results = std::slice::from_mut(results);
        device.collect(stream, &[batch], results).unwrap().remove(0)
    }

    /// Hidden states of the last pass as bits, one vector per row.
    pub(crate) fn hidden_bits(&self, device: &D, spec: &Spec, rows: usize) -> Vec<Vec<u32>> {
        let width = spec.shape.hidden;
        let all = device.read(&self.stream, &self.hidden, 0, rows * width).unwrap();
        all.chunks(width).map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
    }

    /// The pages as bits.
    pub(crate) fn page_bits(&self, device: &D, spec: &Spec, pages: &[u32]) -> Vec<Vec<u32>> {
        let count = spec.shape.page_bytes / device.kv_type().bytes();
        let page = |p: &u32| {
            let all = device.read(&self.stream, &self.pool, *p as usize * count, count).unwrap();
            all.iter().map(|v| v.to_bits()).collect()
        };
        pages.iter().map(page).collect()
    }
}

/// A page table and how much of it is filled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) pages: Vec<u32>,
    pub(crate) len: usize,
}

impl Table {
    /// A table of every second page from `first` on, backwards: no two tables look alike.
    pub(crate) fn new(first: u32, pages: u32) -> Self {
        Self { pages: (0..pages).rev().map(|i| first + 2 * i).collect(), len: 0 }
    }
}

/// Appends groups of rows to a batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchBuilder(pub(crate) RaggedBatch);

impl BatchBuilder {
    /// Rows that see `prefix`, then `own` (whose length is not changed here).
    pub(crate) fn group(mut self, tokens: &[u32], prefix: &Table, own: &Table, mask: Mask) -> Self {
        let first = prefix.len + own.len;
        let positions: Vec<u32> = (0..tokens.len()).map(|i| (first + i) as u32).collect();
        self = self.group_at(tokens, &positions, prefix, own, mask);
        self
    }

    /// The same at given rotary positions.
    pub(crate) fn group_at(
        mut self,
        tokens: &[u32],
        positions: &[u32],
        prefix: &Table,
        own: &Table,
        mask: Mask,
    ) -> Self {
        let batch = &mut self.0;
        let mut span = |table: &Table| {
            let start = batch.pages.len();
            batch.pages.extend(table.pages.iter().map(|p| PageId(*p)));
            Span { pages: start..batch.pages.len(), len: table.len }
        };
        let (prefix, own) = (span(prefix), span(own));
        let start = batch.tokens.len();
        batch.tokens.extend(tokens.iter().map(|t| TokenId(*t)));
        batch.positions.extend(positions);
        batch.groups.push(RowGroup { rows: start..start + tokens.len(), prefix, own, mask });
        self
    }

    pub(crate) fn causal(self, tokens: &[u32], own: &Table) -> Self {
        self.group(tokens, &Table::default(), own, Mask::Causal)
    }

    pub(crate) fn head(mut self, row: usize, kind: HeadKind) -> Self {
        self.0.heads.push(HeadRow::new(row, kind));
        self
    }

    pub(crate) fn build(self) -> RaggedBatch {
        self.0
    }
}

/// Ordinary tokens.
pub(crate) fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..count).map(|_| rng.below(POISON as usize) as u32).collect()
}

//! Single operations and whole passes on any device: what tests of every device are made of.

use crate::harness::{
    BARE, BatchBuilder, Buffers, LIMITS, Layer, Model, Rng, Spec, Table, gate_up, matrix, plain,
    rotated, tokens,
};
use forerun::device::{
    BlockType, Device, Element, GateUpWeights, HeadKind, HeadResult, Linear, QkvWeights,
    RaggedBatch, Shape,
};
use forerun::ids::{Role, TokenId};

/// The weights of `bytes`, decoded.
pub(crate) fn decoded(kind: BlockType, rows: usize, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; rows * cols];
    let row_bytes = bytes.len() / rows;
    for (row, out) in values.chunks_mut(cols).enumerate() {
        forerun::device::blocks::dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], out);
    }
    values
}

/// A batch of `rows` rows that only projections look at.
pub(crate) fn rows_only(rows: usize) -> RaggedBatch {
    RaggedBatch { tokens: vec![TokenId(0); rows], ..RaggedBatch::default() }
}

/// `hidden + W x + b` on any device.
pub(crate) fn projected<D: Device>(
    device: &D,
    (kind, n, k): (BlockType, usize, usize),
    (bytes, bias): (&[u8], &[f32]),
    x: &[f32],
    hidden: &[f32],
) -> Vec<f32> {
    let stream = device.stream(Role::Base, &BARE, &LIMITS).unwrap();
    let rows = x.len() / k;
    let mut input = device.buffer(rows * k, Element::Activation, "x").unwrap();
    let mut output = device.buffer(rows * n, Element::Activation, "hidden").unwrap();
    let norm = device.vector(&vec![1.0; n.max(k)]).unwrap();
    Buffers::upload(device, &stream, k, x, &norm, &mut input);
    Buffers::upload(device, &stream, n, hidden, &norm, &mut output);
    let weights = Linear {
        matrix: matrix(device, n, k, kind, bytes),
        bias: Some(device.vector(bias).unwrap()),
    };
    let batch = device.stage(&stream, rows_only(rows)).unwrap();
    device.project(&stream, &weights, &batch, &input, &norm, &mut output).unwrap();
    device.read(&stream, &output, 0, rows * n).unwrap()
}

/// Queries and pool of one device after `qkv` of random rows.
pub(crate) fn queries_and_pool<D: Device>(
    device: &D,
    spec: &Spec,
    rows: usize,
    start: usize,
) -> [Vec<f32>; 2] {
    let model = Model::new(device, *spec);
    let shape = &spec.shape;
    let pages = (start + rows).div_ceil(shape.page_tokens);
    let mut buffers = Buffers::new(device, spec, rows, 2 * pages);
    let x = Rng(8).vector(rows * shape.hidden, 2.0);
    let norm = &model.layers[1].qkv.norm;
    Buffers::upload(device, &buffers.stream, shape.hidden, &x, norm, &mut buffers.hidden);
    let mut table = Table::new(0, pages as u32);
    table.len = start;
    let batch = BatchBuilder::default().causal(&vec![0; rows], &table).build();
    let Buffers { stream, hidden, q, pool, .. } = &mut buffers;
    let batch = device.stage(stream, batch).unwrap();
    let Layer { qkv, .. } = &model.layers[1];
    device.qkv(stream, shape, 1, qkv, &model.rope, &batch, hidden, q, pool).unwrap();
    let count = 2 * pages * shape.page_bytes / device.kv_type().bytes();
    [
        device.read(stream, q, 0, rows * shape.heads * shape.head_dim).unwrap(),
        device.read(stream, pool, 0, count).unwrap(),
    ]
}

/// Fills a pool and a query buffer with numbers every device computes exactly, then attends.
///
/// Hidden states of ±1 have norm 1, so products with small dyadic weights are exact sums, and an
/// identity rotation keeps them. The pools are then the same to the last bit.
pub(crate) fn attended<D: Device>(
    device: &D,
    shape: &Shape,
    batch: &RaggedBatch,
    fill: &Filling,
) -> [Vec<f32>; 2] {
    let Shape { hidden: c, heads, kv_heads, head_dim: d, .. } = *shape;
    let stream = device.stream(Role::Base, shape, &LIMITS).unwrap();
    let mut rng = Rng(21);
    let mut dyadic = |rows: usize| -> Vec<f32> {
        (0..rows * c).map(|_| (rng.signed() * 4.0).round() / 8.0).collect()
    };
    let values = [heads, kv_heads, kv_heads].map(|heads| dyadic(heads * d));
    let rotated = |values: &[f32]| {
        let of = (BlockType::F32, values.len() / c);
        let matrix = rotated(device, shape, false, of, bytemuck::cast_slice(values));
        Linear::<D> { matrix, bias: None }
    };
    let weights = QkvWeights::<D> {
        norm: device.vector(&vec![1.0; c]).unwrap(),
        q: rotated(&values[0]),
        k: rotated(&values[1]),
        v: Linear { matrix: plain(device, c, &values[2]), bias: None },
        q_norm: None,
        k_norm: None,
    };
    let identity: Vec<f32> = (0..2048 * d).map(|i| if i % d < d / 2 { 1.0 } else { 0.0 }).collect();
    let rope = device.vector(&identity).unwrap();
    let rows_max = batch.rows().max(fill.rows);
    let take = |count: usize| device.buffer(count, Element::Activation, "test").unwrap();
    let (mut hidden, mut q, mut out) =
        (take(rows_max * c), take(rows_max * heads * d), take(rows_max * heads * d));
    let mut pool = device.buffer(fill.pages * shape.page_bytes, Element::KvByte, "pool").unwrap();
    let mut signs = Rng(22);
    let mut pass = |batch: &RaggedBatch, q: &mut D::Buffer, pool: &mut D::Buffer| {
        let signs: Vec<f32> =
            (0..batch.rows() * c).map(|_| if signs.word() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        Buffers::upload(device, &stream, c, &signs, &weights.norm, &mut hidden);
        let staged = device.stage(&stream, batch.clone()).unwrap();
        device.qkv(&stream, shape, 0, &weights, &rope, &staged, &hidden, q, pool).unwrap();
        staged
    };
    for earlier in &fill.batches {
        pass(earlier, &mut q, &mut pool);
    }
    let staged = pass(batch, &mut q, &mut pool);
    device.attention(&stream, shape, 0, &staged, &q, &pool, &mut out).unwrap();
    let pool_count = fill.pages * shape.page_bytes / device.kv_type().bytes();
    [
        device.read(&stream, &out, 0, batch.rows() * heads * d).unwrap(),
        device.read(&stream, &pool, 0, pool_count).unwrap(),
    ]
}

/// What is in the pool before the batch in question.
pub(crate) struct Filling {
    pub(crate) batches: Vec<RaggedBatch>,
    pub(crate) rows: usize,
    pub(crate) pages: usize,
}

/// Rows of an embedding as bits.
pub(crate) fn embedded<D: Device>(
    device: &D,
    kind: BlockType,
    bytes: &[u8],
    ids: &[TokenId],
) -> Vec<u32> {
    let stream = device.stream(Role::Base, &BARE, &LIMITS).unwrap();
    let table = matrix(device, 37, 512, kind, bytes);
    let batch = RaggedBatch { tokens: ids.to_vec(), ..RaggedBatch::default() };
    let batch = device.stage(&stream, batch).unwrap();
    let count = ids.len() * 512;
    let mut hidden = device.buffer(count, Element::Activation, "hidden").unwrap();
    let norm = device.vector(&[1.0; 512]).unwrap();
    device.embed(&stream, &table, &batch, &norm, &mut hidden).unwrap();
    let all = device.read(&stream, &hidden, 0, count).unwrap();
    all.iter().map(|v| v.to_bits()).collect()
}

/// A row over its root mean square, times `norm`, in f64 and rounded once.
pub(crate) fn normed(row: &[f32], norm: &[f32], eps: f32) -> Vec<f32> {
    let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    let weighted = row.iter().zip(norm).map(|(v, w)| f64::from(*v) * scale * f64::from(*w));
    weighted.map(|v| v as f32).collect()
}

/// `silu(gate x) * (up x)` of the normed rows.
pub(crate) fn gated<D: Device>(
    device: &D,
    spec: &Spec,
    [g, u]: [&[u8]; 2],
    norm: &[f32],
    x: &[f32],
) -> Vec<f32> {
    let (c, f) = (spec.shape.hidden, spec.shape.ffn);
    let stream = device.stream(Role::Base, &BARE, &LIMITS).unwrap();
    let rows = x.len() / c;
    let mut hidden = device.buffer(rows * c, Element::Activation, "hidden").unwrap();
    let mut act = device.buffer(rows * f, Element::Activation, "act").unwrap();
    let weights = GateUpWeights {
        norm: device.vector(norm).unwrap(),
        matrices: gate_up(device, [(f, c, spec.kind, g), (f, c, spec.kind, u)]),
    };
    Buffers::upload(device, &stream, c, x, &weights.norm, &mut hidden);
    let batch = device.stage(&stream, rows_only(rows)).unwrap();
    device.gate_up(&stream, &spec.shape, &weights, &batch, &hidden, &mut act).unwrap();
    device.read(&stream, &act, 0, rows * f).unwrap()
}

/// Full logits of sixteen rows behind 24 others, through a whole model.
pub(crate) fn chain<D: Device>(device: &D, spec: Spec) -> Vec<f32> {
    let model = Model::new(device, spec);
    let mut buffers = Buffers::new(device, &spec, 40, 10);
    let batch = BatchBuilder::default().causal(&tokens(40, 3), &Table::new(0, 3));
    let batch = (0..16).fold(batch, |b, i| b.head(24 + i, HeadKind::Full)).build();
    buffers.forward(device, &model, batch);
    device.read(&buffers.stream, &buffers.logits, 0, 16 * spec.shape.vocab).unwrap()
}

/// Everything one row leaves: hidden state, and what its heads found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowBits {
    pub(crate) hidden: Vec<u32>,
    pub(crate) heads: Vec<u32>,
}

pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) table: Table,
}

/// A wanted result of every kind that fits into the logits buffer.
pub(crate) fn with_heads(mut batch: BatchBuilder, rows: std::ops::Range<usize>) -> RaggedBatch {
    for row in rows.clone() {
        batch = batch
            .head(row, HeadKind::Argmax)
            .head(row, HeadKind::LogProb(TokenId(17)))
            .head(row, HeadKind::Labels(vec![TokenId(3), TokenId(250), TokenId(9)]));
    }
    batch.build()
}

/// Runs the next `count` tokens of `sequence` after `company` other sequences.
pub(crate) fn step<D: Device>(
    device: &D,
    model: &Model<D>,
    buffers: &mut Buffers<D>,
    sequence: &mut Sequence,
    count: usize,
    company: &[Sequence],
) -> Vec<RowBits> {
    let mut batch = BatchBuilder::default();
    let mut before = 0;
    for other in company {
        batch = batch.causal(&other.tokens, &other.table);
        before += other.tokens.len();
    }
    let start = sequence.table.len;
    batch = batch.causal(&sequence.tokens[start..start + count], &sequence.table);
    let results = buffers.forward(device, model, with_heads(batch, before..before + count));
    assert_eq!(results.non_finite_row, None);
    sequence.table.len += count;
    let hidden = buffers.hidden_bits(device, &model.spec, before + count);
    let heads: Vec<Vec<u32>> = results
        .heads
        .chunks(3)
        .map(|three| {
            three
                .iter()
                .flat_map(|head| match head {
                    HeadResult::Argmax { id, logit } => vec![id.0, logit.to_bits()],
                    HeadResult::LogProb(p) => vec![p.to_bits()],
                    HeadResult::Labels(p) => p.iter().map(|p| p.to_bits()).collect(),
                    HeadResult::Full(_) => panic!("no full head was asked for"),
                })
                .collect()
        })
        .collect();
    hidden[before..]
        .iter()
        .cloned()
        .zip(heads)
        .map(|(hidden, heads)| RowBits { hidden, heads })
        .collect()
}

/// All rows of one sequence, cut into the given chunks, the last of which repeats.
pub(crate) fn in_chunks<D: Device>(
    device: &D,
    model: &Model<D>,
    total: usize,
    chunks: &[usize],
    company: &[Sequence],
) -> (Vec<RowBits>, Vec<Vec<u32>>) {
    let p = model.spec.shape.page_tokens;
    let mut buffers = Buffers::new(device, &model.spec, 400, 160);
    let table = Table::new(0, total.div_ceil(p) as u32);
    let mut sequence = Sequence { tokens: tokens(total, 11), table };
    let mut rows = Vec::new();
    let mut sizes = chunks.iter().chain(std::iter::repeat(chunks.last().unwrap()));
    while rows.len() < total {
        let count = (*sizes.next().unwrap()).min(total - rows.len());
        rows.extend(step(device, model, &mut buffers, &mut sequence, count, company));
    }
    let pages = buffers.page_bits(device, &model.spec, &sequence.table.pages);
    (rows, pages)
}

/// Six other sequences of one row each, in pages of their own.
pub(crate) fn company() -> Vec<Sequence> {
    let other = |i: u32| Sequence {
        tokens: tokens(1, 100 + u64::from(i)),
        table: Table { pages: vec![100 + i], len: 0 },
    };
    (0..6).map(other).collect()
}

pub(crate) fn assert_same_rows(
    a: &(Vec<RowBits>, Vec<Vec<u32>>),
    b: &(Vec<RowBits>, Vec<Vec<u32>>),
    what: &str,
) {
    for (t, (a, b)) in a.0.iter().zip(&b.0).enumerate() {
        assert_eq!(a, b, "row {t} differs: {what}");
    }
    assert_eq!(a.0.len(), b.0.len());
    assert!(a.1 == b.1, "keys or values differ: {what}");
}

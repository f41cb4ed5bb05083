//! The CUDA device: hand-written kernels, driven through the driver API.
//!
//! An operation builds one or two `launch::Launch`es from sizes and addresses (`ops`) and hands
//! them to its stream, which runs a whole pass at [`Device::submit`], as a graph where it has seen
//! the pass before. Memory is taken at start-up (`arena`), batches go up in one copy
//! (`staging`), results come down in one. Invariant: between `stage` and `collect` the host waits
//! for nothing.
//! Read next: `launch`, then `kernels/common/batch.cuh` for what a kernel sees.

mod arena;
mod driver;
pub(crate) mod gpu;
mod graph;
mod green;
#[allow(dead_code, reason = "tests/cuda_build.rs includes this file for the rest")]
pub(crate) mod kernels;
mod launch;
mod layout;
mod modules;
mod ops;
mod options;
mod pack;
mod plan;
#[cfg(test)]
mod samples;
mod staging;
mod stream;

use super::{
    BlockType, CHAIN_MAX, Device, DeviceInfo, Element, GateUpWeights, HeadWeights, KvType, Linear,
    MatrixView, PageCopy, PassLimits, QkvWeights, RaggedBatch, Results, Shape,
};
use crate::error::DeviceError;
use crate::ids::Role;
use arena::Arena;
use driver::{Context, Queue};
use green::Partition;
use half::bf16;
use launch::Launch;
use layout::Address;
use modules::Modules;
use ops::attention::{AttentionBuffers, AttentionOp};
use ops::copy::{self, CopyEntry};
use ops::embed::{EmbedParams, embed};
use ops::feed::feed;
use ops::gate_up::{GateUpParams, gate_up};
use ops::head::{self, HeadParams};
use ops::keep::{KeepParams, keep};
use ops::labels::{LabelsParams, labels};
use ops::matrix::{Matrix, Preparation, PreparedRows, SplitSums};
use ops::project::{ProjectParams, project};
use ops::qkv::{self, QkvInput, QkvOutput};
use ops::rope_append::{RopeAppendBuffers, rope_append};
use ops::sample::{Cut, SCRATCH_BYTES, SampleBuffers, SampleSource, launch_sample};
pub use options::CudaOptions;
use pack::{Packing, Source};
use plan::PlanLimits;
pub use staging::CudaBatch;
use staging::{Buckets, bucket};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
pub use stream::Overlap;
use stream::{LISTS_BYTES, LastPass, Stream, StreamMemory};

/// Bytes of a stream's staged batches between two waits: rows, page tables and sampling histories.
const BLOB_BYTES: usize = 16 << 20;
/// Partial attention states of a pass (one row, one split of the keys, all heads).
const PARTIALS_MAX: usize = 2048;
/// Page copies one launch makes.
const COPIES_MAX: usize = 1024;

/// What streams need to stay alive.
struct Shared {
    arena: Arena,
    modules: Arc<Modules>,
    partition: Option<Partition>,
    last_pass: Option<LastPass>,
    options: CudaOptions,
    /// Whether kernels may begin early: asked for, and the device can.
    dependent_launch: bool,
    /// Bytes that block types without a kernel of their own cost.
    widened_bytes: AtomicU64,
    context: Arc<Context>,
}

/// An NVIDIA GPU.
pub struct CudaDevice(Arc<Shared>);

/// Writable device memory.
#[derive(Debug)]
pub struct CudaBuffer {
    address: Address,
    element: Element,
}

/// A packed matrix; its type may be wider than the file's.
#[derive(Debug)]
pub struct CudaMatrix {
    packed: Matrix,
    /// Whether its rows lie as `kernels/qkv.cu` rotates them.
    rotary: bool,
}

/// Gate and up, packed as one matrix.
pub struct CudaPairs {
    packed: Matrix,
    /// `F`.
    features: usize,
}

/// A vector of f32; clones are of one memory, which the device keeps.
#[derive(Debug, Clone)]
pub struct CudaVector(Address);

/// A model's stream and the scratch memory of its passes.
pub struct CudaStream {
    stream: RefCell<Stream>,
    shape: Shape,
    rows_max: usize,
    scratch: Scratch,
    /// Of which buffer [`Scratch::rows`] holds the rows, and for which norm.
    prepared: Cell<[Address; 2]>,
    limits: PlanLimits,
    // Last, so that the memory outlives the stream.
    _shared: Arc<Shared>,
}

/// Addresses of memory only kernels see.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    /// What the next norm needs of the hidden states.
    rows: PreparedRows,
    /// Sums of matrix kernels that split K.
    split: SplitSums,
    /// Sums of `qkv` before they are rounded, f32 `[T, (H + 2 G) D]`.
    qkv: Address,
    /// Partial attention states.
    partials: Address,
    /// How many splits of a row have been left, i32 `[T, G]`, zeros between kernels.
    row_arrivals: Address,
    /// Summaries of logits, one a head and CTA.
    summaries: Address,
    /// The logits that log-probabilities ask about, one a head.
    targets: Address,
    /// Tokens of fed rows, one a row.
    fed: Address,
    /// What the parts of a row leave for its draw, one a sample.
    samples: Address,
    /// What a draw leaves for acceptance, one a sample.
    cuts: Address,
    /// One integer.
    found: Address,
}

/// Whether this program was built with kernels.
#[must_use]
pub fn has_kernels() -> bool {
    kernels::built().is_some()
}

impl CudaDevice {
    /// Opens the driver and loads the kernels.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no driver, no device, no kernel for it, or no
    /// such overlap mode.
    pub fn open(options: &CudaOptions) -> Result<Self, DeviceError> {
        let context = Context::open(options.ordinal, options.driver.as_deref())?;
        let modules = Arc::new(Modules::load(&context, options.image.as_deref())?);
        let (free, all) = context.memory()?;
        let limit = ((all as f64 * options.memory_utilization) as u64).min(free);
        let partition = match options.overlap {
            Overlap::GreenContexts => Some(Partition::new(&context, options.draft_sm_pct)?),
            Overlap::Off | Overlap::Stream => None,
        };
        if let Some(partition) = &partition {
            let [draft, base] = partition.sms();
            tracing::info!("green contexts: {draft} SMs for the draft, {base} for the base");
        }
        let dependent_launch = options.dependent_launch && context.properties.dependent_launch();
        let (name, archs) = (&context.properties.name, &modules.archs);
        tracing::info!("{name}: kernels for {archs:?}, dependent launch {dependent_launch}");
        Ok(Self(Arc::new(Shared {
            arena: Arena::new(&context, limit),
            modules,
            partition,
            last_pass: (options.overlap == Overlap::Off).then(LastPass::default),
            options: options.clone(),
            dependent_launch,
            widened_bytes: AtomicU64::new(0),
            context,
        })))
    }

    /// Runs what was enqueued on `stream` and waits for it; milliseconds it took by the device's
    /// own clock. For benches: an engine waits at [`Device::collect`] alone.
    ///
    /// # Errors
    /// On a device failure.
    pub fn submit_timed(&self, stream: &CudaStream) -> Result<f64, DeviceError> {
        self.0.context.bind()?;
        stream.stream.borrow_mut().submit_timed(&self.0.context)
    }

    /// SMs of each model by [`Role::index`], where each has its own.
    #[must_use]
    pub fn partition_sms(&self) -> Option<[u32; 2]> {
        self.0.partition.as_ref().map(Partition::sms)
    }
}

impl CudaDevice {
    fn pack(&self, source: &Source<'_>, name: &str) -> Result<Matrix, DeviceError> {
        let packing = source.packing();
        self.0.widened_bytes.fetch_add(packing.widening_bytes as u64, Ordering::Relaxed);
        let address = self.0.arena.take(packing.bytes(), name)?;
        arena::upload_now(address, &source.pack(), name)?;
        Ok(Matrix::new(address, &packing))
    }
}

/// Sizes of a model's scratch memory, in bytes.
struct ScratchSizes {
    rows: [usize; 2],
    qkv: usize,
    partials: usize,
    row_arrivals: usize,
    summaries: usize,
    targets: usize,
    fed: usize,
}

impl ScratchSizes {
    fn of(shape: &Shape, limits: &PassLimits) -> Self {
        let Shape { heads, kv_heads, head_dim, vocab, .. } = *shape;
        let rows = bucket(limits.rows);
        let vocab_heads = bucket(heads_max(limits));
        Self {
            rows: PreparedRows::bytes(rows, shape.hidden),
            qkv: qkv::sums_bytes(rows, heads, kv_heads, head_dim),
            partials: AttentionOp::partial_bytes(shape, PARTIALS_MAX),
            row_arrivals: rows * kv_heads * size_of::<i32>(),
            summaries: head::summaries_bytes(vocab_heads, vocab),
            targets: head::targets_bytes(vocab_heads),
            fed: rows * size_of::<i32>(),
        }
    }
}

/// Heads over the whole vocabulary of one pass: a few for each row.
fn heads_max(limits: &PassLimits) -> usize {
    2 * limits.rows + limits.full_rows
}

/// Bytes of the results of one pass.
fn results_bytes(limits: &PassLimits) -> usize {
    let heads = bucket(2 * heads_max(limits)) * size_of::<layout::HeadOut>();
    let labels = bucket(limits.rows * staging::LABELS_MAX) * size_of::<f32>();
    let samples = bucket(limits.full_rows) * size_of::<layout::SampleOut>();
    heads + labels + samples
}

fn address_of(vector: Option<&CudaVector>) -> Address {
    vector.map_or(Address::default(), |v| v.0)
}

impl Device for CudaDevice {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type GateUp = CudaPairs;
    type Vector = CudaVector;
    type Stream = CudaStream;
    type Batch = CudaBatch;
    // A stream owns the room for results: one copy brings those of a chain of passes.
    type Results = ();

    fn info(&self) -> DeviceInfo {
        let properties = &self.0.context.properties;
        DeviceInfo {
            kind: "cuda",
            name: properties.name.clone(),
            units: properties.sms,
            memory_bytes: self.0.arena.available_bytes(),
        }
    }

    fn kv_type(&self) -> KvType {
        KvType::Bf16
    }

    fn run_ahead(&self) -> usize {
        4
    }

    fn overlaps(&self) -> bool {
        self.0.options.overlap != Overlap::Off
    }

    fn matrix_bytes(&self, rows: usize, cols: usize, kind: BlockType) -> u64 {
        Packing::new(rows, cols, kind).bytes() as u64
    }

    fn pass_bytes(&self, shape: &Shape, limits: &PassLimits) -> u64 {
        let scratch = ScratchSizes::of(shape, limits);
        let row = shape.hidden + 2 * shape.heads * shape.head_dim + shape.ffn;
        let bytes = 2 * limits.rows * row
            + 4 * (limits.full_rows * shape.vocab + limits.positions * shape.head_dim)
            + scratch.rows[0]
            + scratch.rows[1]
            + SplitSums::bytes(self.sms())
            + SplitSums::arrivals_bytes(self.sms())
            + scratch.qkv
            + scratch.partials
            + scratch.row_arrivals
            + scratch.summaries
            + scratch.targets
            + scratch.fed
            + BLOB_BYTES
            + LISTS_BYTES
            + bucket(limits.full_rows) * SCRATCH_BYTES
            + bucket(limits.full_rows) * size_of::<Cut>()
            + CHAIN_MAX * results_bytes(limits);
        bytes as u64
    }

    fn buffer(
        &self,
        count: usize,
        element: Element,
        what: &str,
    ) -> Result<CudaBuffer, DeviceError> {
        let element_bytes = match element {
            Element::Activation => size_of::<bf16>(),
            Element::Logit => size_of::<f32>(),
            Element::KvByte => 1,
        };
        Ok(CudaBuffer { address: self.0.arena.take(count * element_bytes, what)?, element })
    }

    fn matrix(&self, view: MatrixView<'_>) -> Result<CudaMatrix, DeviceError> {
        Ok(CudaMatrix { packed: self.pack(&Source::Plain(view), view.name)?, rotary: false })
    }

    fn rotary_matrix(
        &self,
        view: MatrixView<'_>,
        head_dim: usize,
    ) -> Result<CudaMatrix, DeviceError> {
        let Some(source) = Source::rotary(view, head_dim) else { return self.matrix(view) };
        Ok(CudaMatrix { packed: self.pack(&source, view.name)?, rotary: true })
    }

    fn gate_up_bytes(&self, rows: usize, cols: usize, kinds: [BlockType; 2]) -> u64 {
        Packing::pairs(rows, cols, kinds).bytes() as u64
    }

    fn gate_up_matrices(
        &self,
        gate: MatrixView<'_>,
        up: MatrixView<'_>,
    ) -> Result<CudaPairs, DeviceError> {
        let packed = self.pack(&Source::Pairs([gate, up]), gate.name)?;
        Ok(CudaPairs { packed, features: gate.rows })
    }

    fn vector(&self, values: &[f32]) -> Result<CudaVector, DeviceError> {
        let address = self.0.arena.take(size_of_val(values), "vector")?;
        arena::upload_now(address, bytemuck::cast_slice(values), "vector")?;
        Ok(CudaVector(address))
    }

    fn results(&self, _limits: &PassLimits) -> Result<(), DeviceError> {
        Ok(())
    }

    fn stream(
        &self,
        role: Role,
        shape: &Shape,
        limits: &PassLimits,
    ) -> Result<CudaStream, DeviceError> {
        let shared = &self.0;
        AttentionOp::new(shape)?;
        let (context, name) = (&shared.context, role.name());
        context.bind()?;
        let queue = match &shared.partition {
            Some(partition) => partition.queue(context, role, name)?,
            None => Queue::new(context, name, role == Role::Draft)?,
        };
        let take =
            |bytes: usize, what: &str| shared.arena.take(bytes, &format!("{what} of {name}"));
        let sizes = ScratchSizes::of(shape, limits);
        let sms = self.sms();
        let arrivals = take(SplitSums::arrivals_bytes(sms), "arrivals")?;
        let row_arrivals = take(sizes.row_arrivals, "arrivals of rows")?;
        arena::zero_now(arrivals, SplitSums::arrivals_bytes(sms))?;
        arena::zero_now(row_arrivals, sizes.row_arrivals)?;
        let scratch = Scratch {
            rows: PreparedRows {
                scaled: take(sizes.rows[0], "scaled rows")?,
                squares: take(sizes.rows[1], "squares of rows")?,
            },
            split: SplitSums { sums: take(SplitSums::bytes(sms), "split sums")?, arrivals },
            qkv: take(sizes.qkv, "query, key and value sums")?,
            partials: take(sizes.partials, "partial attention")?,
            row_arrivals,
            summaries: take(sizes.summaries, "head summaries")?,
            targets: take(sizes.targets, "head targets")?,
            fed: take(sizes.fed, "fed tokens")?,
            samples: take(bucket(limits.full_rows) * SCRATCH_BYTES, "sampling candidates")?,
            cuts: take(bucket(limits.full_rows) * size_of::<Cut>(), "sampling cuts")?,
            found: take(size_of::<i32>(), "row found")?,
        };
        let blob = take(BLOB_BYTES, "staged batches")?;
        let (modules, last) = (shared.modules.clone(), shared.last_pass.clone());
        let lists = take(LISTS_BYTES, "lists")?;
        let results_bytes = CHAIN_MAX * results_bytes(limits);
        let results = take(results_bytes, "results")?;
        // Results are laid out in classes of sizes; what lies between them is copied, never read.
        arena::zero_now(results, results_bytes)?;
        let memory = StreamMemory { blob, blob_bytes: BLOB_BYTES, lists, results, results_bytes };
        Ok(CudaStream {
            stream: RefCell::new(Stream::new(
                context,
                queue,
                modules,
                memory,
                [shared.options.graphs, shared.dependent_launch],
                last,
            )?),
            shape: *shape,
            rows_max: limits.rows,
            scratch,
            prepared: Cell::default(),
            limits: PlanLimits {
                partials: PARTIALS_MAX,
                // Two CTAs of attention fit on an SM.
                concurrent_ctas: 2 * context.properties.sms,
            },
            _shared: shared.clone(),
        })
    }

    fn seal(&self) {
        let widened = self.0.widened_bytes.load(Ordering::Relaxed);
        if widened > 0 {
            tracing::warn!(
                "some weights have a type without a CUDA kernel and were widened: {widened} bytes \
                 more than in their files"
            );
        }
        self.0.arena.seal();
    }

    fn stage(&self, stream: &CudaStream, batch: RaggedBatch) -> Result<CudaBatch, DeviceError> {
        self.0.context.bind()?;
        assert!(batch.rows() <= stream.rows_max, "{} rows of {}", batch.rows(), stream.rows_max);
        let inner = &mut *stream.stream.borrow_mut();
        let (bytes, base) = inner.staging()?;
        let mut staged = CudaBatch::stage(batch, &stream.shape, &stream.limits, bytes, base)?;
        staged.results_at = inner.stage(staged.bytes, staged.results_bytes());
        Ok(staged)
    }

    fn embed(
        &self,
        stream: &CudaStream,
        table: &CudaMatrix,
        batch: &CudaBatch,
        next_norm: &CudaVector,
        hidden: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        let (batch, rows) = (batch.view, batch.buckets.rows);
        let (table, fed) = (table.packed, stream.scratch.fed);
        let next = stream.prepare(hidden, next_norm);
        let hidden = hidden.address;
        stream.enqueue([embed(rows, &EmbedParams { batch, table, fed, hidden, next })]);
        Ok(())
    }

    fn qkv(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        layer: usize,
        weights: &QkvWeights<Self>,
        rope: &CudaVector,
        batch: &CudaBatch,
        hidden: &CudaBuffer,
        q: &mut CudaBuffer,
        pool: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        let rows = batch.buckets.rows;
        let input = QkvInput {
            batch: batch.view,
            q: weights.q.matrix.packed,
            k: weights.k.matrix.packed,
            v: weights.v.matrix.packed,
            q_bias: address_of(weights.q.bias.as_ref()),
            k_bias: address_of(weights.k.bias.as_ref()),
            v_bias: address_of(weights.v.bias.as_ref()),
            rows: stream.prepared(hidden, &weights.norm),
            split: stream.scratch.split,
            eps: shape.rms_eps,
            reserved: 0,
        };
        let rotary = [weights.q.matrix.rotary, weights.k.matrix.rotary];
        assert!(rotary[0] == rotary[1], "q and k lie differently");
        if rotary[0] {
            assert!(weights.q_norm.is_none() && weights.k_norm.is_none(), "norms per head");
            let output = QkvOutput { rope: rope.0, q: q.address, pool: pool.address };
            stream.enqueue([qkv::qkv(rows, self.sms(), shape, layer, &input, &output)]);
            return Ok(());
        }
        let sums = stream.scratch.qkv;
        let buffers = RopeAppendBuffers {
            batch: batch.view,
            y: sums,
            rope: rope.0,
            q_norm: address_of(weights.q_norm.as_ref()),
            k_norm: address_of(weights.k_norm.as_ref()),
            q: q.address,
            pool: pool.address,
        };
        let append = rope_append(rows, shape, layer, &buffers);
        stream.enqueue([qkv::qkv_sums(rows, self.sms(), &input, sums), append]);
        Ok(())
    }

    fn keep_rows(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        batch: &CudaBatch,
        q: &mut CudaBuffer,
        hidden: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        stream.enqueue([keep(&KeepParams {
            batch: batch.view,
            kept: batch.kept,
            q: q.address,
            hidden: hidden.address,
            q_columns: (shape.heads * shape.head_dim) as i32,
            columns: shape.hidden as i32,
        })]);
        Ok(())
    }

    fn attention(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        layer: usize,
        batch: &CudaBatch,
        q: &CudaBuffer,
        pool: &CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        let op = AttentionOp::new(shape)?;
        let buffers = AttentionBuffers {
            batch: batch.view,
            q: q.address,
            pool: pool.address,
            out: out.address,
            partials: stream.scratch.partials,
            arrivals: stream.scratch.row_arrivals,
        };
        let items = batch.buckets.attention_work as u32;
        stream.enqueue([op.launch(layer, &buffers, PARTIALS_MAX, items)]);
        Ok(())
    }

    fn project(
        &self,
        stream: &CudaStream,
        weights: &Linear<Self>,
        batch: &CudaBatch,
        x: &CudaBuffer,
        next_norm: &CudaVector,
        hidden: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        let params = ProjectParams {
            batch: batch.view,
            weights: weights.matrix.packed,
            bias: address_of(weights.bias.as_ref()),
            x: x.address,
            hidden: hidden.address,
            next: stream.prepare(hidden, next_norm),
            split: stream.scratch.split,
        };
        stream.enqueue([project(batch.buckets.rows, self.sms(), &params)]);
        Ok(())
    }

    fn gate_up(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        weights: &GateUpWeights<Self>,
        batch: &CudaBatch,
        hidden: &CudaBuffer,
        act: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        let params = GateUpParams {
            batch: batch.view,
            pairs: weights.matrices.packed,
            rows: stream.prepared(hidden, &weights.norm),
            act: act.address,
            split: stream.scratch.split,
            eps: shape.rms_eps,
            features: weights.matrices.features as i32,
        };
        stream.enqueue([gate_up(batch.buckets.rows, self.sms(), &params)]);
        Ok(())
    }

    fn head(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        weights: &HeadWeights<'_, Self>,
        batch: &CudaBatch,
        hidden: &CudaBuffer,
        logits: &mut CudaBuffer,
        _results: &mut (),
    ) -> Result<(), DeviceError> {
        let to = batch.results();
        let rows = stream.prepared(hidden, weights.norm);
        let (weights, eps) = (weights.matrix.packed, shape.rms_eps);
        let (view, scratch) = (batch.view, &stream.scratch);
        let Buckets { vocab_heads, head_ids, label_heads, .. } = batch.buckets;
        if vocab_heads > 0 {
            let params = HeadParams {
                batch: view,
                weights,
                rows,
                logits: logits.address,
                summaries: scratch.summaries,
                targets: scratch.targets,
                eps,
                reserved: 0,
            };
            stream.enqueue(head::head((vocab_heads, head_ids), &params, to));
        }
        if label_heads > 0 {
            let batch = view;
            let params = LabelsParams { batch, results: to, weights, rows, eps, reserved: 0 };
            stream.enqueue([labels(label_heads, &params)]);
        }
        Ok(())
    }

    fn sample(
        &self,
        stream: &CudaStream,
        batch: &CudaBatch,
        logits: &CudaBuffer,
        _results: &mut (),
    ) -> Result<(), DeviceError> {
        if batch.buckets.samples > 0 {
            let source = SampleSource {
                samples: batch.view.samples,
                edits: batch.edits,
                allowed: batch.allowed,
                logits: logits.address,
                vocab: stream.shape.vocab as i32,
                reserved: 0,
            };
            let buffers = SampleBuffers {
                batch: batch.view,
                source,
                scratch: stream.scratch.samples,
                results: batch.results().samples,
                cuts: stream.scratch.cuts,
            };
            stream.enqueue(launch_sample(&buffers, batch.buckets.samples as u32));
        }
        Ok(())
    }

    fn feed(
        &self,
        stream: &CudaStream,
        before: &CudaBatch,
        _results: &(),
        batch: &mut CudaBatch,
    ) -> Result<(), DeviceError> {
        let from = before.results();
        let rows = batch.buckets.fed;
        if rows > 0 {
            let (vocab, lists) = (stream.shape.vocab, [batch.fed, stream.scratch.fed]);
            stream.enqueue([feed(rows, batch.view, lists, &from, vocab)]);
        }
        Ok(())
    }

    fn submit(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        stream.stream.borrow_mut().submit()
    }

    fn is_done(&self, stream: &CudaStream) -> Result<bool, DeviceError> {
        self.0.context.bind()?;
        stream.stream.borrow().is_done()
    }

    fn copy_pages(
        &self,
        stream: &CudaStream,
        shape: &Shape,
        copies: &[PageCopy],
        pool: &mut CudaBuffer,
    ) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        let inner = &mut *stream.stream.borrow_mut();
        for part in copies.chunks(COPIES_MAX) {
            let entries: Vec<CopyEntry> = part.iter().map(CopyEntry::from).collect();
            // Their number, padded, and the list.
            let mut list = vec![0; 16];
            list[..4].copy_from_slice(&(entries.len() as i32).to_le_bytes());
            list.extend_from_slice(bytemuck::cast_slice(&entries));
            let at = inner.list(&list)?;
            let max = bucket(entries.len()) as u32;
            inner.enqueue([copy::launch_copy_rows(shape, at, at.offset(16), pool.address, max)]);
            inner.submit()?;
        }
        Ok(())
    }

    fn collect(
        &self,
        stream: &CudaStream,
        batches: &[CudaBatch],
        _results: &mut [()],
    ) -> Result<Vec<Results>, DeviceError> {
        self.0.context.bind()?;
        let inner = &mut *stream.stream.borrow_mut();
        let results = inner.read_back()?;
        Ok(batches.iter().map(|batch| batch.read(results(batch.results_at))).collect())
    }

    fn read(
        &self,
        stream: &CudaStream,
        buffer: &CudaBuffer,
        start: usize,
        count: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        self.0.context.bind()?;
        stream.stream.borrow_mut().finish()?;
        if buffer.element == Element::Logit {
            let mut values = vec![0.0_f32; count];
            let at = buffer.address.offset(start * size_of::<f32>());
            arena::download_now(bytemuck::cast_slice_mut(&mut values), at)?;
            return Ok(values);
        }
        let mut values = vec![bf16::ZERO; count];
        let at = buffer.address.offset(start * size_of::<bf16>());
        arena::download_now(bytemuck::cast_slice_mut(&mut values), at)?;
        Ok(values.into_iter().map(bf16::to_f32).collect())
    }

    fn first_non_finite(
        &self,
        stream: &CudaStream,
        buffer: &CudaBuffer,
        rows: usize,
        width: usize,
    ) -> Result<Option<usize>, DeviceError> {
        self.0.context.bind()?;
        let inner = &mut *stream.stream.borrow_mut();
        inner.finish()?;
        let found = stream.scratch.found;
        arena::upload_now(found, &copy::ALL_FINITE.to_le_bytes(), "row found")?;
        let wide = buffer.element == Element::Logit;
        inner.enqueue([copy::launch_first_non_finite(buffer.address, found, rows, width, wide)]);
        inner.finish()?;
        let mut bytes = [0; 4];
        arena::download_now(&mut bytes, found)?;
        let first = i32::from_le_bytes(bytes);
        Ok((first != copy::ALL_FINITE).then_some(first as usize))
    }
}

impl CudaDevice {
    fn sms(&self) -> usize {
        self.0.context.properties.sms
    }
}

impl CudaStream {
    /// Where a kernel that writes `hidden` leaves what `norm` needs of it.
    fn prepare(&self, hidden: &CudaBuffer, norm: &CudaVector) -> Preparation {
        self.prepared.set([hidden.address, norm.0]);
        Preparation { norm: norm.0, rows: self.scratch.rows }
    }

    /// What was left.
    ///
    /// # Panics
    /// If it was for another norm, or of another buffer: [`Device::embed`] says what must follow.
    fn prepared(&self, hidden: &CudaBuffer, norm: &CudaVector) -> PreparedRows {
        assert_eq!(self.prepared.get(), [hidden.address, norm.0], "rows prepared for another norm");
        self.scratch.rows
    }

    fn enqueue(&self, launches: impl IntoIterator<Item = Launch>) {
        self.stream.borrow_mut().enqueue(launches);
    }
}

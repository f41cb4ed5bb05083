//! Devices: memory, streams and about ten coarse operations, the same for every device.
//!
//! [`Device`] is cut so that a GPU runs a layer in about five launches and a CPU keeps activations
//! in cache. Every operation is *enqueued* on a [`Device::Stream`]; the host sees a value only at
//! the three read-back points [`Device::collect`], [`Device::read`] and
//! [`Device::first_non_finite`]. Nothing above this floor holds a raw pointer.
//!
//! Invariant (row invariance): what an operation computes for one row depends on that row's inputs
//! only, never on which other rows share the pass or how a prompt was cut into chunks.
//!
//! Letters used for shapes here and everywhere: `T` rows of the pass, `H` query heads, `G` KV
//! heads,
//! `D` head dim, `C` hidden, `F` feed-forward, `V` vocabulary, `P` tokens per page, `L` layers.
//! Read next: [`batch`], then [`mod@reference`] for what each operation means, line by line.

pub mod batch;
pub mod blocks;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

use crate::error::DeviceError;
use crate::ids::Role;
pub use batch::{
    Drawn, FedRow, HeadKind, HeadResult, HeadRow, Mask, RaggedBatch, Results, RowGroup, SampleRow,
    Span,
};
pub use blocks::BlockType;

/// What a buffer holds; the device chooses how wide an activation and a KV element are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Hidden states, queries, attention outputs: bf16 on a GPU, f32 on the CPU.
    Activation,
    /// Full rows of logits; f32 everywhere.
    Logit,
    /// The KV pool; the count is in bytes.
    KvByte,
}

/// The storage type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Two bytes, the default.
    #[default]
    Bf16,
    /// Four bytes: the reference path.
    F32,
}

impl KvType {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// A weight matrix as it lies in a file: `[rows, cols]` = `[out features, in features]`, row-major,
/// each row a whole number of blocks.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Name used in errors.
    pub name: &'a str,
    /// Out features.
    pub rows: usize,
    /// In features.
    pub cols: usize,
    /// Block type of every row.
    pub kind: BlockType,
    /// `rows * kind.row_bytes(cols)` bytes.
    pub bytes: &'a [u8],
}

/// A matrix and its optional bias: `y = W x + b`.
pub struct Linear<D: Device + ?Sized> {
    /// `[N, K]`.
    pub matrix: D::Matrix,
    /// `[N]`.
    pub bias: Option<D::Vector>,
}

/// Weights of the first half of a layer.
pub struct QkvWeights<D: Device + ?Sized> {
    /// RMS norm weight, `[C]`.
    pub norm: D::Vector,
    /// `[H*D, C]`.
    pub q: Linear<D>,
    /// `[G*D, C]`.
    pub k: Linear<D>,
    /// `[G*D, C]`.
    pub v: Linear<D>,
    /// Per-head RMS norm of the queries, `[D]` (Qwen3).
    pub q_norm: Option<D::Vector>,
    /// Per-head RMS norm of the keys, `[D]` (Qwen3).
    pub k_norm: Option<D::Vector>,
}

/// Weights of the gated feed-forward's first half.
pub struct GateUpWeights<D: Device + ?Sized> {
    /// RMS norm weight, `[C]`.
    pub norm: D::Vector,
    /// Gate and up, each `[F, C]`.
    pub matrices: D::GateUp,
}

/// Weights after the last layer.
pub struct HeadWeights<'a, D: Device + ?Sized> {
    /// RMS norm weight, `[C]`.
    pub norm: &'a D::Vector,
    /// `[V, C]`; the embedding itself where the head is tied.
    pub matrix: &'a D::Matrix,
}

/// Sizes an operation needs beyond its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// `C`.
    pub hidden: usize,
    /// `H`.
    pub heads: usize,
    /// `G`; divides `H`.
    pub kv_heads: usize,
    /// `D`; even.
    pub head_dim: usize,
    /// `F`.
    pub ffn: usize,
    /// `V`.
    pub vocab: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// `L`.
    pub layers: usize,
    /// `P` of this model in the shared pool; a power of two.
    pub page_tokens: usize,
    /// Bytes of one page of the shared pool.
    pub page_bytes: usize,
}

impl Shape {
    /// Elements from the start of a page to the `[P, D]` plane of `layer`, keys (`which` = 0) or
    /// values (1), `kv_head`: a page is `[L][K|V][G][P][D]`.
    #[must_use]
    pub fn plane(&self, layer: usize, which: usize, kv_head: usize) -> usize {
        ((layer * 2 + which) * self.kv_heads + kv_head) * self.page_tokens * self.head_dim
    }
}

/// The largest pass a model has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassLimits {
    /// Rows, `T`.
    pub rows: usize,
    /// Rows with full logits.
    pub full_rows: usize,
    /// Rotary positions: the context.
    pub positions: usize,
}

/// Copies the first `tokens` rows of every plane of page `from` to page `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// Source.
    pub from: crate::ids::PageId,
    /// Destination.
    pub to: crate::ids::PageId,
    /// Rows, at most `P`.
    pub tokens: usize,
}

/// What `forerun devices` prints.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `cpu`, `cuda`, `reference`.
    pub kind: &'static str,
    /// Model name of the processor and the instruction set in use.
    pub name: String,
    /// Threads or SMs.
    pub units: usize,
    /// Bytes of memory that may be taken at start-up.
    pub memory_bytes: u64,
}

impl DeviceInfo {
    /// Whether this is the software GPU of the tests, whose times say nothing about any GPU's.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.kind == "cuda" && self.name.contains("emulated")
    }
}

/// The most passes of one model between two read-back points.
pub const CHAIN_MAX: usize = 8;

/// A device. Operations take what they read by reference and what they write by `&mut`, so the
/// compiler sees exclusive use at enqueue time; the stream orders the rest.
///
/// # Panics
/// Sizes that contradict each other are bugs of the caller and panic; user input never reaches
/// here unchecked.
pub trait Device: Send + Sync + 'static {
    /// Writable device memory: activations, logits, the KV pool.
    type Buffer: Send;
    /// A packed weight matrix.
    type Matrix: Send + Sync;
    /// The packed matrices of gate and up, which are multiplied together.
    type GateUp: Send + Sync;
    /// A small f32 vector: norm weights, biases, rotary tables.
    type Vector: Send + Sync;
    /// An ordered queue of work; one per model.
    type Stream: Send;
    /// A staged [`RaggedBatch`]: uploaded once, read by every operation of the pass.
    type Batch: Send;
    /// Where heads and samplers leave what [`Device::collect`] brings back.
    type Results: Send;

    /// Describes the device.
    fn info(&self) -> DeviceInfo;
    /// How keys and values are stored.
    fn kv_type(&self) -> KvType;
    /// How many tokens a decode best draws between two read-back points, at most [`CHAIN_MAX`]:
    /// more than one where the way to the host costs more than the tokens beyond a decode's end.
    fn run_ahead(&self) -> usize {
        1
    }

    /// Whether passes of two streams run at the same time: then drafting while the base scores
    /// costs no time of the base's.
    fn overlaps(&self) -> bool {
        false
    }

    /// Bytes the device keeps of a matrix: those of the file, unless it has to widen the type.
    fn matrix_bytes(&self, rows: usize, cols: usize, kind: BlockType) -> u64 {
        (rows * kind.row_bytes(cols).unwrap_or(0)) as u64
    }
    /// The same of a gate and an up matrix of `[rows, cols]` each.
    fn gate_up_bytes(&self, rows: usize, cols: usize, kinds: [BlockType; 2]) -> u64 {
        kinds.into_iter().map(|kind| self.matrix_bytes(rows, cols, kind)).sum()
    }
    /// Bytes a model takes beside its weights and the pool, for passes of `shape` up to `limits`.
    fn pass_bytes(&self, shape: &Shape, limits: &PassLimits) -> u64 {
        let row = shape.hidden + 2 * shape.heads * shape.head_dim + shape.ffn;
        let rope = limits.positions * shape.head_dim;
        4 * (limits.rows * row + limits.full_rows * shape.vocab + rope) as u64
    }

    /// Takes memory. Only before [`Device::seal`].
    ///
    /// # Errors
    /// When there is not enough memory, or after the seal.
    fn buffer(
        &self,
        count: usize,
        element: Element,
        what: &str,
    ) -> Result<Self::Buffer, DeviceError>;
    /// Packs a matrix into the device's own layout.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn matrix(&self, view: MatrixView<'_>) -> Result<Self::Matrix, DeviceError>;
    /// Packs the matrix of queries or keys of a model without per-head norms, heads of `head_dim`
    /// rows: for [`Device::qkv`] only, which can then rotate where it multiplies, if q and k are
    /// both packed so.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn rotary_matrix(
        &self,
        view: MatrixView<'_>,
        _head_dim: usize,
    ) -> Result<Self::Matrix, DeviceError> {
        self.matrix(view)
    }
    /// Packs the matrices of gate and up, of one size.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn gate_up_matrices(
        &self,
        gate: MatrixView<'_>,
        up: MatrixView<'_>,
    ) -> Result<Self::GateUp, DeviceError>;
    /// Uploads a vector.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, DeviceError>;
    /// Room for the results of one pass.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn results(&self, limits: &PassLimits) -> Result<Self::Results, DeviceError>;
    /// A new stream for the model in `role`, with the scratch memory that passes of `shape` up to
    /// `limits` need.
    ///
    /// # Errors
    /// When the device cannot give one, has not enough memory, or has no kernels for the shape.
    fn stream(
        &self,
        role: Role,
        shape: &Shape,
        limits: &PassLimits,
    ) -> Result<Self::Stream, DeviceError>;
    /// Ends start-up: every later allocation is an error.
    fn seal(&self);

    /// Uploads a batch; up to [`CHAIN_MAX`] between two read-back points. `batch` has been
    /// validated by [`RaggedBatch::validate`].
    ///
    /// # Errors
    /// On a device failure.
    fn stage(&self, stream: &Self::Stream, batch: RaggedBatch) -> Result<Self::Batch, DeviceError>;

    /// `hidden[t, :] = table[tokens[t], :]`; `hidden` is `[T, C]`.
    ///
    /// `next_norm`, `[C]`: the weight of the norm that the next operation to read `hidden` applies,
    /// for a device that multiplies by it where it has the row anyway. That operation must be one
    /// with this norm.
    ///
    /// # Errors
    /// On a device failure; the same holds for every operation below.
    fn embed(
        &self,
        stream: &Self::Stream,
        table: &Self::Matrix,
        batch: &Self::Batch,
        next_norm: &Self::Vector,
        hidden: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Norm, Q, K, V, bias, per-head norm, rotary embedding, append.
    ///
    /// `x = rms_norm(hidden)`; `q = rope(norm(Wq x + bq))` goes to `q: [T, H, D]`; keys and values
    /// go to each row's slot in `pool`, rounded to the pool's type. `rope` is
    /// `[positions][cos: D/2, sin: D/2]`; pairs are `(i, i + D/2)`.
    #[expect(clippy::too_many_arguments, reason = "one fused operation, every operand named")]
    fn qkv(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        layer: usize,
        weights: &QkvWeights<Self>,
        rope: &Self::Vector,
        batch: &Self::Batch,
        hidden: &Self::Buffer,
        q: &mut Self::Buffer,
        pool: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Goes on with the rows of `batch` alone, which [`RaggedBatch::split_off_wanted`] split off
    /// the pass under way: `q[i] = q[kept[i]]` and `hidden[i] = hidden[kept[i]]`, in place. The
    /// next operation to read `hidden` is [`Device::project`].
    fn keep_rows(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        batch: &Self::Batch,
        q: &mut Self::Buffer,
        hidden: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// `out[t, h, :] = softmax(q[t, h, :] · K / sqrt(D)) V` over the keys row `t` may see
    /// ([`RaggedBatch::key`]), head `h` reading KV head `h / (H / G)`. `out` is `[T, H, D]`. Slots
    /// no row sees may hold anything, NaN included.
    #[expect(clippy::too_many_arguments, reason = "one fused operation, every operand named")]
    fn attention(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        layer: usize,
        batch: &Self::Batch,
        q: &Self::Buffer,
        pool: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// `hidden[t, :] += W x[t, :] + b`: the output projection of attention and the down projection.
    /// `next_norm` as for [`Device::embed`].
    fn project(
        &self,
        stream: &Self::Stream,
        weights: &Linear<Self>,
        batch: &Self::Batch,
        x: &Self::Buffer,
        next_norm: &Self::Vector,
        hidden: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// `x = rms_norm(hidden)`; `act[t, :] = silu(gate x) * (up x)`; `act` is `[T, F]`.
    fn gate_up(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        weights: &GateUpWeights<Self>,
        batch: &Self::Batch,
        hidden: &Self::Buffer,
        act: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Final norm and head for the rows in [`RaggedBatch::heads`] only. `Argmax`, `Labels` and
    /// `LogProb` never store a row of logits; the `i`-th `Full` head fills row `i` of
    /// `logits: [rows, V]`.
    #[expect(clippy::too_many_arguments, reason = "one fused operation, every operand named")]
    fn head(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        weights: &HeadWeights<'_, Self>,
        batch: &Self::Batch,
        hidden: &Self::Buffer,
        logits: &mut Self::Buffer,
        results: &mut Self::Results,
    ) -> Result<(), DeviceError>;

    /// Draws a token for every [`SampleRow`] from its row of `logits`, by the rules of
    /// [`crate::sample`].
    fn sample(
        &self,
        stream: &Self::Stream,
        batch: &Self::Batch,
        logits: &Self::Buffer,
        results: &mut Self::Results,
    ) -> Result<(), DeviceError>;

    /// Gives the rows of `batch` that [`RaggedBatch::fed`] names the tokens that `before`, the pass
    /// enqueued last, draws into `results`: passes then follow one another without the host. Both
    /// passes were staged since the last read-back point.
    fn feed(
        &self,
        stream: &Self::Stream,
        before: &Self::Batch,
        results: &Self::Results,
        batch: &mut Self::Batch,
    ) -> Result<(), DeviceError>;

    /// Lets everything enqueued so far run. A device that gathers a pass into one graph hands it
    /// over here; the host does not wait.
    fn submit(&self, _stream: &Self::Stream) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Whether everything submitted to `stream` is done, so that a read-back point would not wait.
    fn is_done(&self, _stream: &Self::Stream) -> Result<bool, DeviceError> {
        Ok(true)
    }

    /// Copies rows of pages inside the pool, for copy-on-write. The copies have no order among
    /// themselves: a destination is no other copy's source or destination.
    fn copy_pages(
        &self,
        stream: &Self::Stream,
        shape: &Shape,
        copies: &[PageCopy],
        pool: &mut Self::Buffer,
    ) -> Result<(), DeviceError>;

    /// Read-back point: waits for `stream` and returns what heads and samplers of each pass left,
    /// in the order of [`RaggedBatch::heads`] and [`RaggedBatch::samples`]. `results[i]` is what
    /// the pass of `batches[i]` wrote to.
    fn collect(
        &self,
        stream: &Self::Stream,
        batches: &[Self::Batch],
        results: &mut [Self::Results],
    ) -> Result<Vec<Results>, DeviceError>;

    /// Read-back point for tests and traces: `count` elements from `start`, as f32 (an
    /// [`Element::KvByte`] buffer counts in KV elements).
    fn read(
        &self,
        stream: &Self::Stream,
        buffer: &Self::Buffer,
        start: usize,
        count: usize,
    ) -> Result<Vec<f32>, DeviceError>;

    /// Read-back point of the error path: the first of `rows` rows of `buffer` (`[rows, width]`)
    /// that holds a NaN or an infinity.
    fn first_non_finite(
        &self,
        stream: &Self::Stream,
        buffer: &Self::Buffer,
        rows: usize,
        width: usize,
    ) -> Result<Option<usize>, DeviceError>;
}

//! Our names for the tensors of a model, and finding each one in a file.
//!
//! Both formats arrive here as a list of `StoredTensor`; what leaves is a `TensorMap` in which
//! every tensor the architecture needs exists once, with the right shape, in a supported type,
//! inside its file. Invariant: a file with a tensor nobody would read is refused, because ignoring
//! a weight gives wrong text without a word. Read next: [`super::checkpoint`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::architecture::{Architecture, Family};
use super::file_bytes::{Blame, FileBytes, excerpt};
use crate::device::MatrixView;
use crate::device::blocks::BlockType;
use crate::error::LoadError;

/// A tensor of the model, by role. The number is the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorName {
    /// Token embedding, `[V, C]`.
    Embed,
    /// Output head, `[V, C]`; the embedding where the head is tied.
    Head,
    /// Norm before the head, `[C]`.
    FinalNorm,
    /// Norm before attention, `[C]`.
    AttnNorm(usize),
    /// Norm before the feed-forward layer, `[C]`.
    FfnNorm(usize),
    /// Query projection, `[H·D, C]`.
    Q(usize),
    /// Key projection, `[G·D, C]`.
    K(usize),
    /// Value projection, `[G·D, C]`.
    V(usize),
    /// Output projection of attention, `[C, H·D]`.
    O(usize),
    /// Query bias, `[H·D]`.
    QBias(usize),
    /// Key bias, `[G·D]`.
    KBias(usize),
    /// Value bias, `[G·D]`.
    VBias(usize),
    /// Norm of each query head, `[D]`.
    QNorm(usize),
    /// Norm of each key head, `[D]`.
    KNorm(usize),
    /// Gate projection, `[F, C]`.
    Gate(usize),
    /// Up projection, `[F, C]`.
    Up(usize),
    /// Down projection, `[C, F]`.
    Down(usize),
}

/// A tensor as the file stores it, borrowed where its order is already ours.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Output features; 1 for vectors.
    pub rows: usize,
    /// Input features: elements of a row.
    pub cols: usize,
    /// Encoding of the elements.
    pub kind: BlockType,
    /// `rows` encoded rows, one after the other. Not aligned to more than a byte.
    pub bytes: Cow<'a, [u8]>,
    /// The name in the file.
    pub name: String,
}

impl TensorView<'_> {
    /// The tensor as a device takes it.
    #[must_use]
    pub fn view(&self) -> MatrixView<'_> {
        let Self { rows, cols, kind, .. } = *self;
        MatrixView { name: &self.name, rows, cols, kind, bytes: &self.bytes }
    }
}

/// One line of `inspect`: a tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type's name, also of types this engine cannot run.
    pub kind: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Bytes in the file; 0 where the size of the type is unknown.
    pub bytes: u64,
}

/// A tensor in the table of contents of a file.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    /// The encoding, or the name of one that is not supported.
    pub(super) kind: Result<BlockType, String>,
    /// Row-major shape.
    pub(super) shape: Vec<usize>,
    /// Which of the checkpoint's files.
    pub(super) file: usize,
    /// Where in that file; inside it for supported types.
    pub(super) bytes: Range<usize>,
}

impl StoredTensor {
    /// Bytes of a tensor of this shape, or `None` on overflow or if a row is not whole blocks.
    pub(super) fn size_bytes(&self, kind: BlockType) -> Option<usize> {
        let (cols, outer) = self.shape.split_last()?;
        let rows = outer.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        kind.row_bytes(*cols)?.checked_mul(rows)
    }

    /// What `inspect` prints.
    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo {
            name: self.name.clone(),
            kind: match &self.kind {
                Ok(kind) => kind.name().to_owned(),
                Err(name) => name.clone(),
            },
            shape: self.shape.clone(),
            bytes: self.bytes.len() as u64,
        }
    }
}

/// The two file formats, where they differ in tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A Hugging Face folder of safetensors.
    Folder,
    /// A GGUF file.
    Gguf,
}

impl TensorName {
    /// Every tensor `architecture` has, in the order a forward pass uses them. A tied head is not
    /// listed: it is [`TensorName::Embed`].
    #[must_use]
    pub fn all(architecture: &Architecture) -> Vec<Self> {
        let mut names = vec![Self::Embed];
        for l in 0..architecture.layers {
            names.extend([Self::AttnNorm(l), Self::Q(l), Self::K(l), Self::V(l)]);
            if architecture.qkv_bias {
                names.extend([Self::QBias(l), Self::KBias(l), Self::VBias(l)]);
            }
            if architecture.qk_norm {
                names.extend([Self::QNorm(l), Self::KNorm(l)]);
            }
            names.extend([Self::O(l), Self::FfnNorm(l), Self::Gate(l), Self::Up(l), Self::Down(l)]);
        }
        names.push(Self::FinalNorm);
        if !architecture.tied_head {
            names.push(Self::Head);
        }
        names
    }

    /// Rows and columns in `architecture`; vectors have one row.
    #[must_use]
    pub fn shape(self, architecture: &Architecture) -> (usize, usize) {
        let a = architecture;
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        match self {
            Self::Embed | Self::Head => (a.vocab, a.hidden),
            Self::FinalNorm | Self::AttnNorm(_) | Self::FfnNorm(_) => (1, a.hidden),
            Self::Q(_) => (q, a.hidden),
            Self::K(_) | Self::V(_) => (kv, a.hidden),
            Self::O(_) => (a.hidden, q),
            Self::QBias(_) => (1, q),
            Self::KBias(_) | Self::VBias(_) => (1, kv),
            Self::QNorm(_) | Self::KNorm(_) => (1, a.head_dim),
            Self::Gate(_) | Self::Up(_) => (a.ffn, a.hidden),
            Self::Down(_) => (a.hidden, a.ffn),
        }
    }

    /// True for norms and biases, which files store with one dimension.
    #[must_use]
    pub fn is_vector(self) -> bool {
        matches!(
            self,
            Self::FinalNorm
                | Self::AttnNorm(_)
                | Self::FfnNorm(_)
                | Self::QBias(_)
                | Self::KBias(_)
                | Self::VBias(_)
                | Self::QNorm(_)
                | Self::KNorm(_)
        )
    }

    /// The name in files of `format`.
    #[must_use]
    pub fn in_file(self, format: Format) -> String {
        // Layer, name in folders, name in GGUF files.
        let (layer, folder, gguf) = match self {
            Self::Embed => (None, "model.embed_tokens.weight", "token_embd.weight"),
            Self::Head => (None, "lm_head.weight", "output.weight"),
            Self::FinalNorm => (None, "model.norm.weight", "output_norm.weight"),
            Self::AttnNorm(l) => (Some(l), "input_layernorm.weight", "attn_norm.weight"),
            Self::FfnNorm(l) => (Some(l), "post_attention_layernorm.weight", "ffn_norm.weight"),
            Self::Q(l) => (Some(l), "self_attn.q_proj.weight", "attn_q.weight"),
            Self::K(l) => (Some(l), "self_attn.k_proj.weight", "attn_k.weight"),
            Self::V(l) => (Some(l), "self_attn.v_proj.weight", "attn_v.weight"),
            Self::O(l) => (Some(l), "self_attn.o_proj.weight", "attn_output.weight"),
            Self::QBias(l) => (Some(l), "self_attn.q_proj.bias", "attn_q.bias"),
            Self::KBias(l) => (Some(l), "self_attn.k_proj.bias", "attn_k.bias"),
            Self::VBias(l) => (Some(l), "self_attn.v_proj.bias", "attn_v.bias"),
            Self::QNorm(l) => (Some(l), "self_attn.q_norm.weight", "attn_q_norm.weight"),
            Self::KNorm(l) => (Some(l), "self_attn.k_norm.weight", "attn_k_norm.weight"),
            Self::Gate(l) => (Some(l), "mlp.gate_proj.weight", "ffn_gate.weight"),
            Self::Up(l) => (Some(l), "mlp.up_proj.weight", "ffn_up.weight"),
            Self::Down(l) => (Some(l), "mlp.down_proj.weight", "ffn_down.weight"),
        };
        match (format, layer) {
            (Format::Folder, None) => folder.to_owned(),
            (Format::Gguf, None) => gguf.to_owned(),
            (Format::Folder, Some(l)) => format!("model.layers.{l}.{folder}"),
            (Format::Gguf, Some(l)) => format!("blk.{l}.{gguf}"),
        }
    }

    /// True where a llama GGUF interleaves the halves of each head: its rotary embedding pairs
    /// neighbours, so the converter moved row `(half, j)` of a head to row `(j, half)`.
    fn is_interleaved(self, format: Format, family: Family) -> bool {
        format == Format::Gguf
            && family == Family::Llama
            && matches!(self, Self::Q(_) | Self::K(_) | Self::QBias(_) | Self::KBias(_))
    }
}

/// Tensors a file may have although nothing reads them.
fn is_ignorable(name: &str, format: Format, architecture: &Architecture) -> bool {
    match format {
        // Old checkpoints store the inverse frequencies we compute; tied ones sometimes store the
        // head again, which transformers ignores too.
        Format::Folder => {
            name.ends_with(".rotary_emb.inv_freq")
                || (architecture.tied_head && name == TensorName::Head.in_file(format))
        }
        // The frequency factors are read into the architecture.
        Format::Gguf => name == super::gguf_model::ROPE_FACTORS || name.ends_with(".attn_rot_embd"),
    }
}

/// The tensors of a checkpoint, found and checked.
#[derive(Debug)]
pub(super) struct TensorMap {
    found: BTreeMap<TensorName, StoredTensor>,
    format: Format,
    family: Family,
    head_dim: usize,
}

impl TensorMap {
    /// Finds every tensor of `architecture` among `stored`. `files` are the names to blame.
    ///
    /// # Errors
    /// [`LoadError`] naming the tensor that is missing, doubled, superfluous, misshapen, of an
    /// unsupported type, or overlapping another.
    pub(super) fn resolve(
        format: Format,
        architecture: &Architecture,
        stored: &[StoredTensor],
        files: &[String],
        model: &str,
    ) -> Result<Self, LoadError> {
        check_overlaps(stored, files)?;
        let mut by_name: HashMap<&str, &StoredTensor> = HashMap::new();
        for tensor in stored {
            if by_name.insert(&tensor.name, tensor).is_some() {
                let what = format!("tensor {}", excerpt(&tensor.name));
                let blame = Blame(&files[tensor.file]);
                return Err(blame.malformed(what, "one tensor of this name", "several"));
            }
        }
        let mut found = BTreeMap::new();
        for name in TensorName::all(architecture) {
            let in_file = name.in_file(format);
            let Some(tensor) = by_name.remove(in_file.as_str()) else {
                let (rows, cols) = name.shape(architecture);
                let expected = if name.is_vector() {
                    format!("shape [{cols}]")
                } else {
                    format!("shape [{rows}, {cols}]")
                };
                let what = format!("tensor {in_file}");
                return Err(Blame(model).malformed(what, expected, "no tensor of this name"));
            };
            check_tensor(name, tensor, architecture, Blame(&files[tensor.file]))?;
            found.insert(name, tensor.clone());
        }
        by_name.retain(|name, _| !is_ignorable(name, format, architecture));
        // The first in the file, so that the message does not depend on hashing.
        if let Some(extra) = stored.iter().find(|tensor| by_name.contains_key(&*tensor.name)) {
            return Err(Blame(&files[extra.file]).unsupported(
                "tensor",
                &extra.name,
                format!(
                    "only tensors that a {} model of {} layers uses",
                    architecture.family, architecture.layers
                ),
            ));
        }
        Ok(Self { found, format, family: architecture.family, head_dim: architecture.head_dim })
    }

    /// The tensor in our order, or `None` if the architecture has none of this name.
    pub(super) fn view<'a>(
        &self,
        name: TensorName,
        files: &'a [FileBytes],
    ) -> Option<TensorView<'a>> {
        let tensor = match (name, self.found.get(&name)) {
            (TensorName::Head, None) => self.found.get(&TensorName::Embed)?,
            (_, found) => found?,
        };
        let kind = *tensor.kind.as_ref().expect("resolve refuses unsupported types");
        let bytes = &files[tensor.file][tensor.bytes.clone()];
        let cols = *tensor.shape.last().expect("resolve checks the shape");
        let rows = tensor.shape.iter().rev().skip(1).product();
        let bytes = if name.is_interleaved(self.format, self.family) {
            // A bias is a vector, so its rows are single elements.
            let row_bytes = if name.is_vector() {
                kind.block_bytes()
            } else {
                kind.row_bytes(cols).expect("resolve checks the shape")
            };
            Cow::Owned(undo_interleaving(bytes, row_bytes, self.head_dim))
        } else {
            Cow::Borrowed(bytes)
        };
        Some(TensorView { rows, cols, kind, bytes, name: tensor.name.clone() })
    }
}

/// Gathers rows so that row `half · D/2 + j` of each head is the stored row `2 j + half`.
fn undo_interleaving(bytes: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row_bytes * head_dim) {
        for half in 0..2 {
            for j in 0..head_dim / 2 {
                out.extend_from_slice(&head[(2 * j + half) * row_bytes..][..row_bytes]);
            }
        }
    }
    out
}

fn check_tensor(
    name: TensorName,
    tensor: &StoredTensor,
    architecture: &Architecture,
    blame: Blame<'_>,
) -> Result<(), LoadError> {
    let what = || format!("tensor {}", tensor.name);
    let (rows, cols) = name.shape(architecture);
    let expected = if name.is_vector() { vec![cols] } else { vec![rows, cols] };
    if tensor.shape != expected {
        let (expected, got) = (format!("shape {expected:?}"), format!("{:?}", tensor.shape));
        return Err(blame.malformed(what(), expected, got));
    }
    let supported = || {
        let all = BlockType::ALL.iter().filter(|kind| !name.is_vector() || kind.is_plain());
        all.map(|kind| kind.name()).collect::<Vec<_>>().join(" ")
    };
    match &tensor.kind {
        Ok(kind) if !name.is_vector() || kind.is_plain() => {}
        Ok(kind) => return Err(blame.unsupported(what(), kind, supported())),
        Err(kind) => return Err(blame.unsupported(what(), kind, supported())),
    }
    let size = tensor.kind.as_ref().ok().and_then(|&kind| tensor.size_bytes(kind));
    if size != Some(tensor.bytes.len()) {
        let expected = size.map_or("whole blocks".to_owned(), |size| format!("{size} bytes"));
        return Err(blame.malformed(what(), expected, tensor.bytes.len()));
    }
    Ok(())
}

fn check_overlaps(stored: &[StoredTensor], files: &[String]) -> Result<(), LoadError> {
    let mut ranges: Vec<&StoredTensor> = stored.iter().filter(|t| !t.bytes.is_empty()).collect();
    ranges.sort_by_key(|tensor| (tensor.file, tensor.bytes.start));
    for pair in ranges.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.file == b.file && b.bytes.start < a.bytes.end {
            return Err(Blame(&files[b.file]).malformed(
                format!("tensor {}", excerpt(&b.name)),
                format!("data of its own from offset {}", a.bytes.end),
                format!("offset {}, inside tensor {}", b.bytes.start, excerpt(&a.name)),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;

//! From the sizes of a model to the launches of a pass, in closed form.
//!
//! Bytes are those that memory gives once: packed weights, keys and values, rows of the embedding.
//! Rows between kernels stay in the L2. A pass is launched for its rows rounded up to a power of
//! two; operations are those of rows rounded up to eight. How many launches an operation takes and
//! how it is cut into CTAs is data of the kernels ([`CUTS`]); `tests/overlap_model.rs` compares all
//! of it with what the software GPU counts. The last layer is taken for one like the others: that
//! it multiplies only the rows that are asked for changes its operations, not its bytes.

use super::Kernel;
use crate::device::{Device, Shape};
use crate::error::LoadError;
use crate::model::TensorName;
use crate::model::checkpoint::Checkpoint;

/// How the kernels cut a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cuts {
    /// Tokens of each kernel's tile.
    pub tile_tokens: [usize; 4],
    /// Features of a CTA of each.
    pub features: [usize; 4],
    /// CTAs of each on an SM: as many tiles of gate and up are dealt to.
    pub ctas_of_sm: [usize; 4],
    /// CTAs that may share the columns of a largest tile, most first.
    pub parts: [usize; 3],
    /// SMs of the GPU they are dealt and shared on; one more or less changes little.
    pub sms: usize,
    /// Features of a CTA of the head.
    pub head_features: usize,
    /// Keys of a split of attention.
    pub split_keys: usize,
    /// Queries of a CTA of attention: rows times query heads a KV head.
    pub queries: usize,
}

/// How the kernels of this version cut.
pub const CUTS: Cuts = Cuts {
    tile_tokens: [8, 16, 32, 64],
    features: [16, 16, 64, 128],
    ctas_of_sm: [3, 2, 2, 1],
    parts: [4, 2, 1],
    sms: 132,
    head_features: 256,
    split_keys: 128,
    queries: 64,
};

/// Packed bytes of the matrices of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerBytes {
    /// Queries, keys and values.
    pub qkv: u64,
    /// The projection behind attention.
    pub output: u64,
    /// Gate and up.
    pub gate_up: u64,
    /// The projection behind them.
    pub down: u64,
}

/// All that a pass of a model depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Sizes of a layer.
    pub shape: Shape,
    /// Whether heads of q and k are normalised, which takes one more launch a layer.
    pub head_norm: bool,
    /// Bytes of an element of the KV pool.
    pub kv_element_bytes: usize,
    /// Of every layer.
    pub layers: Vec<LayerBytes>,
    /// Packed bytes of the head.
    pub head_bytes: u64,
}

/// What a pass asks of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Nothing.
    None,
    /// The likeliest token of so many rows.
    Argmax(usize),
    /// The probabilities of so many labels at one row.
    Labels(usize),
}

/// One pass of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSizes {
    /// Rows, at least 1.
    pub rows: usize,
    /// Keys in the pool before them.
    pub before: usize,
    /// What comes out.
    pub logits: Logits,
}

impl PassSizes {
    /// A token behind `before` others.
    #[must_use]
    pub fn decode(before: usize) -> Self {
        Self { rows: 1, before, logits: Logits::Argmax(1) }
    }
}

impl ModelSizes {
    /// The sizes of an opened model as `device` keeps it.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn of(device: &impl Device, checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        use TensorName as T;
        let a = checkpoint.architecture();
        let one = |name: T| -> Result<u64, LoadError> {
            let tensor = checkpoint.tensor(name)?;
            Ok(device.matrix_bytes(tensor.rows, tensor.cols, tensor.kind))
        };
        let layer = |l: usize| -> Result<LayerBytes, LoadError> {
            let (gate, up) = (checkpoint.tensor(T::Gate(l))?, checkpoint.tensor(T::Up(l))?);
            Ok(LayerBytes {
                qkv: one(T::Q(l))? + one(T::K(l))? + one(T::V(l))?,
                output: one(T::O(l))?,
                gate_up: device.gate_up_bytes(gate.rows, gate.cols, [gate.kind, up.kind]),
                down: one(T::Down(l))?,
            })
        };
        Ok(Self {
            shape: a.shape(),
            head_norm: a.qk_norm,
            kv_element_bytes: device.kv_type().bytes(),
            layers: (0..a.layers).map(layer).collect::<Result<_, _>>()?,
            head_bytes: one(if a.tied_head { T::Embed } else { T::Head })?,
        })
    }

    /// The launches of a pass, in order.
    #[must_use]
    pub fn pass(&self, pass: PassSizes) -> Vec<Kernel> {
        let Shape { hidden, heads, kv_heads, head_dim, ffn, vocab, .. } = self.shape;
        let (rows, launched) = (pass.rows, pass.rows.next_power_of_two());
        let (queries, kv) = (heads * head_dim, kv_heads * head_dim);
        // A row of the table, and the weight of the first norm.
        let embedded = rows * hidden * (2 + 4);
        let mut kernels = vec![Kernel { ctas: launched, bytes: embedded as f64, flop: 0.0 }];
        for layer in &self.layers {
            kernels.push(matrices(rows, hidden, &[queries, kv, kv], layer.qkv));
            if self.head_norm {
                kernels.push(Kernel { ctas: launched, ..Kernel::default() });
            }
            kernels.push(self.attention(&pass));
            kernels.push(matrices(rows, queries, &[hidden], layer.output));
            kernels.push(gate_up(rows, hidden, 2 * ffn.next_multiple_of(8), layer.gate_up));
            kernels.push(matrices(rows, ffn, &[hidden], layer.down));
        }
        match pass.logits {
            Logits::None => {}
            Logits::Argmax(asked) => {
                let launched = asked.next_power_of_two();
                kernels.push(Kernel {
                    ctas: tiles(launched)[0] * vocab.div_ceil(CUTS.head_features),
                    ..matrices(asked, hidden, &[vocab], self.head_bytes)
                });
                kernels.push(Kernel { ctas: launched, ..Kernel::default() });
            }
            Logits::Labels(labels) => {
                let bytes = self.head_bytes as f64 * labels as f64 / vocab as f64;
                let flop = 2 * labels.next_multiple_of(16) * 8 * hidden;
                kernels.push(Kernel { ctas: 1, bytes, flop: flop as f64 });
            }
        }
        kernels
    }

    fn attention(&self, pass: &PassSizes) -> Kernel {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (rows, keys) = (pass.rows, pass.before + pass.rows);
        let splits = keys.div_ceil(CUTS.split_keys);
        let of_queries = rows.div_ceil(CUTS.queries * kv_heads / heads);
        Kernel {
            ctas: (of_queries * splits).next_power_of_two() * kv_heads,
            bytes: (2 * keys * kv_heads * head_dim * self.kv_element_bytes) as f64,
            // Scores and weighted values, of tiles whose rows are all multiplied.
            flop: (4 * of_queries * CUTS.queries * keys * kv_heads * head_dim) as f64,
        }
    }
}

/// Tiles of tokens, each of which reads every feature, and which kernel's they are.
fn tiles(rows: usize) -> [usize; 2] {
    let largest = CUTS.tile_tokens.len() - 1;
    let kernel = CUTS.tile_tokens.iter().position(|tokens| rows <= *tokens).unwrap_or(largest);
    [rows.div_ceil(CUTS.tile_tokens[kernel]), kernel]
}

/// One launch over matrices with `columns` columns and so many features each.
fn matrices(rows: usize, columns: usize, features: &[usize], bytes: u64) -> Kernel {
    let [tiles, kernel] = tiles(rows.next_power_of_two());
    let groups: usize = features.iter().map(|n| n.div_ceil(CUTS.features[kernel])).sum();
    let parts = CUTS.parts.into_iter().find(|parts| tiles * groups * parts <= CUTS.sms);
    let parts = if kernel + 1 == CUTS.features.len() { parts.unwrap_or(1) } else { 1 };
    // Panels of 16, and of the largest tile two at a time.
    let panel = if kernel + 1 == CUTS.features.len() { 32 } else { 16 };
    let padded: usize = features.iter().map(|n| n.next_multiple_of(panel)).sum();
    let tokens = rows.next_multiple_of(if panel == 32 { 16 } else { 8 });
    let flop = (2 * tokens * columns * padded) as f64;
    Kernel { ctas: tiles * groups * parts, bytes: bytes as f64, flop }
}

/// The launch over gate and up, whose groups of features are dealt to CTAs that all run at once.
fn gate_up(rows: usize, columns: usize, features: usize, bytes: u64) -> Kernel {
    let all = matrices(rows, columns, &[features], bytes);
    let [tiles, kernel] = tiles(rows.next_power_of_two());
    let groups = features.div_ceil(CUTS.features[kernel]);
    let rounds = groups.div_ceil((CUTS.sms * CUTS.ctas_of_sm[kernel]).div_ceil(tiles));
    Kernel { ctas: all.ctas / groups * groups.div_ceil(rounds), ..all }
}

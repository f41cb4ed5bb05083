//! The models whose shapes the kernels are judged by, with random weights.
//!
//! Sizes are those of the published `config.json` files. One layer is as every other, so one is
//! measured; where a file's mix of block types makes two kinds of layers, both are.

use forerun::device::{BlockType, Shape};

/// A model's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fixture {
    /// As it is called on the hub.
    pub(crate) name: &'static str,
    /// `C`.
    pub(crate) hidden: usize,
    /// `H`, `G`.
    pub(crate) heads: [usize; 2],
    /// `D`.
    pub(crate) head_dim: usize,
    /// `F`.
    pub(crate) ffn: usize,
    /// `V`.
    pub(crate) vocab: usize,
    /// `L`.
    pub(crate) layers: usize,
}

/// The usual draft.
pub(crate) const R1_1_5B: Fixture = Fixture {
    name: "R1-Distill-Qwen-1.5B",
    hidden: 1536,
    heads: [12, 2],
    head_dim: 128,
    ffn: 8960,
    vocab: 151_936,
    layers: 28,
};
/// The same layers as [`R1_1_5B`]; its head is the embedding.
pub(crate) const CODER_1_5B: Fixture = Fixture { name: "Qwen2.5-Coder-1.5B", ..R1_1_5B };
/// The smallest.
pub(crate) const CODER_0_5B: Fixture = Fixture {
    name: "Qwen2.5-Coder-0.5B",
    hidden: 896,
    heads: [14, 2],
    head_dim: 64,
    ffn: 4864,
    vocab: 151_936,
    layers: 24,
};
/// The usual base.
pub(crate) const QWQ_32B: Fixture = Fixture {
    name: "QwQ-32B",
    hidden: 5120,
    heads: [40, 8],
    head_dim: 128,
    ffn: 27_648,
    vocab: 152_064,
    layers: 64,
};

/// All of them, small to large.
pub(crate) const FIXTURES: [Fixture; 4] = [CODER_0_5B, CODER_1_5B, R1_1_5B, QWQ_32B];

/// Tokens of a page.
const PAGE_TOKENS: usize = 16;

impl Fixture {
    /// The shape of one layer, its pages of that layer alone.
    pub(crate) fn layer_shape(&self) -> Shape {
        let [heads, kv_heads] = self.heads;
        Shape {
            hidden: self.hidden,
            heads,
            kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            rms_eps: 1e-6,
            layers: 1,
            page_tokens: PAGE_TOKENS,
            page_bytes: 2 * kv_heads * PAGE_TOKENS * self.head_dim * 2,
        }
    }

    /// Whether every measured count of it is one of `other`'s.
    pub(crate) fn has_sizes_of(&self, other: &Self) -> bool {
        Self { name: "", ..*self } == Self { name: "", ..*other }
    }
}

/// Which block types a model's file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the mix's own name")]
pub(crate) enum Mix {
    /// bf16 throughout.
    Bf16,
    /// llama.cpp's `Q4_K_M`.
    Q4_K_M,
}

/// A layer's place in the mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// A layer as most are.
    Layer,
    /// A layer whose values and down projection have more bits.
    FineLayer,
    /// The head over the vocabulary.
    Head,
}

/// A matrix of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Queries, keys, output projection, gate and up.
    Most,
    /// Values and down projection.
    Fine,
    /// The head.
    Head,
}

impl Mix {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Bf16, Self::Q4_K_M];

    /// As files are named.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Q4_K_M => "Q4_K_M",
        }
    }

    /// How many layers of `fixture` are ordinary, and how many have more bits: the first and last
    /// eighth, and every third between.
    pub(crate) fn layers(self, fixture: &Fixture) -> [(Part, usize); 2] {
        let all = fixture.layers;
        let is_fine = |i: &usize| *i < all / 8 || *i >= 7 * all / 8 || (*i - all / 8) % 3 == 2;
        let fine = match self {
            Self::Bf16 => 0,
            Self::Q4_K_M => (0..all).filter(is_fine).count(),
        };
        [(Part::Layer, all - fine), (Part::FineLayer, fine)]
    }

    /// The block type of a matrix with rows of `columns`. A K-quant's block is 256 columns; where
    /// rows are no whole blocks the file has a type of blocks of 32.
    pub(crate) fn kind(self, part: Part, weight: Weight, columns: usize) -> BlockType {
        let whole = columns.is_multiple_of(256);
        match (self, part, weight) {
            (Self::Bf16, _, _) => BlockType::BF16,
            (_, Part::FineLayer, Weight::Fine) | (_, _, Weight::Head) => {
                if whole {
                    BlockType::Q6_K
                } else {
                    BlockType::Q8_0
                }
            }
            _ => {
                if whole {
                    BlockType::Q4_K
                } else {
                    BlockType::Q5_0
                }
            }
        }
    }
}

//! What kind of transformer a checkpoint holds: sizes, variants and rotary positions.
//!
//! The same structure describes Hugging Face folders and GGUF files; everything above the loaders
//! reads only this. Invariant: an [`Architecture`] that passed [`Architecture::validate`] has sizes
//! whose products fit comfortably in `usize` and head counts that divide. Rotary embedding pairs
//! element `i` with `i + D/2` (the half-split convention of Hugging Face), whatever the file did.
//! Read next: [`super::checkpoint`].

use std::f64::consts::PI;

use super::file_bytes::Blame;
use crate::device::Shape;
use crate::error::LoadError;

/// The family decides the variant of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen2ForCausalLM`: Llama with biases on q, k and v.
    Qwen2,
    /// `Qwen3ForCausalLM`: Llama with RMS norms on the heads of q and k.
    Qwen3,
}

impl Family {
    /// The lower-case name GGUF files and `model_type` use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Sizes and variants of one decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Which variant of the layer.
    pub family: Family,
    /// `L`, the number of layers.
    pub layers: usize,
    /// `C`, the width of the residual stream.
    pub hidden: usize,
    /// `H`, the query heads.
    pub heads: usize,
    /// `G`, the key and value heads; divides `H`.
    pub kv_heads: usize,
    /// `D`, the elements of one head; even. `H · D` need not equal `C`.
    pub head_dim: usize,
    /// `F`, the width of the feed-forward layer.
    pub ffn: usize,
    /// `V`, the rows of the head; may exceed the tokenizer's vocabulary by padding.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context: u32,
    /// Epsilon of every RMS norm.
    pub rms_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// The head is the embedding matrix.
    pub tied_head: bool,
    /// Each head of q and k is normalised before it is rotated.
    pub qk_norm: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the frequencies were changed to reach longer contexts.
    pub scaling: RopeScaling,
    /// Elements of a head that are rotated; always the whole head, `D`.
    pub dim: usize,
}

/// Changes of the rotary frequencies, as in `transformers`' `ROPE_INIT_FUNCTIONS`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain frequencies.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How far positions are stretched.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context of the pretraining.
        original_context: u32,
    },
    /// YaRN: a ramp over the dimensions between interpolation and extrapolation.
    Yarn {
        /// How far positions are stretched.
        factor: f64,
        /// Context of the pretraining.
        original_context: u32,
        /// Rotations over the original context above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is fully interpolated.
        beta_slow: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Round the ends of the ramp outwards to whole dimensions.
        truncate: bool,
    },
    /// One divisor for each of the `D/2` frequencies (`rope_freqs.weight` of GGUF files).
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// YaRN's default multiplier of cosine and sine for a stretch by `factor`.
    #[must_use]
    pub fn yarn_attention_factor(factor: f64) -> f64 {
        yarn_mscale(factor, 1.0)
    }

    /// The name used in `config.json` and in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear { .. } => "linear",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::Factors(_) => "factors",
        }
    }
}

/// `transformers`' `get_mscale`.
pub(super) fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

impl Architecture {
    /// The sizes operations need; pages are the pool's to choose and zero here.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            rms_eps: self.rms_eps,
            layers: self.layers,
            page_tokens: 0,
            page_bytes: 0,
        }
    }

    /// The `D/2` inverse frequencies (radians per position) and the factor to multiply cosine and
    /// sine by. Computed in f64 and rounded once.
    #[must_use]
    pub fn rope_frequencies(&self) -> (Vec<f32>, f32) {
        let dim = self.rope.dim;
        let plain = |i: usize| self.rope.theta.powf(-((2 * i) as f64) / dim as f64);
        let mut attention = 1.0;
        let scaled: Box<dyn Fn(usize) -> f64> = match &self.rope.scaling {
            RopeScaling::None => Box::new(plain),
            RopeScaling::Linear { factor } => Box::new(move |i| plain(i) / factor),
            RopeScaling::Factors(factors) => Box::new(move |i| plain(i) / f64::from(factors[i])),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => Box::new(move |i| {
                let frequency = plain(i);
                let rotations = f64::from(original_context) * frequency / (2.0 * PI);
                if rotations > high_freq_factor {
                    frequency
                } else if rotations < low_freq_factor {
                    frequency / factor
                } else {
                    let smooth =
                        (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }),
            &RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => {
                attention = attention_factor;
                // The dimension that makes `rotations` turns over the original context.
                let dimension = |rotations: f64| {
                    dim as f64 * (f64::from(original_context) / (rotations * 2.0 * PI)).ln()
                        / (2.0 * self.rope.theta.ln())
                };
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001; // As transformers does, against a division by zero.
                }
                Box::new(move |i| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(i) / factor * ramp + plain(i) * (1.0 - ramp)
                })
            }
        };
        ((0..dim / 2).map(|i| scaled(i) as f32).collect(), attention as f32)
    }

    /// Checks that the sizes agree with each other and are within the bounds of real models, so
    /// that later products cannot overflow. `file` is blamed in the error.
    ///
    /// # Errors
    /// [`LoadError::Malformed`] or [`LoadError::Unsupported`] naming the field.
    pub fn validate(&self, file: &str) -> Result<(), LoadError> {
        let blame = Blame(file);
        for (what, value, max) in [
            ("number of layers", self.layers, 1 << 10),
            ("hidden size", self.hidden, 1 << 17),
            ("number of query heads", self.heads, 1 << 10),
            ("number of key-value heads", self.kv_heads, 1 << 10),
            ("head dimension", self.head_dim, 1 << 10),
            ("feed-forward size", self.ffn, 1 << 20),
            ("vocabulary size", self.vocab, 1 << 22),
            ("context length", self.context as usize, 1 << 26),
        ] {
            if value == 0 || value > max {
                return Err(blame.malformed(what, format!("1 to {max}"), value));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(blame.malformed(
                "number of key-value heads",
                format!("a divisor of the {} query heads", self.heads),
                self.kv_heads,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(blame.malformed("head dimension", "an even number", self.head_dim));
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return Err(blame.malformed("RMS norm epsilon", "between 0 and 1", self.rms_eps));
        }
        self.validate_rope(blame)
    }

    fn validate_rope(&self, blame: Blame<'_>) -> Result<(), LoadError> {
        let rope = &self.rope;
        if rope.dim != self.head_dim {
            return Err(blame.unsupported(
                "rotary dimension",
                format!("{} of {}", rope.dim, self.head_dim),
                "rotation of the whole head",
            ));
        }
        if !(rope.theta > 1.0 && rope.theta <= 1e15) {
            return Err(blame.malformed("rope theta", "above 1 and at most 1e15", rope.theta));
        }
        let positive = |what: &str, value: f64| {
            if value > 0.0 && value <= 1e9 {
                return Ok(());
            }
            Err(blame.malformed(format!("rope scaling {what}"), "above 0 and at most 1e9", value))
        };
        let at_least_one = |what: &str, value: u32| {
            if value > 0 {
                return Ok(());
            }
            Err(blame.malformed(format!("rope scaling {what}"), "at least 1", value))
        };
        match &rope.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                at_least_one("original context", *original_context)?;
                if low_freq_factor >= high_freq_factor {
                    return Err(blame.malformed(
                        "rope scaling low_freq_factor",
                        format!("below high_freq_factor {high_freq_factor}"),
                        low_freq_factor,
                    ));
                }
                Ok(())
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                at_least_one("original context", *original_context)?;
                if beta_slow > beta_fast {
                    return Err(blame.malformed(
                        "rope scaling beta_slow",
                        format!("at most beta_fast {beta_fast}"),
                        beta_slow,
                    ));
                }
                Ok(())
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != rope.dim / 2 {
                    return Err(blame.malformed(
                        "number of rope frequency factors",
                        rope.dim / 2,
                        factors.len(),
                    ));
                }
                factors.iter().try_for_each(|&f| positive("frequency factor", f64::from(f)))
            }
        }
    }
}

#[cfg(test)]
#[path = "architecture_tests.rs"]
mod tests;

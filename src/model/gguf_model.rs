//! The metadata of a GGUF file as architecture, vocabulary and text settings.
//!
//! GGUF needs no other file: everything `config.json`, `tokenizer.json` and their companions hold
//! is in its metadata. Invariant: a key that would change the computation is either honoured or
//! refused by name. Read next: [`super::hf_config`], the same for Hugging Face folders.

use super::architecture::{Architecture, Family, Rope, RopeScaling};
use super::checkpoint::{GenerationDefaults, TextSettings};
use super::file_bytes::{Blame, excerpt};
use super::gguf::{Gguf, Value};
use super::tensors::{Format, StoredTensor, TensorName};
use crate::device::blocks::{BlockType, dequantize_row};
use crate::error::LoadError;
use crate::text::{GgufVocab, SpecialText};

/// The tensor of per-dimension divisors that Llama 3 files carry instead of scaling keys.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Control tokens that end a turn, by text. A GGUF file has room for one end-of-sequence id where
/// `generation_config.json` has a list, so the others are recognised by name, as llama.cpp does.
const END_TEXTS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];
/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL: i32 = 3;

/// Reads the architecture. `bytes` is the whole file, for the frequency factors.
///
/// # Errors
/// [`LoadError`] naming the key or tensor.
pub(super) fn architecture(
    gguf: &Gguf<'_>,
    blame: Blame<'_>,
    bytes: &[u8],
) -> Result<Architecture, LoadError> {
    if let Some(parts) = gguf.u32("split.count")?.filter(|&parts| parts > 1) {
        let got = format!("{parts} parts");
        return Err(blame.unsupported("split.count", got, "files joined with llama-gguf-split"));
    }
    let family = match gguf.text("general.architecture")? {
        Some("llama") => Family::Llama,
        Some("qwen2") => Family::Qwen2,
        Some("qwen3") => Family::Qwen3,
        Some(other) => {
            let supported = "llama, qwen2, qwen3";
            return Err(blame.unsupported("general.architecture", other, supported));
        }
        None => {
            let expected = "llama, qwen2 or qwen3";
            return Err(blame.malformed("general.architecture", expected, "nothing"));
        }
    };
    let key = |suffix: &str| format!("{family}.{suffix}");
    let required = |suffix: &str| gguf.required_u32(&key(suffix));
    let size = |suffix: &str| required(suffix).map(|n| n as usize);
    let optional = |suffix: &str| gguf.u32(&key(suffix));

    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let kv_heads = optional("attention.head_count_kv")?.map_or(heads, |n| n as usize);
    let head_dim = match optional("attention.key_length")? {
        Some(length) => length as usize,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a divisor of the embedding length {hidden}");
            return Err(blame.malformed(key("attention.head_count"), expected, heads));
        }
    };
    let must_equal = |suffix: &str, expected: usize| match optional(suffix)? {
        Some(got) if got as usize != expected => {
            Err(blame.unsupported(key(suffix), got, format!("{expected}, as the other sizes")))
        }
        _ => Ok(()),
    };
    must_equal("attention.value_length", head_dim)?;
    must_equal("expert_count", 0)?;
    let context = required("context_length")?;
    if let Some(window) = optional("attention.sliding_window")?.filter(|w| (1..context).contains(w))
    {
        let supported = "full attention";
        return Err(blame.unsupported(key("attention.sliding_window"), window, supported));
    }
    let eps_key = key("attention.layer_norm_rms_epsilon");
    let rms_eps = gguf
        .f64(&eps_key)?
        .ok_or_else(|| blame.malformed(&eps_key, "a number between 0 and 1", "nothing"))?
        as f32;

    let tensor = |name: &str| gguf.tensors.iter().find(|tensor| tensor.name == name);
    let embed = TensorName::Embed.in_file(Format::Gguf);
    let vocab = match tensor(&embed).map(|tensor| &*tensor.shape) {
        Some(&[rows, _]) => rows,
        other => {
            let got = other.map_or("no tensor of this name".to_owned(), |s| format!("{s:?}"));
            return Err(blame.malformed(format!("tensor {embed}"), "shape [V, C]", got));
        }
    };
    let rope = Rope {
        // The format stores an f32; what was meant is what `config.json` said.
        theta: gguf.f64(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        scaling: rope_scaling(gguf, blame, bytes, family, context, tensor(ROPE_FACTORS))?,
        dim: optional("rope.dimension_count")?.map_or(head_dim, |n| n as usize),
    };
    let has = |name: TensorName| tensor(&name.in_file(Format::Gguf)).is_some();
    let architecture = Architecture {
        family,
        layers: size("block_count")?,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: size("feed_forward_length")?,
        vocab,
        context,
        rms_eps,
        rope,
        tied_head: !has(TensorName::Head),
        qk_norm: family == Family::Qwen3,
        qkv_bias: family == Family::Qwen2 || has(TensorName::QBias(0)),
    };
    architecture.validate(blame.0)?;
    Ok(architecture)
}

fn rope_scaling(
    gguf: &Gguf<'_>,
    blame: Blame<'_>,
    bytes: &[u8],
    family: Family,
    context: u32,
    factors: Option<&StoredTensor>,
) -> Result<RopeScaling, LoadError> {
    let key = |suffix: &str| format!("{family}.rope.scaling.{suffix}");
    let number = |suffix: &str| gguf.f64(&key(suffix));
    let kind = gguf.text(&key("type"))?;
    let factor = match number("factor")? {
        Some(factor) => Some(factor),
        None => gguf.f64(&format!("{family}.rope.scale_linear"))?,
    };
    // llama.cpp treats a missing type as linear, and a missing or zero factor as 1.
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let scaling = match kind {
        Some("none") => RopeScaling::None,
        None | Some("linear") if factor == 1.0 => RopeScaling::None,
        None | Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => {
            let original = gguf.u32(&key("original_context_length"))?;
            for suffix in ["yarn_log_multiplier", "yarn_ext_factor"] {
                let usual = if suffix == "yarn_ext_factor" { 1.0 } else { 0.0 };
                if let Some(value) = number(suffix)?.filter(|&value| value != usual) {
                    return Err(blame.unsupported(key(suffix), value, usual));
                }
            }
            let attention = match number("attn_factor")? {
                Some(factor) => factor,
                None => number("yarn_attn_factor")?.unwrap_or(1.0),
            };
            RopeScaling::Yarn {
                factor,
                original_context: original.unwrap_or(context),
                beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention * RopeScaling::yarn_attention_factor(factor),
                truncate: true,
            }
        }
        Some(other) => {
            return Err(blame.unsupported(key("type"), other, "none, linear, yarn"));
        }
    };
    let Some(factors) = factors else { return Ok(scaling) };
    let what = format!("tensor {ROPE_FACTORS}");
    if scaling != RopeScaling::None {
        let got = format!("together with {} scaling", scaling.name());
        return Err(blame.unsupported(what, got, "one of the two"));
    }
    // Its length is compared with the head dimension by `Architecture::validate`.
    const FACTORS_MAX: usize = 1 << 10;
    let (&Ok(kind @ BlockType::F32), &[count @ 1..=FACTORS_MAX]) = (&factors.kind, &*factors.shape)
    else {
        let got = format!("{:?}", factors.shape);
        return Err(blame.malformed(what, "F32 of shape [D/2]", got));
    };
    let mut values = vec![0.0; count];
    dequantize_row(kind, &bytes[factors.bytes.clone()], &mut values);
    Ok(RopeScaling::Factors(values))
}

/// Everything about text but the vocabulary itself.
///
/// # Errors
/// [`LoadError`] naming the key: also where the vocabulary is incomplete, so that
/// [`vocabulary`] cannot fail later on a file that was opened.
pub(super) fn text_settings(
    gguf: &Gguf<'_>,
    blame: Blame<'_>,
    architecture: &Architecture,
) -> Result<TextSettings, LoadError> {
    let tokens = tokens(gguf, blame)?;
    if tokens.len() > architecture.vocab {
        let expected = format!("at most the {} rows of the embedding", architecture.vocab);
        return Err(blame.malformed(TOKENS, expected, tokens.len()));
    }
    let types = token_types(gguf, blame, tokens.len())?;
    let id = |name: &str| special_id(gguf, blame, name, tokens.len());
    let text = |id: Option<u32>| id.map(|id| tokens[id as usize].to_owned());
    let (bos, eos) = (id("bos")?, id("eos")?);

    let mut eos_ids: Vec<u32> = Vec::new();
    eos_ids.extend([eos, id("eot")?, id("eom")?].into_iter().flatten());
    for (index, token) in tokens.iter().enumerate() {
        if types.get(index) == Some(&CONTROL) && END_TEXTS.contains(token) {
            eos_ids.push(index as u32);
        }
    }
    let mut seen = std::collections::HashSet::new();
    eos_ids.retain(|&id| seen.insert(id));

    let sampling = |name: &str| gguf.f64(&format!("general.sampling.{name}"));
    Ok(TextSettings {
        chat_template: gguf.text("tokenizer.chat_template")?.map(str::to_owned),
        special: SpecialText {
            bos: text(bos),
            eos: text(eos),
            unk: text(id("unknown")?),
            pad: text(id("padding")?),
        },
        eos_ids,
        bos,
        add_bos: add_bos(gguf)?,
        generation: GenerationDefaults {
            temperature: sampling("temp")?.map(|n| n as f32),
            top_p: sampling("top_p")?.map(|n| n as f32),
            top_k: gguf.u32("general.sampling.top_k")?,
            min_p: sampling("min_p")?.map(|n| n as f32),
            repetition_penalty: sampling("penalty_repeat")?.map(|n| n as f32),
            do_sample: None,
        },
    })
}

const TOKENS: &str = "tokenizer.ggml.tokens";

fn tokens<'a>(gguf: &Gguf<'a>, blame: Blame<'_>) -> Result<Vec<&'a str>, LoadError> {
    match gguf.texts(TOKENS)? {
        Some(tokens) if !tokens.is_empty() => Ok(tokens),
        _ => Err(blame.malformed(TOKENS, "an array of strings", "nothing")),
    }
}

fn token_types(gguf: &Gguf<'_>, blame: Blame<'_>, count: usize) -> Result<Vec<i32>, LoadError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let types = gguf.i32s(KEY)?.unwrap_or_default();
    match types.len() {
        0 => Ok(types),
        n if n == count => Ok(types),
        n => Err(blame.malformed(KEY, format!("{count} entries, one for each token"), n)),
    }
}

fn special_id(
    gguf: &Gguf<'_>,
    blame: Blame<'_>,
    name: &str,
    count: usize,
) -> Result<Option<u32>, LoadError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    // Converters write -1 for "none", which is u32::MAX in the usual type.
    if matches!(gguf.get(&key), Some(Value::Signed(-1) | Value::Unsigned(0xffff_ffff))) {
        return Ok(None);
    }
    match gguf.u32(&key)? {
        Some(id) if id as usize >= count => {
            Err(blame.malformed(key, format!("an id below {count}"), id))
        }
        id => Ok(id),
    }
}

/// Whether prompts begin with the bos token. Files that do not say so follow their tokenizer's
/// convention, as in llama.cpp.
fn add_bos(gguf: &Gguf<'_>) -> Result<bool, LoadError> {
    if let Some(add) = gguf.bool("tokenizer.ggml.add_bos_token")? {
        return Ok(add);
    }
    let sentencepiece = gguf.text("tokenizer.ggml.model")? == Some("llama");
    let llama3 = matches!(
        gguf.text("tokenizer.ggml.pre")?,
        Some("llama3" | "llama-v3" | "llama-bpe" | "falcon3")
    );
    Ok(sentencepiece || llama3)
}

/// Copies the vocabulary out of the metadata.
///
/// # Errors
/// [`LoadError`] naming the key.
pub(super) fn vocabulary(gguf: &Gguf<'_>, blame: Blame<'_>) -> Result<GgufVocab, LoadError> {
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
    let tokens = tokens(gguf, blame)?;
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = gguf.f32s(SCORES)?.unwrap_or_default();
    if !scores.is_empty() && scores.len() != tokens.len() {
        let expected = format!("{} entries, one for each token", tokens.len());
        return Err(blame.malformed(SCORES, expected, scores.len()));
    }
    const MODEL: &str = "tokenizer.ggml.model";
    let model = gguf.text(MODEL)?;
    let model = model.ok_or_else(|| blame.malformed(MODEL, "the kind of tokenizer", "nothing"))?;
    Ok(GgufVocab {
        model: model.to_owned(),
        pre: gguf.text("tokenizer.ggml.pre")?.unwrap_or_default().to_owned(),
        token_types: token_types(gguf, blame, tokens.len())?,
        scores,
        merges: gguf.texts("tokenizer.ggml.merges")?.map(owned).unwrap_or_default(),
        bos: special_id(gguf, blame, "bos", tokens.len())?,
        eos: special_id(gguf, blame, "eos", tokens.len())?,
        add_bos: add_bos(gguf)?,
        tokens: owned(tokens),
    })
}

/// The metadata as lines of `inspect`: key and value, arrays by their length.
pub(super) fn summary(gguf: &Gguf<'_>) -> Vec<(String, String)> {
    let mut lines = vec![("format".to_owned(), format!("GGUF version {}", gguf.version))];
    let entries = gguf.entries().filter(|(key, _)| *key != "tokenizer.chat_template");
    lines.extend(entries.map(|(key, value)| (excerpt(key), value.to_string())));
    lines
}

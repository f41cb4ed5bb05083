//! `config.json`, `generation_config.json` and `tokenizer_config.json` of a Hugging Face folder.
//!
//! Reads the spellings of `transformers` 4 and 5 (`rope_scaling` and `rope_parameters`, `type` and
//! `rope_type`) with its defaults. Invariant: a setting that would change the computation is
//! either honoured or refused by name. Read next: [`super::hf_folder`].

use std::fmt::Display;

use serde_json::{Map, Value};

use super::architecture::{Architecture, Family, Rope, RopeScaling, yarn_mscale};
use super::checkpoint::GenerationDefaults;
use super::file_bytes::{Blame, excerpt};
use crate::error::LoadError;
use crate::text::SpecialText;

/// A JSON object whose fields are read with errors that name them. `null` counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    blame: Blame<'a>,
    object: &'a Map<String, Value>,
}

/// Parses a file that must hold one JSON object of at most `bytes_max` bytes: parsed JSON takes
/// many times its text, and no real file of this kind is large.
///
/// # Errors
/// [`LoadError::Malformed`].
pub(super) fn parse_object(
    blame: Blame<'_>,
    bytes: &[u8],
    bytes_max: usize,
) -> Result<Map<String, Value>, LoadError> {
    if bytes.len() > bytes_max {
        let expected = format!("at most {bytes_max} bytes");
        return Err(blame.malformed("size of the file", expected, bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|e| blame.malformed("content", "a JSON object", e))
}

impl<'a> Fields<'a> {
    pub(super) fn new(blame: Blame<'a>, object: &'a Map<String, Value>) -> Self {
        Self { blame, object }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: impl Display, value: &Value) -> LoadError {
        let got = match value {
            // Serialising a large value for a message would be wasteful.
            Value::Array(list) => format!("a list of {}", list.len()),
            Value::Object(fields) => format!("an object of {} fields", fields.len()),
            scalar => scalar.to_string(),
        };
        self.blame.malformed(key, expected, got)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // 2^32 is far above every bound `Architecture::validate` sets.
        match value.as_u64().filter(|&n| n <= 1 << 32) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(key, "a non-negative integer", value)),
        }
    }

    fn required_size(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.ok_or_else(|| self.blame.malformed(key, "an integer", "nothing"))
    }

    fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = |n: f64| (n.fract() == 0.0 && (0.0..=4e9).contains(&n)).then_some(n as u32);
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        // Some files write lengths as 32768.0.
        match number.or_else(|| value.as_f64().and_then(whole)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, "a non-negative integer", value)),
        }
    }

    fn f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, "a number", value)),
        }
    }

    fn required_f64(&self, key: &str) -> Result<f64, LoadError> {
        self.f64(key)?.ok_or_else(|| self.blame.malformed(key, "a number", "nothing"))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_bool() {
            Some(b) => Ok(Some(b)),
            None => Err(self.wrong(key, "true or false", value)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(self.wrong(key, "a string", value)),
        }
    }

    fn object(&self, key: &str) -> Result<Option<Fields<'a>>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object() {
            Some(object) => Ok(Some(Fields { blame: self.blame, object })),
            None => Err(self.wrong(key, "an object", value)),
        }
    }

    /// One id or a list of ids; absent is the empty list. `bos_token_id` of some files is a list.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, "a token id or a list of token ids", value))
    }

    /// Refuses a setting unless it has the only value this engine computes.
    fn only<T: PartialEq + Display>(
        &self,
        key: &str,
        value: Option<T>,
        supported: T,
    ) -> Result<(), LoadError> {
        match value {
            Some(value) if value != supported => Err(self.blame.unsupported(key, value, supported)),
            _ => Ok(()),
        }
    }
}

/// Reads `config.json`.
///
/// # Errors
/// [`LoadError`] naming the field.
pub(super) fn architecture(config: Fields<'_>) -> Result<Architecture, LoadError> {
    let family = family(config)?;
    config.only("hidden_act", config.text("hidden_act")?, "silu")?;
    config.only("mlp_bias", config.bool("mlp_bias")?, false)?;
    config.only("use_sliding_window", config.bool("use_sliding_window")?, false)?;
    config.only("partial_rotary_factor", config.f64("partial_rotary_factor")?, 1.0)?;
    if family != Family::Qwen2 {
        // It adds a bias to the output projection too. Qwen2 has q, k and v biases regardless.
        config.only("attention_bias", config.bool("attention_bias")?, false)?;
    }
    if let Some(quantisation) = config.object("quantization_config")? {
        let method = quantisation.text("quant_method")?.unwrap_or("an unnamed method");
        let supported = "BF16, F16 and F32 weights, or GGUF files";
        return Err(config.blame.unsupported("quantization_config", method, supported));
    }
    if let Some(Value::Array(layers)) = config.get("layer_types") {
        let other = layers.iter().find(|layer| layer.as_str() != Some("full_attention"));
        if let Some(other) = other {
            return Err(config.blame.unsupported("layer_types", other, "full_attention"));
        }
    }
    let hidden = config.required_size("hidden_size")?;
    let heads = config.required_size("num_attention_heads")?;
    let head_dim = match (config.size("head_dim")?, family) {
        (Some(head_dim), _) => head_dim,
        // The default of Qwen3Config, which does not derive it.
        (None, Family::Qwen3) => 128,
        (None, _) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        (None, _) => {
            let expected = format!("a divisor of hidden_size {hidden}");
            return Err(config.blame.malformed("num_attention_heads", expected, heads));
        }
    };
    let context = config.u32("max_position_embeddings")?.ok_or_else(|| {
        config.blame.malformed("max_position_embeddings", "an integer", "nothing")
    })?;
    let rope = rope(config, head_dim, context)?;
    let architecture = Architecture {
        family,
        layers: config.required_size("num_hidden_layers")?,
        hidden,
        heads,
        kv_heads: config.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: config.required_size("intermediate_size")?,
        vocab: config.required_size("vocab_size")?,
        context: extended_context(&rope.scaling, context),
        rms_eps: config.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        tied_head: config.bool("tie_word_embeddings")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        qkv_bias: family == Family::Qwen2,
    };
    architecture.validate(config.blame.0)?;
    Ok(architecture)
}

/// YaRN is often switched on in a `config.json` that still states the original context.
fn extended_context(scaling: &RopeScaling, context: u32) -> u32 {
    match scaling {
        RopeScaling::Yarn { factor, original_context, .. } => {
            // A cast from f64 saturates, and `validate` bounds the result.
            context.max((f64::from(*original_context) * factor) as u32)
        }
        _ => context,
    }
}

fn family(config: Fields<'_>) -> Result<Family, LoadError> {
    const SUPPORTED: &str = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";
    let class = match config.get("architectures") {
        Some(Value::Array(classes)) => match &classes[..] {
            [Value::String(class)] => Some(class.as_str()),
            _ => {
                let value = config.get("architectures").expect("matched above");
                return Err(config.wrong("architectures", "a list of one class name", value));
            }
        },
        Some(other) => {
            return Err(config.wrong("architectures", "a list of one class name", other));
        }
        None => None,
    };
    let by_type = |kind| match kind {
        "llama" => Some(Family::Llama),
        "qwen2" => Some(Family::Qwen2),
        "qwen3" => Some(Family::Qwen3),
        _ => None,
    };
    match (class, config.text("model_type")?) {
        (Some("LlamaForCausalLM"), _) => Ok(Family::Llama),
        (Some("Qwen2ForCausalLM"), _) => Ok(Family::Qwen2),
        (Some("Qwen3ForCausalLM"), _) => Ok(Family::Qwen3),
        (Some(other), _) => Err(config.blame.unsupported("architectures", other, SUPPORTED)),
        (None, Some(kind)) => by_type(kind)
            .ok_or_else(|| config.blame.unsupported("model_type", kind, "llama, qwen2, qwen3")),
        (None, None) => Err(config.blame.malformed("architectures", SUPPORTED, "nothing")),
    }
}

fn rope(config: Fields<'_>, dim: usize, context: u32) -> Result<Rope, LoadError> {
    let parameters = match config.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling")?,
    };
    let theta = match parameters.map(|fields| fields.f64("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => config.f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let scaling = match parameters {
        Some(fields) => rope_scaling(fields, context)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, scaling, dim })
}

fn rope_scaling(fields: Fields<'_>, context: u32) -> Result<RopeScaling, LoadError> {
    fields.only("partial_rotary_factor", fields.f64("partial_rotary_factor")?, 1.0)?;
    let kind = match fields.text("rope_type")? {
        Some(kind) => kind,
        None => fields.text("type")?.unwrap_or("default"),
    };
    let original =
        || Ok::<_, LoadError>(fields.u32("original_max_position_embeddings")?.unwrap_or(context));
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: fields.required_f64("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: fields.required_f64("factor")?,
            low_freq_factor: fields.required_f64("low_freq_factor")?,
            high_freq_factor: fields.required_f64("high_freq_factor")?,
            original_context: original()?,
        },
        "yarn" => {
            let original_context = original()?;
            let factor = match fields.f64("factor")? {
                Some(factor) => factor,
                None => f64::from(context) / f64::from(original_context.max(1)),
            };
            let nonzero = |key| Ok::<_, LoadError>(fields.f64(key)?.filter(|&value| value != 0.0));
            let attention_factor = match fields.f64("attention_factor")? {
                Some(attention) => attention,
                None => match (nonzero("mscale")?, nonzero("mscale_all_dim")?) {
                    (Some(m), Some(all)) => yarn_mscale(factor, m) / yarn_mscale(factor, all),
                    _ => RopeScaling::yarn_attention_factor(factor),
                },
            };
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
                beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: fields.bool("truncate")?.unwrap_or(true),
            }
        }
        other => {
            let supported = "default, linear, llama3, yarn";
            return Err(fields.blame.unsupported("rope scaling type", other, supported));
        }
    })
}

/// Sampling defaults of `generation_config.json`.
///
/// # Errors
/// [`LoadError`] naming the field.
pub(super) fn generation_defaults(fields: Fields<'_>) -> Result<GenerationDefaults, LoadError> {
    let number = |key| Ok::<_, LoadError>(fields.f64(key)?.map(|n| n as f32));
    Ok(GenerationDefaults {
        temperature: number("temperature")?,
        top_p: number("top_p")?,
        top_k: fields.u32("top_k")?,
        min_p: number("min_p")?,
        repetition_penalty: number("repetition_penalty")?,
        do_sample: fields.bool("do_sample")?,
    })
}

/// The texts of the special tokens in `tokenizer_config.json`: strings, or objects with `content`.
///
/// # Errors
/// [`LoadError`] naming the field.
pub(super) fn special_text(fields: Fields<'_>) -> Result<SpecialText, LoadError> {
    let text = |key: &str| match fields.get(key) {
        Some(Value::Object(_)) => {
            let token = fields.object(key)?.expect("matched above");
            match token.text("content")? {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(fields.blame.malformed(key, "a token with content", "none")),
            }
        }
        _ => Ok::<_, LoadError>(fields.text(key)?.map(str::to_owned)),
    };
    Ok(SpecialText {
        bos: text("bos_token")?,
        eos: text("eos_token")?,
        unk: text("unk_token")?,
        pad: text("pad_token")?,
    })
}

/// The chat template of `tokenizer_config.json`: a string, or a list of named templates of which
/// `default` or the only one is meant.
///
/// # Errors
/// [`LoadError::Malformed`] where none of several is called `default`.
pub(super) fn chat_template(fields: Fields<'_>) -> Result<Option<String>, LoadError> {
    const KEY: &str = "chat_template";
    let Some(Value::Array(list)) = fields.get(KEY) else {
        return Ok(fields.text(KEY)?.map(str::to_owned));
    };
    let is_default = |entry: &&Value| entry.get("name").is_some_and(|name| name == "default");
    let chosen = match &list[..] {
        [] => return Ok(None),
        [only] => Some(only),
        several => several.iter().find(is_default),
    };
    let template = chosen.and_then(|entry| entry.get("template")).and_then(Value::as_str);
    let expected = "an entry with a template, named default where there are several";
    match template {
        Some(template) => Ok(Some(template.to_owned())),
        None => Err(fields.blame.malformed(KEY, expected, format!("a list of {}", list.len()))),
    }
}

/// The scalars of `config.json` as lines of `inspect`.
pub(super) fn summary(config: &Map<String, Value>) -> Vec<(String, String)> {
    let line = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
            Value::String(text) => excerpt(text),
            other => excerpt(&other.to_string()),
        };
        (excerpt(key), value)
    };
    config.iter().map(line).collect()
}

#[cfg(test)]
#[path = "hf_config_tests.rs"]
mod tests;

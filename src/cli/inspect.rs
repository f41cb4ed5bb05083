//! `forerun inspect`: what a model file holds, without loading it.

use super::{models, ui};
use crate::engine::{CATALOGUE, ModelOrigin};
use crate::ids::TokenId;
use crate::model::checkpoint::{Checkpoint, TokenizerSource};
use crate::model::tensors::{TensorInfo, TensorName};
use crate::text::Tokenizer;
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A folder, a .gguf file, a hub id, a model or a pair of `forerun list`
    #[arg(value_name = "M")]
    model: String,
    /// List every tensor
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_TENSORS", hide_env_values = true)]
    tensors: bool,
}

impl InspectArgs {
    /// Prints what there is to know.
    pub(super) fn run(self) -> Result<()> {
        let pair = CATALOGUE.iter().find(|pair| pair.name == self.model).map(|pair| pair.origin);
        let names = match pair {
            Some(ModelOrigin::Embedded) => models::EMBEDDED.to_vec(),
            Some(ModelOrigin::Models { base, draft }) => vec![base, draft],
            None => vec![self.model.as_str()],
        };
        let mut reports = vec![];
        for name in names {
            let checkpoint = models::open(&models::source(name)?)?;
            reports.push(report(name, &checkpoint, self.tensors)?);
        }
        std::io::stdout().write_all(reports.join("\n").as_bytes())?;
        Ok(())
    }
}

fn report(name: &str, checkpoint: &Checkpoint, list: bool) -> Result<String> {
    let a = checkpoint.architecture();
    let tensors = checkpoint.tensors();
    let elements: u64 = tensors.iter().map(elements).sum();
    let mut rows = vec![("model", name.to_owned())];
    if let Some(path) = checkpoint.path() {
        rows.push(("file", path.display().to_string()));
    }
    rows.push(("format", value(checkpoint, "format")));
    rows.push((
        "architecture",
        format!(
            "{}: {} layers, hidden {}, feed-forward {}, {} query heads and {} KV heads of {}",
            a.family, a.layers, a.hidden, a.ffn, a.heads, a.kv_heads, a.head_dim
        ),
    ));
    let mut variants = vec![];
    for (there, what) in
        [(a.tied_head, "tied head"), (a.qkv_bias, "q, k, v biases"), (a.qk_norm, "q, k norms")]
    {
        if there {
            variants.push(what);
        }
    }
    if !variants.is_empty() {
        rows.push(("variants", variants.join(", ")));
    }
    rows.push(("context", format!("{} tokens", a.context)));
    rows.push(("rope", format!("theta {}, scaling {:?}", a.rope.theta, a.rope.scaling)));
    let size = ui::bytes(checkpoint.file_bytes());
    rows.push((
        "parameters",
        format!("{} in {} tensors, {size}", millions(elements), tensors.len()),
    ));
    rows.push(("quantisation", quantisation(&tensors)));
    rows.push(("per token", per_token(checkpoint, &tensors)?));
    rows.extend(text_rows(name, checkpoint)?);
    let mut out = String::new();
    for (head, value) in rows {
        writeln!(out, "{head:<13} {value}")?;
    }
    if list {
        let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
        out.push('\n');
        for t in &tensors {
            let shape: Vec<_> = t.shape.iter().map(ToString::to_string).collect();
            let (shape, size) = (shape.join(" x "), ui::bytes(t.bytes));
            writeln!(out, "{:width$}  {:5} {shape:>16} {size:>11}", t.name, t.kind)?;
        }
    }
    Ok(out)
}

fn elements(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().map(|n| *n as u64).product()
}

fn millions(count: u64) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

fn value(checkpoint: &Checkpoint, key: &str) -> String {
    let found = checkpoint.metadata_summary().iter().find(|(k, _)| k == key);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

/// Tensors and bytes by type, the largest share first.
fn quantisation(tensors: &[TensorInfo]) -> String {
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in tensors {
        let entry = types.entry(&tensor.kind).or_default();
        entry.0 += 1;
        entry.1 += tensor.bytes;
    }
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    let words = types.into_iter().map(|(kind, (count, bytes))| {
        let tensors = if count == 1 { "tensor" } else { "tensors" };
        format!("{kind} {} in {count} {tensors}", ui::bytes(bytes))
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What one decoded token reads and leaves behind: every weight, but of the embedding one row,
/// unless it is the head as well.
fn per_token(checkpoint: &Checkpoint, tensors: &[TensorInfo]) -> Result<String> {
    let a = checkpoint.architecture();
    let all: u64 = tensors.iter().map(|t| t.bytes).sum();
    let embed = checkpoint.tensor(TensorName::Embed)?;
    let (table, row) = (embed.bytes.len() as u64, (embed.bytes.len() / embed.rows.max(1)) as u64);
    let read = if a.tied_head { all } else { all - table + row };
    // Keys and values in bf16, as the devices keep them.
    let kv = (a.layers * 2 * a.kv_heads * a.head_dim * 2) as u64;
    Ok(format!("{} of weights read, {} of bf16 KV kept", ui::bytes(read), ui::bytes(kv)))
}

fn text_rows(name: &str, checkpoint: &Checkpoint) -> Result<Vec<(&'static str, String)>> {
    let (kind, tokenizer) = match checkpoint.tokenizer_source()? {
        TokenizerSource::Json(bytes) => ("tokenizer.json".to_owned(), Tokenizer::from_json(bytes)),
        TokenizerSource::Gguf(vocab) => {
            let kind = format!("GGUF {}, pre-tokenizer {:?}", vocab.model, vocab.pre);
            (kind, Tokenizer::from_gguf(&vocab))
        }
    };
    let tokenizer = tokenizer.with_context(|| name.to_owned())?;
    let mut rows = vec![(
        "tokenizer",
        format!(
            "{kind}; {} tokens, {} rows in the model",
            tokenizer.vocab_len(),
            checkpoint.architecture().vocab
        ),
    )];
    let special: Vec<_> = tokenizer.special_tokens().collect();
    let shown = special.iter().take(12).map(|(id, text)| format!("{text} {id}"));
    let mut words = shown.collect::<Vec<_>>().join(", ");
    if special.len() > 12 {
        write!(words, ", and {} more", special.len() - 12)?;
    }
    rows.push(("special", if words.is_empty() { "none".into() } else { words }));
    let ends = checkpoint.eos_ids().into_iter().map(|id| {
        let text = tokenizer.decode(&[TokenId(id)]);
        format!("{text} {id}")
    });
    rows.push(("ends a turn", ends.collect::<Vec<_>>().join(", ")));
    rows.push((
        "template",
        match checkpoint.chat_template() {
            Some(template) if template.contains("</think>") => {
                format!("present, {} characters, knows <think>", template.chars().count())
            }
            Some(template) => format!("present, {} characters", template.chars().count()),
            None => "none: forerun run needs one".into(),
        },
    ));
    Ok(rows)
}

//! The fields that every kind of generation takes, read and checked once.
//!
//! A known field whose effect this server does not have is refused by name, unless its value asks
//! for no effect: what is accepted is honoured. Fields nobody knows are ignored, because clients
//! send extras; only our own object `forerun` refuses what it does not know.

use super::errors::ApiError;
use super::fields::Fields;
use super::models::{Model, Who};
use crate::config;
use crate::engine::{JudgeText, PolicyOptions, Urgency};
use crate::ids::TokenId;
use crate::policy::{Gates, PolicyKind};
use crate::sample::SamplingOverrides;
use serde_json::Value;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// What a request says beside its prompt.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) sampling: SamplingOverrides,
    pub(super) stop: Vec<String>,
    pub(super) tokens_max: Option<u32>,
    /// Choices of each prompt.
    pub(super) n: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) ignore_eos: bool,
    pub(super) urgency: Urgency,
    /// The JSON schema the reply has to follow.
    pub(super) schema: Option<Arc<Value>>,
    /// For the pair.
    pub(super) policy: PolicyKind,
    pub(super) options: PolicyOptions,
}

/// Whether a value asks for nothing.
type Neutral = fn(&Value) -> bool;

fn never(_: &Value) -> bool {
    false
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn off(value: &Value) -> bool {
    value == &Value::Bool(false) || value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn on(value: &Value) -> bool {
    value == &Value::Bool(true)
}

fn no_tool(value: &Value) -> bool {
    value == "none" || value == "auto"
}

fn text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

/// Fields with an effect that is missing here, and the values that ask for none.
const REFUSED: &[(&str, Neutral)] = &[
    ("add_special_tokens", off),
    ("audio", never),
    ("best_of", one),
    ("documents", empty),
    ("dry_multiplier", off),
    ("function_call", no_tool),
    ("functions", empty),
    ("grammar", empty),
    ("guided_choice", never),
    ("guided_grammar", never),
    ("guided_json", never),
    ("guided_regex", never),
    ("include_reasoning", on),
    ("include_stop_str_in_output", off),
    ("json_schema", never),
    ("length_penalty", one),
    ("min_tokens", off),
    ("mirostat", off),
    ("modalities", text_only),
    ("prediction", never),
    ("prompt_logprobs", off_bool),
    ("reasoning_effort", never),
    ("return_tokens_as_token_ids", off),
    ("skip_special_tokens", on),
    ("stop_token_ids", empty),
    ("structured_outputs", never),
    ("suffix", empty),
    ("truncate_prompt_tokens", never),
    ("typical_p", one),
    ("use_beam_search", off),
    ("web_search_options", never),
    ("xtc_probability", off),
];

fn off_bool(value: &Value) -> bool {
    value == &Value::Bool(false)
}

/// Whether a field is known only to be refused.
#[cfg(test)]
pub(super) fn is_refused(name: &str) -> bool {
    REFUSED.iter().any(|(refused, _)| *refused == name)
}

/// Reads the common fields of a request to `model`.
pub(super) fn read(fields: &Fields<'_>, model: &Model) -> Result<Asked, ApiError> {
    for (name, neutral) in REFUSED {
        if fields.get(name).is_some_and(|value| !neutral(value)) {
            return Err(fields.error(name, "this server does not have that yet; leave it out"));
        }
    }
    let (policy, options) = policy(fields, model)?;
    let pair = model.who == Who::Pair;
    let ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    if ignore_eos && pair {
        return Err(fields.error("ignore_eos", "a pair ends with its answer; ask one model alone"));
    }
    let schema = response_format(fields)?.map(Arc::new);
    if ignore_eos && schema.is_some() {
        return Err(fields.error("ignore_eos", "a reply with a response_format ends by itself"));
    }
    let stream = fields.bool("stream")?.unwrap_or(false);
    let stream_options = fields.object("stream_options")?;
    if stream_options.is_some() && !stream {
        return Err(fields.error("stream_options", "it is only for \"stream\": true"));
    }
    let usage = stream_options.map(|options| options.bool("include_usage")).transpose()?;
    let n = fields.integer("n", 1..=config::CHOICES_MAX as i64)?.unwrap_or(1);
    let sampling = sampling(fields)?;
    Ok(Asked {
        sampling,
        stop: stop(fields)?,
        tokens_max: tokens_max(fields)?,
        n: n as usize,
        stream,
        include_usage: usage.flatten().unwrap_or(false),
        ignore_eos,
        urgency: urgency(fields)?,
        schema,
        policy,
        options,
    })
}

impl Asked {
    /// The sampling of choice `index`: its own seed, so that choices differ.
    pub(super) fn sampling_of(&self, index: usize) -> SamplingOverrides {
        let seed = self.sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        SamplingOverrides { seed, ..self.sampling.clone() }
    }
}

/// The schema of `response_format`: any object, or the one that is given.
fn response_format(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    match format.string("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(serde_json::json!({"type": "object"}))),
        Some("json_schema") => {
            let given = format.object("json_schema")?;
            let given = given.ok_or_else(|| {
                format.error("json_schema", "expected an object with the schema, got nothing")
            })?;
            given.string("name")?;
            given.bool("strict")?;
            match given.get("schema") {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema.clone())),
                Some(other) => {
                    let got = super::fields::kind(other);
                    Err(given.error("schema", format!("expected a JSON schema, got {got}")))
                }
                None => Err(given.error("schema", "expected a JSON schema, got nothing")),
            }
        }
        other => {
            let got = other.unwrap_or("nothing");
            let message = format!("expected text, json_object or json_schema, got {got:?}");
            Err(format.error("type", message))
        }
    }
}

/// vLLM's `priority`, and our own bound on how long a reply may take.
fn urgency(fields: &Fields<'_>) -> Result<Urgency, ApiError> {
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
    let timeout_ms = fields.count("timeout_ms")?;
    Ok(Urgency {
        priority: priority.unwrap_or(0) as i32,
        timeout: timeout_ms.map(|ms| Duration::from_millis(u64::from(ms))),
    })
}

fn tokens_max(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let names = ["max_completion_tokens", "max_tokens"];
    match (fields.count(names[0])?, fields.count(names[1])?) {
        (Some(a), Some(b)) if a != b => {
            Err(fields.error(names[1], format!("{b} contradicts {} of {a}; send one", names[0])))
        }
        (a, b) => Ok(a.or(b)),
    }
}

fn sampling(fields: &Fields<'_>) -> Result<SamplingOverrides, ApiError> {
    // vLLM's -1 keeps all, as 0 does here.
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32);
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64);
    Ok(SamplingOverrides {
        temperature: fields.f32("temperature")?,
        top_k,
        top_p: fields.f32("top_p")?,
        min_p: fields.f32("min_p")?,
        repetition_penalty: fields.f32("repetition_penalty")?,
        presence_penalty: fields.f32("presence_penalty")?,
        frequency_penalty: fields.f32("frequency_penalty")?,
        logit_bias: logit_bias(fields)?,
        // Who sends no seed wants another reply each time, and may send the one that was drawn
        // back: 53 bits survive every JSON reader.
        seed: Some(seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 11)),
    })
}

fn logit_bias(fields: &Fields<'_>) -> Result<Option<Vec<(TokenId, f32)>>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(None) };
    let mut out = vec![];
    for name in biases.names() {
        let id = name.parse().map_err(|_| {
            fields.error("logit_bias", format!("expected token ids as keys, got {name:?}"))
        })?;
        out.extend(biases.f32(name)?.map(|bias| (TokenId(id), bias)));
    }
    Ok((!out.is_empty()).then_some(out))
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let max = config::STOP_STRINGS_MAX;
    let wrong = |got: &str| {
        fields.error("stop", format!("expected a string or at most {max} strings, got {got}"))
    };
    let strings = match fields.get("stop") {
        None => vec![],
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(items)) if items.len() <= max => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong("something else")))
            .collect::<Result<_, _>>()?,
        Some(Value::Array(items)) => return Err(wrong(&format!("{} of them", items.len()))),
        Some(other) => return Err(wrong(super::fields::kind(other))),
    };
    if strings.iter().any(String::is_empty) {
        return Err(fields.error("stop", "an empty string would stop every reply at once"));
    }
    Ok(strings)
}

/// The policy of the pair and its overrides.
fn policy(fields: &Fields<'_>, model: &Model) -> Result<(PolicyKind, PolicyOptions), ApiError> {
    let mut options = PolicyOptions::default();
    let own = fields.object("forerun")?;
    let alone = model.who != Who::Pair;
    for (name, present) in [
        ("forerun", own.is_some()),
        ("thinking_token_budget", fields.get("thinking_token_budget").is_some()),
    ] {
        if alone && present {
            let message = format!("{} runs one model without a policy; ask the pair", model.name);
            return Err(fields.error(name, message));
        }
    }
    // vLLM's -1 is no limit.
    let budget = fields.integer("thinking_token_budget", -1..=i64::from(u32::MAX))?;
    options.token_budget = budget.filter(|n| *n >= 0).map(|n| n as u32);
    options.tokens_max = tokens_max(fields)?;
    let Some(own) = own else { return Ok((model.policy, options)) };
    const KNOWN: [&str; 19] = [
        "policy",
        "threshold",
        "score",
        "cutoff",
        "judge",
        "first_n",
        "step_tokens",
        "token_budget",
        "step_delimiter",
        "answer_by",
        "stop_on_repeat",
        "proposer",
        "window",
        "branches",
        "draft_vocab",
        "salvage",
        "gate_entropy",
        "gate_confidence",
        "merge_tokens",
    ];
    if let Some(name) = own.names().find(|name| !KNOWN.contains(name)) {
        let message = format!("there is no such setting; there are {}", KNOWN.join(", "));
        return Err(own.error(name, message));
    }
    options.threshold = own.f32("threshold")?;
    options.readout = own.parsed("score")?;
    options.cutoff = own.f32("cutoff")?;
    options.judge = judge(&own)?;
    options.first_n = own.integer("first_n", 0..=i64::from(u32::MAX))?.map(|n| n as u32);
    options.step_tokens_max = own.count("step_tokens")?;
    options.token_budget = own.count("token_budget")?.or(options.token_budget);
    options.step_delimiter = own.string("step_delimiter")?.map(str::to_owned);
    options.answer_by = own.parsed("answer_by")?;
    options.stop_on_repeat = own.bool("stop_on_repeat")?;
    options.proposer = own.parsed("proposer")?;
    options.window = own.parsed("window")?;
    options.branches = own.count("branches")?;
    options.draft_vocab = own.parsed("draft_vocab")?;
    options.salvage = own.bool("salvage")?.unwrap_or(false);
    options.gates = Gates {
        entropy_max: own.f32("gate_entropy")?,
        confidence_min: own.f32("gate_confidence")?,
        merge_tokens: own.integer("merge_tokens", 0..=i64::from(u32::MAX))?.map(|n| n as u32),
    };
    Ok((own.parsed("policy")?.unwrap_or(model.policy), options))
}

/// A judge: a built-in one by name, or its texts. Never a file of the server.
fn judge(own: &Fields<'_>) -> Result<Option<JudgeText>, ApiError> {
    let judge = match own.get("judge") {
        None => return Ok(None),
        Some(Value::String(name)) => JudgeText::built_in(name).ok_or_else(|| {
            let message = format!("there is no judge {name:?}; there are turn, prefix and compare");
            own.error("judge", message)
        })?,
        Some(texts) => {
            JudgeText::parse(&texts.to_string()).map_err(|error| own.error("judge", error))?
        }
    };
    Ok(Some(judge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Role;
    use crate::policy::{DraftVocab, WindowSize};
    use serde_json::json;

    fn ask(body: &Value, who: Who) -> Result<Asked, String> {
        let model = Model { name: "m".into(), who, policy: PolicyKind::default() };
        read(&Fields::new(body.as_object().unwrap()), &model)
            .map_err(|error| error.body()["error"]["param"].as_str().unwrap_or("none").to_owned())
    }

    #[test]
    fn a_known_field_without_its_effect_is_refused_unless_it_asks_for_nothing() {
        let alone = Who::Alone(Role::Base);
        for (name, _) in REFUSED {
            let body = json!({*name: {"type": "json_object"}});
            assert_eq!(ask(&body, alone).unwrap_err(), *name);
        }
        let nothing = json!({"tools": [], "response_format": {"type": "text"}, "best_of": 1,
            "tool_choice": "auto", "skip_special_tokens": true, "suffix": null,
            "metadata": {"a": "b"}, "user": "me", "never_heard_of": [1]});
        ask(&nothing, alone).unwrap();
    }

    #[test]
    fn every_wrong_field_is_named() {
        for (body, param) in [
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"priority": "high"}), "priority"),
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"timeout_ms": 0}), "timeout_ms"),
            (json!({"seed": "x"}), "seed"),
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"stop": [1]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
            (json!({"stream_options": {}}), "stream_options"),
            (
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "stream_options.include_usage",
            ),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"7": "x"}}), "logit_bias.7"),
            (json!({"forerun": {"treshold": 1}}), "forerun.treshold"),
            (json!({"forerun": {"score": "median"}}), "forerun.score"),
            (json!({"forerun": {"judge": "/etc/passwd"}}), "forerun.judge"),
            (json!({"ignore_eos": true}), "ignore_eos"),
        ] {
            assert_eq!(ask(&body, Who::Pair).unwrap_err(), param, "{body}");
        }
    }

    #[test]
    fn a_policy_is_for_the_pair() {
        let body = json!({"forerun": {"threshold": 3}});
        assert_eq!(ask(&body, Who::Pair).unwrap().options.threshold, Some(3.0));
        assert_eq!(ask(&body, Who::Alone(Role::Draft)).unwrap_err(), "forerun");
    }

    #[test]
    fn what_is_a_number_or_a_word_is_taken_as_either() {
        let options = |own| ask(&json!({"forerun": own}), Who::Pair).unwrap().options;
        let (number, word) = (json!({"window": 4, "draft_vocab": 4096}), json!({"window": "4"}));
        assert_eq!(options(number.clone()).window, Some(WindowSize::Fixed(4)));
        assert_eq!(options(number).draft_vocab, Some(DraftVocab::First(4096)));
        assert_eq!(options(word).window, Some(WindowSize::Fixed(4)));
        for (own, param) in [
            (json!({"window": 9}), "forerun.window"),
            (json!({"window": true}), "forerun.window"),
            (json!({"draft_vocab": 0.5}), "forerun.draft_vocab"),
        ] {
            assert_eq!(ask(&json!({"forerun": own}), Who::Pair).unwrap_err(), param);
        }
    }

    #[test]
    fn choices_have_seeds_of_their_own() {
        let asked = ask(&json!({"seed": 5}), Who::Pair).unwrap();
        assert_eq!((asked.sampling_of(0).seed, asked.sampling_of(2).seed), (Some(5), Some(7)));
        let unseeded = || ask(&json!({}), Who::Pair).unwrap().sampling.seed;
        assert_ne!(unseeded(), unseeded());
    }
}

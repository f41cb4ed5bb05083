//! `POST /v1/completions`: one model continues plain text or ids.
//!
//! The pair is refused here: its policy is about conversations, whose judge is a further turn.

use super::chat::{finite, now_s, reply_id, token_text, usage};
use super::collect::{Delta, Reading};
use super::errors::ApiError;
use super::fields::{self, Fields};
use super::generate::{self, Ask, Job, Replies, Told};
use super::models::{self, Model, Who};
use super::protocol::{self, Asked};
use super::{Port, body, json, stream};
use crate::config;
use crate::engine::{Completion, Prompt};
use crate::ids::{Role, TokenId};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

/// The route.
pub(super) async fn complete(
    State(port): State<Port>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let map = fields::parse(&body(bytes)?)?;
    let fields = Fields::new(&map);
    port.engine()?;
    let model = models::find(&port.models, fields.string("model")?)?;
    let asked = protocol::read(&fields, model)?;
    let Who::Alone(role) = model.who else {
        let base = format!("{}-base", model.name);
        let message = format!("the pair answers conversations (/v1/chat/completions); ask {base}");
        return Err(fields.error("model", message));
    };
    let Plain { prompts, echo, logprobs } = Plain::read(&fields, asked.n)?;
    let choices = prompts.len() * asked.n;
    let mut jobs = vec![];
    for prompt in prompts {
        for index in 0..asked.n {
            let completion = Completion {
                sampling: asked.sampling_of(index),
                stop: asked.stop.clone(),
                tokens_max: Some(asked.tokens_max.unwrap_or(config::COMPLETION_TOKENS)),
                ignore_end_of_turn: asked.ignore_eos,
                logprobs,
                urgency: asked.urgency,
                ..Completion::new(role, prompt.clone())
            };
            let reading = Reading { stop: asked.stop.clone(), ..Reading::default() };
            let (ask, schema) = (Ask::Alone(completion), asked.schema.clone());
            jobs.push(Job { ask, reading, route: "prompt", schema });
        }
    }
    let replies = generate::start(&port, jobs).await?;
    let shape = Shape {
        port: port.clone(),
        id: reply_id("cmpl"),
        created: now_s(),
        model: model.clone(),
        role,
        logprobs: logprobs.is_some(),
        choices,
    };
    let echoed = if echo { shape.echo(&replies) } else { vec![String::new(); choices] };
    if asked.stream {
        return Ok(shape.stream(replies, &asked, &echoed));
    }
    shape.whole(replies, &asked, echoed).await
}

/// What a plain request says beside the common fields.
pub(super) struct Plain {
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: Option<u32>,
}

impl Plain {
    /// Reads them; each prompt has `n` choices.
    pub(super) fn read(fields: &Fields<'_>, n: usize) -> Result<Self, ApiError> {
        let prompts = prompts(fields)?;
        let choices = prompts.len() * n;
        if choices > config::CHOICES_MAX {
            let (max, prompts) = (config::CHOICES_MAX, prompts.len());
            let message = format!("{prompts} prompts times n make {choices}, at most {max}");
            return Err(fields.error("n", message));
        }
        let echo = fields.bool("echo")?.unwrap_or(false);
        let logprobs = fields.integer("logprobs", 0..=i64::from(config::TOP_LOGPROBS_MAX))?;
        if echo && logprobs.is_some() {
            let message =
                "log-probabilities of the prompt are not reported; leave out echo or them";
            return Err(fields.error("logprobs", message));
        }
        Ok(Self { prompts, echo, logprobs: logprobs.map(|n| n as u32) })
    }
}

/// A prompt may be text, ids, or an array of either.
fn prompts(fields: &Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |path: &str, value: &Value| {
        let got = fields::kind(value);
        ApiError::field(path, format!("expected text or token ids, got {got}"))
    };
    let Some(prompt) = fields.get("prompt") else {
        return Err(fields.error("prompt", "expected text or token ids, got nothing"));
    };
    let one = |value: &Value, path: &str| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(items) => ids(items, path).map(Prompt::Ids),
        other => Err(wrong(path, other)),
    };
    match prompt {
        Value::Array(items) if items.iter().any(|i| i.is_string() || i.is_array()) => {
            items.iter().enumerate().map(|(i, p)| one(p, &format!("prompt[{i}]"))).collect()
        }
        other => Ok(vec![one(other, "prompt")?]),
    }
}

/// Token ids of a request.
pub(super) fn ids(items: &[Value], path: &str) -> Result<Vec<TokenId>, ApiError> {
    let id = |(i, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(TokenId).ok_or_else(|| {
            ApiError::field(format!("{path}[{i}]"), format!("expected a token id, got {item}"))
        })
    };
    items.iter().enumerate().map(id).collect()
}

struct Shape {
    port: Port,
    id: String,
    created: u64,
    model: Model,
    role: Role,
    logprobs: bool,
    choices: usize,
}

impl Shape {
    /// The prompts' text.
    fn echo(&self, replies: &Replies) -> Vec<String> {
        let tokenizer = self.port.shared.engine.get().and_then(|e| e.tokenizer(self.role));
        let text = |ids: &Vec<TokenId>| tokenizer.map(|t| t.decode(ids)).unwrap_or_default();
        replies.prompts.iter().map(text).collect()
    }

    async fn whole(
        self,
        mut replies: Replies,
        asked: &Asked,
        mut texts: Vec<String>,
    ) -> Result<Response, ApiError> {
        let mut told = vec![Logprobs::default(); self.choices];
        let add = |index: usize, delta: Delta| {
            told[index].add(&self, &delta);
            texts[index].push_str(&delta.content);
        };
        let ended = replies.all(self.choices, add).await?;
        let parts = texts.into_iter().zip(told).zip(&ended).enumerate();
        let choices = parts
            .map(|(index, ((text, told), end))| {
                let told = self.logprobs.then(|| told.object());
                json!({"index": index, "text": text, "logprobs": told, "finish_reason": end.finish})
            })
            .collect();
        let mut reply = self.envelope(choices);
        reply["usage"] = usage(replies.prompt_tokens(asked.n), asked.n, &ended);
        Ok(json(StatusCode::OK, &reply))
    }

    fn stream(self, replies: Replies, asked: &Asked, echoed: &[String]) -> Response {
        let prompt_tokens = replies.prompt_tokens(asked.n);
        let (n, include_usage) = (asked.n, asked.include_usage);
        let shown = echoed.iter().enumerate().filter(|(_, text)| !text.is_empty());
        let first = shown
            .map(|(index, text)| self.envelope(vec![piece(index, text, Value::Null, None)]))
            .collect();
        let mut ended = vec![];
        let mut told = vec![Logprobs::default(); self.choices];
        let write = move |heard: Option<Told>| match heard {
            Some(Told::Delta(index, delta)) => {
                let mut new = told[index].next();
                new.add(&self, &delta);
                let object = if self.logprobs { new.object() } else { Value::Null };
                told[index] = new;
                vec![self.envelope(vec![piece(index, &delta.content, object, None)])]
            }
            Some(Told::Done(index, end)) => {
                let choice = piece(index, "", Value::Null, Some(end.finish));
                ended.push(*end);
                vec![self.envelope(vec![choice])]
            }
            None if include_usage => {
                let mut chunk = self.envelope(vec![]);
                chunk["usage"] = usage(prompt_tokens, n, &ended);
                vec![chunk]
            }
            None | Some(Told::Failed(_)) => vec![],
        };
        stream::respond(replies, first, Box::new(write))
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model.name, "choices": choices})
    }
}

/// A choice of a streamed chunk.
fn piece(index: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
}

/// The older API's parallel lists.
#[derive(Debug, Clone, Default)]
struct Logprobs {
    tokens: Vec<Value>,
    values: Vec<Value>,
    alternatives: Vec<Value>,
    offsets: Vec<Value>,
    /// Characters of the tokens so far.
    at: usize,
}

impl Logprobs {
    fn add(&mut self, shape: &Shape, delta: &Delta) {
        let engine = shape.port.shared.engine.get();
        for (id, told) in &delta.tokens {
            let (text, _) = token_text(engine, Role::Base, *id);
            let likely = told.alternatives.iter().map(|(id, logprob)| {
                (token_text(engine, shape.role, *id).0, json!(finite(*logprob)))
            });
            self.alternatives.push(Value::Object(likely.collect::<Map<_, _>>()));
            self.values.push(json!(finite(told.logprob)));
            self.offsets.push(json!(self.at));
            self.at += text.chars().count();
            self.tokens.push(json!(text));
        }
    }

    /// Empty lists that go on where these end.
    fn next(&self) -> Self {
        Self { at: self.at, ..Self::default() }
    }

    fn object(&self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.values,
            "top_logprobs": self.alternatives, "text_offset": self.offsets})
    }
}

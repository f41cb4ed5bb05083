//! `POST /v1/chat/completions`: conversations, for the pair and for each model alone.
//!
//! The pair gets the conversation with its own instruction and judge, thinks in steps, and its
//! reply comes apart: what it thought in `reasoning_content` (and `reasoning`), the answer in
//! `content`. A model alone reads exactly what its chat template makes of the messages and writes
//! exactly what it writes, tags included, unless `separate_reasoning` asks otherwise: that is the
//! contract SpecReason's own client relies on.

use super::collect::{Delta, Reading};
use super::errors::ApiError;
use super::fields::{self, Fields};
use super::generate::{self, Ask, Done, Job, Replies, Told};
use super::models::{self, Model, Who};
use super::protocol::{self, Asked};
use super::tools::{self, ToolCall};
use super::{Port, body, json, stream};
use crate::config;
use crate::engine::{Completion, Engine, Prompt, Request, TokenLogprob};
use crate::ids::{Role, TokenId};
use crate::text::{Message, RenderOptions};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

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
    let chat = Chat::read(&fields, model)?;
    let jobs = (0..asked.n).map(|index| chat.job(&asked, model, index)).collect();
    let replies = generate::start(&port, jobs).await?;
    let reply = Shape {
        port: port.clone(),
        id: reply_id("chatcmpl"),
        created: now_s(),
        model: model.clone(),
        logprobs: chat.logprobs.is_some(),
        split: chat.split,
    };
    if asked.stream {
        return Ok(reply.stream(replies, &asked));
    }
    reply.whole(replies, &asked).await
}

/// What a chat request says beside the common fields.
pub(super) struct Chat {
    messages: Vec<Message>,
    options: RenderOptions,
    /// Calls of tools are to be found in the reply.
    calls: bool,
    logprobs: Option<u32>,
    split: bool,
}

impl Chat {
    pub(super) fn read(fields: &Fields<'_>, model: &Model) -> Result<Self, ApiError> {
        let messages = messages(fields)?;
        let options = render_options(fields)?;
        let pair = model.who == Who::Pair;
        if pair {
            for name in ["continue_final_message", "chat_template_kwargs"] {
                let neutral = |value: &Value| value == &Value::Bool(false) || value == &json!({});
                if fields.get(name).is_some_and(|value| !neutral(value)) {
                    return Err(fields.error(name, "only for one model alone, not for the pair"));
                }
            }
            if !options.add_generation_prompt {
                let message = "the pair always begins a reply; ask one model alone";
                return Err(fields.error("add_generation_prompt", message));
            }
        }
        if fields.bool("echo")?.unwrap_or(false) {
            return Err(fields.error("echo", "only /v1/completions can do that"));
        }
        let wanted = fields.bool("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=i64::from(config::TOP_LOGPROBS_MAX))?;
        if top.is_some_and(|n| n > 0) && !wanted {
            return Err(fields.error("top_logprobs", "it needs \"logprobs\": true"));
        }
        let calls = options.variables.contains_key("tools");
        Ok(Self {
            messages,
            options,
            calls,
            logprobs: wanted.then_some(top.unwrap_or(0) as u32),
            split: fields.bool("separate_reasoning")?.unwrap_or(pair),
        })
    }

    fn job(&self, asked: &Asked, model: &Model, index: usize) -> Job {
        let sampling = asked.sampling_of(index);
        let ask = match model.who {
            Who::Pair => Ask::Pair(Request {
                messages: self.messages.clone(),
                policy: asked.policy,
                sampling,
                options: asked.options.clone(),
                logprobs: self.logprobs,
                grammar: None,
                variables: self.options.variables.clone(),
                urgency: asked.urgency,
            }),
            Who::Alone(role) => {
                let options = self.options.clone();
                let prompt = Prompt::Chat { messages: self.messages.clone(), options };
                Ask::Alone(Completion {
                    sampling,
                    stop: asked.stop.clone(),
                    tokens_max: asked.tokens_max,
                    ignore_end_of_turn: asked.ignore_eos,
                    logprobs: self.logprobs,
                    urgency: asked.urgency,
                    ..Completion::new(role, prompt)
                })
            }
        };
        let steps = model.who == Who::Pair;
        let judged = steps && asked.policy.judges();
        let stop = asked.stop.clone();
        let told = steps && self.logprobs.is_some();
        let (split, calls) = (self.split, self.calls);
        let reading = Reading { stop, split, thinking: false, steps, judged, told, calls };
        Job { ask, reading, route: "messages", schema: asked.schema.clone() }
    }
}

/// The flags and variables of a chat template.
pub(super) fn render_options(fields: &Fields<'_>) -> Result<RenderOptions, ApiError> {
    let continue_final_message = fields.bool("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
    if continue_final_message && add_generation_prompt {
        let message = "it and add_generation_prompt (true unless stated) exclude each other";
        return Err(fields.error("continue_final_message", message));
    }
    let variables = fields.object("chat_template_kwargs")?;
    let mut variables = variables.map(|v| v.map().clone()).unwrap_or_default();
    variables.extend(tools::offered(fields)?.map(|tools| ("tools".to_owned(), tools)));
    Ok(RenderOptions { add_generation_prompt, continue_final_message, variables })
}

/// The conversation of a request.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let Some(items) = fields.array("messages")?.filter(|items| !items.is_empty()) else {
        return Err(fields.error("messages", "expected at least one message"));
    };
    items.iter().enumerate().map(|(i, item)| message(item, format!("messages[{i}]"))).collect()
}

fn message(item: &Value, path: String) -> Result<Message, ApiError> {
    let Some(map) = item.as_object() else {
        let got = fields::kind(item);
        return Err(ApiError::field(path, format!("expected an object, got {got}")));
    };
    let fields = Fields::at(map, path);
    let role = fields.string("role")?;
    let role = role.ok_or_else(|| fields.error("role", "expected a role, such as \"user\""))?;
    let content = match fields.get("content") {
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate();
            parts.map(|(i, part)| text_part(part, fields.name(&format!("content[{i}]")))).collect()
        }
        _ => Ok(fields.string("content")?.unwrap_or_default().to_owned()),
    }?;
    let rest = map
        .iter()
        .filter(|(name, value)| !["role", "content"].contains(&name.as_str()) && !value.is_null());
    let extra = rest.map(|(name, value)| match name.as_str() {
        "tool_calls" => (name.clone(), tools::with_parsed_arguments(value)),
        _ => (name.clone(), value.clone()),
    });
    let extra: Map<_, _> = extra.collect();
    Ok(Message { role: role.to_owned(), content, extra })
}

/// One part of a message in parts: text only.
fn text_part(part: &Value, path: String) -> Result<String, ApiError> {
    let empty = Map::new();
    let fields = Fields::at(part.as_object().unwrap_or(&empty), path);
    match fields.string("type")? {
        Some("text") => match fields.string("text")? {
            Some(text) => Ok(text.to_owned()),
            None => Err(fields.error("text", "expected a string, got nothing")),
        },
        other => {
            let got = other.unwrap_or("nothing");
            Err(fields.error("type", format!("only \"text\" is understood, got {got:?}")))
        }
    }
}

/// An id for a reply.
pub(super) fn reply_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    format!("{prefix}-{:016x}", RandomState::new().build_hasher().finish())
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// How replies are written out.
struct Shape {
    port: Port,
    id: String,
    created: u64,
    model: Model,
    logprobs: bool,
    split: bool,
}

impl Shape {
    async fn whole(self, mut replies: Replies, asked: &Asked) -> Result<Response, ApiError> {
        let mut parts = vec![(Delta::default(), vec![]); asked.n];
        let add = |index: usize, delta: Delta| {
            let (whole, tokens) = &mut parts[index];
            whole.reasoning.push_str(&delta.reasoning);
            whole.content.push_str(&delta.content);
            whole.calls.extend(delta.calls);
            tokens.extend(self.logprob_entries(&delta.tokens));
        };
        let ended = replies.all(asked.n, add).await?;
        let choices = parts.into_iter().zip(&ended).enumerate();
        let choices: Vec<_> = choices
            .map(|(index, ((whole, tokens), end))| {
                let Delta { reasoning, content, calls, .. } = whole;
                let mut message = json!({"role": "assistant", "content": content});
                if !calls.is_empty() {
                    message["content"] = json!((!content.is_empty()).then_some(content));
                    message["tool_calls"] = calls.iter().map(ToolCall::object).collect();
                }
                if self.split {
                    let reasoning = (!reasoning.is_empty()).then_some(reasoning);
                    message["reasoning_content"] = json!(reasoning);
                    message["reasoning"] = json!(reasoning);
                }
                let mut choice = json!({
                    "index": index,
                    "message": message,
                    "logprobs": self.logprobs.then(|| json!({"content": tokens})),
                    "finish_reason": end.finish,
                });
                self.add_policy(&mut choice, end);
                choice
            })
            .collect();
        let mut reply = self.envelope("chat.completion", choices);
        reply["usage"] = usage(replies.prompt_tokens(asked.n), asked.n, &ended);
        Ok(json(StatusCode::OK, &reply))
    }

    fn stream(self, replies: Replies, asked: &Asked) -> Response {
        let prompt_tokens = replies.prompt_tokens(asked.n);
        let (n, include_usage) = (asked.n, asked.include_usage);
        let (mut begun, mut ended) = (vec![false; asked.n], vec![]);
        let mut called = vec![0; asked.n];
        let kind = "chat.completion.chunk";
        let write = move |told: Option<Told>| {
            // No empty first chunk: the role comes with the first text.
            let mut role = |index: usize| {
                let first = !std::mem::replace(&mut begun[index], true);
                if first { json!({"role": "assistant"}) } else { json!({}) }
            };
            match told {
                Some(Told::Delta(index, delta)) => {
                    let mut shown = role(index);
                    if !delta.content.is_empty() {
                        shown["content"] = json!(delta.content);
                    }
                    if !delta.calls.is_empty() {
                        shown["tool_calls"] = numbered(&delta.calls, &mut called[index]);
                    }
                    if !delta.reasoning.is_empty() {
                        shown["reasoning_content"] = json!(delta.reasoning);
                        shown["reasoning"] = json!(delta.reasoning);
                    }
                    let tokens = self.logprob_entries(&delta.tokens);
                    let logprobs = (!tokens.is_empty()).then(|| json!({"content": tokens}));
                    let choice = json!({"index": index, "delta": shown, "logprobs": logprobs,
                        "finish_reason": null});
                    vec![self.envelope(kind, vec![choice])]
                }
                Some(Told::Done(index, end)) => {
                    let mut choice = json!({"index": index, "delta": role(index),
                        "logprobs": null, "finish_reason": end.finish});
                    self.add_policy(&mut choice, &end);
                    ended.push(*end);
                    vec![self.envelope(kind, vec![choice])]
                }
                None if include_usage => {
                    let mut chunk = self.envelope(kind, vec![]);
                    chunk["usage"] = usage(prompt_tokens, n, &ended);
                    vec![chunk]
                }
                None | Some(Told::Failed(_)) => vec![],
            }
        };
        stream::respond(replies, vec![], Box::new(write))
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created,
            "model": self.model.name, "choices": choices})
    }

    /// What the pair's policy did.
    fn add_policy(&self, choice: &mut Value, end: &Done) {
        if self.model.who == Who::Pair {
            choice["forerun"] = policy_report(end);
        }
    }

    fn logprob_entries(&self, tokens: &[(TokenId, TokenLogprob)]) -> Vec<Value> {
        let engine = self.port.shared.engine.get();
        let role = match self.model.who {
            Who::Alone(role) => role,
            Who::Pair => Role::Base,
        };
        let entry = |role, id, logprob| {
            let (token, bytes) = token_text(engine, role, id);
            json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
        };
        let one = |(id, told): &(TokenId, TokenLogprob)| {
            let mut object = entry(Role::Base, *id, told.logprob);
            let alternatives = told.alternatives.iter();
            object["top_logprobs"] = alternatives.map(|(id, p)| entry(role, *id, *p)).collect();
            object
        };
        tokens.iter().map(one).collect()
    }
}

/// Calls as a stream carries them; `called` is how many came before.
fn numbered(calls: &[ToolCall], called: &mut usize) -> Value {
    let one = |call: &ToolCall| {
        let mut object = call.object();
        object["index"] = json!(*called);
        *called += 1;
        object
    };
    calls.iter().map(one).collect()
}

/// Minus infinity has no place in JSON; vLLM writes this instead.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// A token's text and bytes in a model's numbering.
pub(super) fn token_text(engine: Option<&Engine>, role: Role, id: TokenId) -> (String, Vec<u8>) {
    let tokenizer = engine.and_then(|engine| engine.tokenizer(role));
    let bytes = tokenizer.map(|t| t.token_bytes(id).to_vec()).unwrap_or_default();
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}

/// The `usage` object: tokens read, tokens written, and who wrote them.
///
/// A prompt counts once, however many of the `n` choices share it.
pub(super) fn usage(prompt_tokens: usize, n: usize, ended: &[Done]) -> Value {
    let first = ended.iter().filter(|done| done.index % n == 0);
    let cached: u64 = first.map(|done| u64::from(done.cached)).sum();
    let sum = |count: fn(&Done) -> u32| ended.iter().map(|d| u64::from(count(d))).sum::<u64>();
    let written = sum(|d| d.counts.written());
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens as u64 + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": sum(|d| d.counts.reasoning),
            "base_tokens": sum(|d| d.counts.base),
            "draft_tokens": sum(|d| d.counts.draft),
            "injected_tokens": sum(|d| d.counts.injected),
            "wasted_tokens": sum(|d| d.reply.tokens.wasted),
        },
    })
}

/// What a policy decided, step by step.
fn policy_report(end: &Done) -> Value {
    let steps = end.reply.steps.iter();
    let steps: Vec<_> =
        steps.map(|s| json!({"origin": s.origin, "score": s.score, "tokens": s.tokens})).collect();
    let settings = &end.reply.settings;
    json!({"policy": settings.policy, "threshold": settings.threshold, "score": settings.score,
        "seed": settings.seed, "accepted": end.reply.accepted, "rewritten": end.reply.rewritten,
        "steps": steps})
}

//! `GET /openapi.json`: what this server takes, as an OpenAPI 3.1 document.
//!
//! Written by hand, because bodies are read field by field with errors that name the field, not by
//! derived types. What keeps it honest are its tests: every route of the router and every field a
//! handler asks a body for is in it, and nothing else. Fields that are refused are not in it.

use super::json;
use crate::config;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

/// The route.
pub(super) async fn show() -> Response {
    json(StatusCode::OK, &document())
}

/// The document.
pub(super) fn document() -> Value {
    let object = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let posts = [
        ("/v1/chat/completions", "A model or the pair answers a conversation.", "Chat", "Reply"),
        ("/v1/completions", "A model continues text or ids.", "Completion", "Reply"),
        ("/tokenize", "Text or a conversation to ids.", "Tokenize", "Tokens"),
        ("/detokenize", "Ids to text.", "Detokenize", "Prompt"),
        ("/apply-template", "A conversation to the text a model reads.", "Template", "Prompt"),
    ];
    let gets = [
        ("/v1/models", "The models of this port.", "application/json"),
        ("/v1/models/{name}", "One of them.", "application/json"),
        ("/metrics", "Counters and gauges in Prometheus' text format.", "text/plain"),
        ("/health", "200 while requests are taken.", "application/json"),
        ("/openapi.json", "This document.", "application/json"),
    ];
    let mut paths = Map::new();
    for (path, summary, takes, gives) in posts {
        let mut ok = json!({"application/json": {"schema": object(gives)}});
        if gives == "Reply" {
            ok["text/event-stream"] = json!({"schema": {"type": "string"}});
        }
        let body = json!({"required": true, "content": {"application/json": {
            "schema": object(takes)}}});
        let responses = responses(ok);
        let post = json!({"summary": summary, "requestBody": body, "responses": responses});
        paths.insert(path.to_owned(), json!({"post": post}));
    }
    for (path, summary, kind) in gets {
        let mut get = json!({"summary": summary, "responses": responses(json!({kind: {}}))});
        if path.contains('{') {
            get["parameters"] = json!([{"name": "name", "in": "path", "required": true,
                "schema": {"type": "string"}}]);
        }
        paths.insert(path.to_owned(), json!({"get": get}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "forerun", "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's protocol over a pair of models, or either of them alone."},
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn responses(ok: Value) -> Value {
    let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    let mut all = json!({"200": {"description": "As asked.", "content": ok}});
    for (status, description) in [
        ("400", "The request is wrong; the error names the field."),
        ("401", "The key is missing or wrong."),
        ("404", "There is no such model or address."),
        ("413", "The body is too large."),
        ("429", "All places are taken."),
        ("500", "The engine failed."),
        ("503", "The server is loading or shutting down."),
        ("504", "Not done within `timeout_ms`."),
    ] {
        all[status] = json!({"description": description, "content": error});
    }
    all
}

fn schemas() -> Value {
    let nullable = |kind: &str| {
        json!({"type": ["object", "null"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"},
        "param": {"type": ["string", "null"]}, "code": {"type": [kind, "null"]}}})
    };
    json!({
        "Chat": body(&[common(), template(), chat()], &["messages"]),
        "Completion": body(&[common(), plain()], &["prompt"]),
        "Tokenize": body(&[model(), template(), text()], &[]),
        "Detokenize": body(&[model(), json!({"tokens": ids()})], &["tokens"]),
        "Template": body(&[model(), template()], &["messages"]),
        "Reply": {"type": "object", "required": ["id", "object", "created", "model", "choices"]},
        "Tokens": {"type": "object", "required": ["tokens", "count", "max_model_len"]},
        "Prompt": {"type": "object", "required": ["prompt"]},
        "Error": {"type": "object", "required": ["error"],
            "properties": {"error": nullable("string")}},
    })
}

/// An object of these fields. More are accepted, and null is a field that was not sent.
fn body(parts: &[Value], required: &[&str]) -> Value {
    let mut properties = Map::new();
    for part in parts {
        for (name, schema) in part.as_object().into_iter().flatten() {
            properties.insert(name.clone(), schema.clone());
        }
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn ids() -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0}})
}

fn model() -> Value {
    json!({"model": {"type": "string", "description": "The pair's name, NAME-base or NAME-draft; \
        the port's first model unless stated."}})
}

fn text() -> Value {
    json!({"prompt": {"type": "string"}, "content": {"type": "string"},
        "add_special_tokens": {"const": false}, "add_special": {"const": false}})
}

/// Fields of both kinds of generation.
fn common() -> Value {
    let number = |range: Value| {
        let mut schema = json!({"type": "number"});
        range.as_object().into_iter().flatten().for_each(|(k, v)| schema[k] = v.clone());
        schema
    };
    let mut fields = json!({
        "temperature": number(json!({"minimum": 0})),
        "top_k": {"type": "integer", "minimum": -1},
        "top_p": number(json!({"exclusiveMinimum": 0, "maximum": 1})),
        "min_p": number(json!({"minimum": 0, "maximum": 1})),
        "repetition_penalty": number(json!({"exclusiveMinimum": 0})),
        "presence_penalty": number(json!({"minimum": -2, "maximum": 2})),
        "frequency_penalty": number(json!({"minimum": -2, "maximum": 2})),
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
        "seed": {"type": "integer"},
        "n": {"type": "integer", "minimum": 1, "maximum": config::CHOICES_MAX},
        "stop": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array",
            "maxItems": config::STOP_STRINGS_MAX, "items": {"type": "string", "minLength": 1}}]},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
        "stream_options": {"type": "object",
            "properties": {"include_usage": {"type": "boolean"}}},
        "ignore_eos": {"type": "boolean"},
        "echo": {"type": "boolean"},
        "priority": {"type": "integer", "description": "The lower runs first."},
        "timeout_ms": {"type": "integer", "minimum": 1},
        "thinking_token_budget": {"type": "integer", "minimum": -1},
        "response_format": {"type": "object", "required": ["type"], "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object", "required": ["schema"], "properties": {
                "name": {"type": "string"}, "strict": {"type": "boolean"},
                "schema": {"type": ["object", "boolean"]}}}}},
        "forerun": forerun(),
    });
    fields["model"] = model()["model"].clone();
    fields
}

fn forerun() -> Value {
    let positive = json!({"type": "integer", "minimum": 1});
    json!({"type": "object", "additionalProperties": false,
        "description": "What the pair's policy does; see the README.", "properties": {
            "policy": {"type": "string"}, "threshold": {"type": "number"},
            "score": {"type": "string"}, "cutoff": {"type": "number"},
            "judge": {"type": ["string", "object"]},
            "first_n": {"type": "integer", "minimum": 0}, "step_tokens": positive,
            "token_budget": positive, "step_delimiter": {"type": "string", "minLength": 1},
            "answer_by": {"enum": ["base", "draft", "last"]},
            "stop_on_repeat": {"type": "boolean"},
            "proposer": {"enum": ["draft", "ngram"]},
            "window": {"type": ["string", "integer"]}, "branches": positive,
            "draft_vocab": {"type": ["string", "integer"]},
            "salvage": {"type": "boolean"}, "gate_entropy": {"type": "number"},
            "gate_confidence": {"type": "number"},
            "merge_tokens": {"type": "integer", "minimum": 0}}})
}

/// Fields of what a chat template is given.
fn template() -> Value {
    let part = json!({"type": "object", "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}}});
    let content = json!({"type": ["string", "array", "null"], "items": part});
    let function = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string"}, "description": {"type": "string"},
        "parameters": {"type": "object"}}});
    json!({
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object",
            "required": ["role"],
            "properties": {"role": {"type": "string"}, "content": content}}},
        "add_generation_prompt": {"type": "boolean"},
        "continue_final_message": {"type": "boolean"},
        "chat_template_kwargs": {"type": "object"},
        "tools": {"type": "array", "items": {"type": "object", "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": function}}},
        "tool_choice": {"enum": ["auto", "none"]},
    })
}

fn chat() -> Value {
    json!({
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": config::TOP_LOGPROBS_MAX},
        "separate_reasoning": {"type": "boolean",
            "description": "Tell thinking and answer apart; true for the pair unless stated."},
    })
}

fn plain() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let lists = [
        json!({"type": "array", "minItems": 1, "items": text.clone()}),
        ids(),
        json!({"type": "array", "minItems": 1, "items": ids()}),
    ];
    let kinds: Vec<Value> = [text].into_iter().chain(lists).collect();
    json!({
        "prompt": {"anyOf": kinds},
        "logprobs": {"type": "integer", "minimum": 0, "maximum": config::TOP_LOGPROBS_MAX},
    })
}

#[cfg(test)]
mod tests {
    use super::super::fields::{Fields, asked};
    use super::super::models::{Model, Who};
    use super::super::{chat, completions, protocol};
    use super::*;
    use crate::ids::Role;
    use crate::policy::PolicyKind;
    use std::collections::BTreeSet;

    /// The names of a schema's fields, those of objects inside with their path.
    fn names(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let name = format!("{path}{name}");
            names(inner, &format!("{name}."), found);
            names(&inner["items"], &format!("{name}[]."), found);
            found.insert(name);
        }
    }

    fn documented(schema: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        names(&document()["components"]["schemas"][schema], "", &mut found);
        found
    }

    /// A body that leads readers into every object inside.
    fn everything() -> Value {
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "prompt": "x", "stream": true, "stream_options": {"include_usage": true},
            "forerun": {"policy": "base"}, "response_format": {"type": "json_schema",
                "json_schema": {"schema": {}}},
            "tools": [{"type": "function", "function": {"name": "f"}}]})
    }

    /// What handlers ask a body for, refused fields left out.
    fn read(reader: impl Fn(&Fields<'_>)) -> BTreeSet<String> {
        let body = everything();
        let names = asked(|| reader(&Fields::new(body.as_object().unwrap())));
        names.into_iter().filter(|name| !protocol::is_refused(name)).collect()
    }

    #[test]
    fn every_field_a_handler_asks_for_is_documented_and_no_other() {
        let pair = Model { name: "m".into(), who: Who::Pair, policy: PolicyKind::default() };
        let mut fields = read(|fields| {
            fields.string("model").unwrap();
            protocol::read(fields, &pair).unwrap();
            chat::Chat::read(fields, &pair).unwrap();
        });
        assert_eq!(fields, documented("Chat"));
        let alone =
            Model { name: "m".into(), who: Who::Alone(Role::Base), policy: PolicyKind::default() };
        fields = read(|fields| {
            fields.string("model").unwrap();
            // A model alone refuses the policy before it looks at what is in it.
            protocol::read(fields, &pair).unwrap();
            completions::Plain::read(fields, 1).unwrap();
            let _ = protocol::read(fields, &alone);
        });
        assert_eq!(fields, documented("Completion"));
    }

    #[test]
    fn every_route_is_documented_and_no_other() {
        let source = include_str!("mod.rs");
        let mut routes: Vec<_> = source
            .split(".route(\"")
            .skip(1)
            .map(|rest| {
                let (path, rest) = rest.split_once('"').unwrap();
                let method = rest.trim_start_matches(", ").split('(').next().unwrap();
                format!("{method} {path}")
            })
            .collect();
        let document = document();
        let mut documented: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        routes.sort();
        documented.sort();
        assert_eq!(routes, documented);
    }
}

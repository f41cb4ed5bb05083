//! The server as clients meet it: over sockets, on the embedded pair.

#![cfg(feature = "serve")]

use forerun::device::cpu::{CpuDevice, CpuOptions};
use forerun::engine::{Engine, EngineOptions, ModelSource, Pair, Request};
use forerun::ids::TokenId;
use forerun::model::{Checkpoint, PassLimits, Solo};
use forerun::server::{Listen, Server, ServerOptions};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const QUESTION: &str = "Tom has 3 apples and buys 4 more. How many apples does Tom have?";

/// Starts a server for the rest of the test run.
fn start(options: &ServerOptions, sequences_max: usize) -> Vec<SocketAddr> {
    let server = Server::bind(options, &Pair::tiny()).expect("free ports");
    server.ready(
        Engine::start(EngineOptions { sequences_max, ..EngineOptions::new(Pair::tiny()) })
            .expect("the pair starts"),
    );
    let addresses = server.ports().iter().map(|(address, _)| *address).collect();
    std::mem::forget(server);
    addresses
}

fn port(model: Option<&str>) -> Listen {
    Listen { address: "0".into(), model: model.map(str::to_owned) }
}

/// A server that most tests share: the pair, the base and the draft, each on a port.
fn shared() -> [SocketAddr; 3] {
    static SERVER: OnceLock<Vec<SocketAddr>> = OnceLock::new();
    let ports = SERVER.get_or_init(|| {
        let listen = vec![port(None), port(Some("tiny-base")), port(Some("tiny-draft"))];
        start(&ServerOptions { listen, ..ServerOptions::default() }, 4)
    });
    [ports[0], ports[1], ports[2]]
}

/// A response: status, headers in lower case, body.
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The error's parameter and code.
    fn error(&self) -> (Option<String>, Option<String>) {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.body);
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (text("param"), text("code"))
    }

    /// The objects of a stream; the last event has to be `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let lines = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut data: Vec<_> = lines.collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|d| serde_json::from_str(d).expect("JSON events")).collect()
    }
}

/// Opens a connection and sends a request whose response ends with the connection.
fn send(at: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    stream
}

fn receive(mut stream: TcpStream) -> Response {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).expect("a response");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    Response { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(at: SocketAddr, path: &str) -> Response {
    receive(send(at, "GET", path, "", b""))
}

fn post(at: SocketAddr, path: &str, body: &Value) -> Response {
    receive(send(at, "POST", path, "", body.to_string().as_bytes()))
}

/// A reply that has to be one.
fn ok(at: SocketAddr, path: &str, body: &Value) -> Value {
    let response = post(at, path, body);
    assert_eq!(response.status, 200, "{body}: {}", response.body);
    response.json()
}

fn chat(at: SocketAddr, body: Value) -> Value {
    ok(at, "/v1/chat/completions", &with_question(body))
}

/// The body with a question, where it has none, and the greedy choice.
fn with_question(mut body: Value) -> Value {
    for (name, value) in
        [("messages", json!([{"role": "user", "content": QUESTION}])), ("temperature", json!(0))]
    {
        if body.get(name).is_none() {
            body[name] = value;
        }
    }
    body
}

/// The text of one field of a stream's deltas.
fn joined(events: &[Value], field: &str) -> String {
    events.iter().filter_map(|e| e["choices"][0]["delta"][field].as_str()).collect()
}

#[test]
fn a_streamed_reply_is_the_unary_one_in_pieces() {
    let [at, ..] = shared();
    for body in [
        json!({}),
        json!({"model": "tiny-base"}),
        json!({"model": "tiny-draft", "separate_reasoning": true, "max_tokens": 25}),
        json!({"model": "tiny-base", "logprobs": true, "top_logprobs": 2, "stop": ["="]}),
        json!({"forerun": {"policy": "draft"}, "stop": "\\boxed"}),
        json!({"logprobs": true, "top_logprobs": 2}),
        json!({"logprobs": true, "forerun": {"policy": "base", "token_budget": 20}}),
        json!({"response_format": {"type": "json_object"}, "max_tokens": 150, "logprobs": true}),
    ] {
        let unary = chat(at, body.clone());
        let mut streamed = with_question(body.clone());
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let response = post(at, "/v1/chat/completions", &streamed);
        assert!(response.head.contains("content-type: text/event-stream"), "{}", response.head);
        let mut events = response.events();
        let mut usage = events.pop().expect("a last event");
        // Only the second of two equal requests can find its prompt in the cache.
        usage["usage"]["prompt_tokens_details"] = unary["usage"]["prompt_tokens_details"].clone();
        assert_eq!(
            (&usage["usage"], usage["choices"].as_array().map(Vec::len)),
            (&unary["usage"], Some(0)),
            "{body}"
        );
        let choice = &unary["choices"][0];
        assert!(events.len() > 1, "{body}: all in one piece");
        assert_eq!(joined(&events, "content"), choice["message"]["content"], "{body}");
        let reasoning = choice["message"]["reasoning_content"].as_str().unwrap_or_default();
        assert_eq!(joined(&events, "reasoning_content"), reasoning, "{body}");
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        let last = events.last().expect("a last event");
        assert_eq!(last["choices"][0]["finish_reason"], choice["finish_reason"], "{body}");
        let told: Vec<Value> = events
            .iter()
            .filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        let whole = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        assert_eq!(told, whole, "{body}");
    }
}

#[test]
fn the_pair_says_what_the_engine_says() {
    let [at, ..] = shared();
    let engine = Engine::start(EngineOptions::new(Pair::tiny())).expect("the pair starts");
    let expected = engine.answer(Request::ask(QUESTION)).expect("a reply");
    let reply = chat(at, json!({"model": "tiny"}));
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["content"], expected.final_text);
    let (reasoning, content) = expected.text.split_once("</think>").expect("it thinks");
    assert_eq!(message["reasoning_content"], reasoning);
    assert_eq!(message["reasoning"], reasoning, "under the other name, too");
    assert_eq!(message["content"], content.trim_start(), "but for the space after the tag");
    let details = &reply["usage"]["completion_tokens_details"];
    let tokens = expected.tokens;
    for (name, count) in [
        ("draft_tokens", tokens.draft),
        ("base_tokens", tokens.base),
        ("injected_tokens", tokens.injected),
        ("wasted_tokens", tokens.wasted),
    ] {
        assert_eq!(details[name], count, "{name}");
    }
    assert_eq!(reply["usage"]["completion_tokens"], tokens.draft + tokens.base);
    assert_eq!(reply["usage"]["prompt_tokens"], tokens.prompt_base);
    let close = expected.ids.iter().position(|id| engine.decode(&[*id]) == "</think>");
    assert_eq!(details["reasoning_tokens"], close.expect("it closes its thinking") + 1);
    let policy = &reply["choices"][0]["forerun"];
    assert_eq!(
        (&policy["accepted"], &policy["rewritten"]),
        (&json!(expected.accepted), &json!(expected.rewritten))
    );
    assert_eq!(policy["steps"].as_array().map(Vec::len), Some(expected.steps.len()));
}

#[test]
fn the_policy_object_reaches_the_engine() {
    let [at, ..] = shared();
    let none = chat(at, json!({"forerun": {"threshold": 100}}));
    assert_eq!(none["choices"][0]["forerun"]["accepted"], 0);
    assert_eq!(none["usage"]["completion_tokens_details"]["draft_tokens"], 0);
    let base = chat(at, json!({"forerun": {"policy": "base"}}));
    assert_eq!(base["choices"][0]["message"], none["choices"][0]["message"]);
    let all = chat(at, json!({"forerun": {"threshold": 0, "answer_by": "draft"}}));
    assert_eq!(all["usage"]["completion_tokens_details"]["base_tokens"], 0);
}

#[test]
fn base_alone_and_pair_are_models() {
    let [pair, base, draft] = shared();
    let names = |at| -> Vec<String> {
        let list = get(at, "/v1/models").json();
        let data = list["data"].as_array().expect("a list").clone();
        data.iter().map(|m| m["id"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(pair), ["tiny", "tiny-base", "tiny-draft"]);
    assert_eq!((names(base), names(draft)), (vec!["tiny-base".into()], vec!["tiny-draft".into()]));
    assert_eq!(get(pair, "/v1/models/tiny-draft").json()["id"], "tiny-draft");
    for (at, model) in [(base, "tiny-base"), (draft, "tiny-draft")] {
        let pinned = chat(at, json!({}));
        assert_eq!(pinned["model"], model, "the only model of a port needs no name");
        let named = chat(pair, json!({"model": model}));
        assert_eq!(named["choices"], pinned["choices"]);
        let details = &named["usage"]["completion_tokens_details"];
        let (wrote, silent) = if model == "tiny-base" {
            ("base_tokens", "draft_tokens")
        } else {
            ("draft_tokens", "base_tokens")
        };
        assert!(details[wrote].as_u64() > Some(0) && details[silent] == 0, "{details}");
    }
}

#[test]
fn an_unknown_model_is_404_and_names_what_there_is() {
    let [pair, base, _] = shared();
    for (at, name) in [(pair, "gpt-4"), (base, "tiny-draft"), (base, "tiny")] {
        let response = post(at, "/v1/chat/completions", &with_question(json!({"model": name})));
        assert_eq!(response.status, 404);
        let (param, code) = response.error();
        assert_eq!((param.as_deref(), code.as_deref()), (Some("model"), Some("model_not_found")));
        assert!(response.body.contains("tiny-base"), "{}", response.body);
    }
    assert_eq!(get(pair, "/v1/models/gpt-4").status, 404);
    assert_eq!(get(pair, "/v1/engines").status, 404);
    assert_eq!(get(pair, "/v1/completions").status, 405);
}

#[test]
fn what_is_wrong_is_a_400_that_names_the_field() {
    let [at, ..] = shared();
    let turn = |content: Value| json!([{"role": "user", "content": content}]);
    let long = turn(json!("apples ".repeat(2000)));
    for (body, param) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": turn(json!(5))}), "messages[0].content"),
        (json!({"messages": turn(json!([{"type": "image_url"}]))}), "messages[0].content[0].type"),
        (json!({"messages": turn(json!(" "))}), "messages"),
        (json!({"messages": long}), "messages"),
        (json!({"model": "tiny-base", "messages": long}), "messages"),
        (json!({"model": 5}), "model"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema":
            {"type": "nonsense"}}}}),
            "response_format",
        ),
        (json!({"logprobs": true, "forerun": {"policy": "draft"}}), "logprobs"),
        (json!({"logprobs": true, "forerun": {"answer_by": "draft"}}), "logprobs"),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), "chat_template_kwargs"),
        (json!({"priority": 0.5}), "priority"),
        (json!({"timeout_ms": "soon"}), "timeout_ms"),
        (json!({"model": "tiny-base", "logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"model": "tiny-base", "top_logprobs": 3}), "top_logprobs"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"forerun": {"token_budget": 99999999}}), "forerun.token_budget"),
        (json!({"forerun": {"step_delimiter": ""}}), "forerun.step_delimiter"),
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"model": "tiny-base", "continue_final_message": true}), "continue_final_message"),
    ] {
        let response = post(at, "/v1/chat/completions", &with_question(body.clone()));
        assert_eq!(response.status, 400, "{body}: {}", response.body);
        let (named, code) = response.error();
        assert_eq!(named.as_deref(), Some(param), "{body}: {}", response.body);
        let too_long = body["messages"] == long;
        assert_eq!(code.as_deref() == Some("context_length_exceeded"), too_long, "{body}");
    }
    for (body, param) in [
        (json!({"prompt": "x"}), "model"),
        (json!({"model": "tiny-base"}), "prompt"),
        (json!({"model": "tiny-base", "prompt": ""}), "prompt"),
        (json!({"model": "tiny-base", "prompt": {"a": 1}}), "prompt"),
        (json!({"model": "tiny-base", "prompt": [1, -1]}), "prompt[1]"),
        (json!({"model": "tiny-base", "prompt": [99999]}), "prompt"),
        (json!({"model": "tiny-base", "prompt": ["a", 5]}), "prompt[1]"),
        (json!({"model": "tiny-base", "prompt": ["a", "b", "c"], "n": 6}), "n"),
        (json!({"model": "tiny-base", "prompt": "x", "suffix": "y"}), "suffix"),
    ] {
        let response = post(at, "/v1/completions", &body);
        assert_eq!(response.status, 400, "{body}: {}", response.body);
        assert_eq!(response.error().0.as_deref(), Some(param), "{body}: {}", response.body);
    }
    for bytes in [&b"{"[..], b"[]", b"", b"\xff\xfe", b"{\"messages\": [{}}"] {
        let response = receive(send(at, "POST", "/v1/chat/completions", "", bytes));
        assert_eq!(response.status, 400, "{bytes:?}: {}", response.body);
        response.error();
    }
    let big = vec![b' '; 9 << 20];
    let response = receive(send(at, "POST", "/tokenize", "", &big));
    assert_eq!((response.status, response.error().1.as_deref()), (413, Some("body_too_large")));
}

#[test]
fn a_stop_string_cuts_the_reply_where_it_begins() {
    let [at, ..] = shared();
    for (model, stop) in
        [("tiny-base", " ="), ("tiny-base", "\n\n"), ("tiny", "boxed{"), ("tiny", " =")]
    {
        let body = |stop: Value| json!({"model": model, "stop": stop, "separate_reasoning": false});
        let text = |reply: &Value| {
            reply["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
        };
        let whole = text(&chat(at, body(Value::Null)));
        let cut = chat(at, body(json!([stop, "never written"])));
        let at = whole.find(stop).unwrap_or_else(|| panic!("{stop:?} is not in {whole}"));
        assert_eq!(text(&cut), whole[..at], "{model} {stop:?}");
        assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn max_tokens_bounds_what_is_written() {
    let [at, ..] = shared();
    for model in ["tiny", "tiny-base", "tiny-draft"] {
        for n in [1, 5, 30] {
            let reply = chat(at, json!({"model": model, "max_completion_tokens": n}));
            assert_eq!(reply["usage"]["completion_tokens"], n, "{model}");
            assert_eq!(reply["choices"][0]["finish_reason"], "length", "{model}");
        }
    }
}

#[test]
fn choices_are_the_replies_of_their_seeds() {
    let [at, ..] = shared();
    let hot = |extra: Value| {
        let mut body = json!({"model": "tiny-base", "temperature": 2.5, "max_tokens": 20});
        extra.as_object().expect("an object").iter().for_each(|(k, v)| body[k] = v.clone());
        body
    };
    let three = chat(at, hot(json!({"seed": 40, "n": 3})));
    let choices = three["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 3);
    for (i, choice) in choices.iter().enumerate() {
        let alone = chat(at, hot(json!({"seed": 40 + i})));
        assert_eq!(choice["message"], alone["choices"][0]["message"], "choice {i}");
        assert_eq!(choice["index"], i);
    }
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    assert_eq!(three["usage"]["completion_tokens"], 60);
    let one = chat(at, hot(json!({"seed": 40})));
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
}

#[test]
fn a_prompt_that_was_read_before_is_found_in_the_cache() {
    let [at, ..] = shared();
    let body = || {
        json!({"model": "tiny-base", "prompt": "Zoe bakes cakes and counts them. ".repeat(30),
            "max_tokens": 4, "temperature": 0})
    };
    let [first, second] = [(); 2].map(|()| ok(at, "/v1/completions", &body()));
    let cached = |reply: &Value| {
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
    };
    let read = second["usage"]["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(cached(&first), 0);
    assert!(cached(&second) > 0 && cached(&second) <= read, "{second}");
    assert_eq!(first["choices"], second["choices"], "and nothing else changes");
}

#[test]
fn text_and_its_ids_are_the_same_prompt() {
    let [at, ..] = shared();
    let text = ok(at, "/apply-template", &with_question(json!({"model": "tiny-base"})));
    let text = text["prompt"].as_str().expect("a prompt").to_owned();
    assert_eq!(
        text,
        format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n")
    );
    let ids = ok(at, "/tokenize", &json!({"model": "tiny-base", "prompt": text}));
    assert_eq!(ids["count"], ids["tokens"].as_array().expect("ids").len());
    let back = ok(at, "/detokenize", &json!({"model": "tiny-base", "tokens": ids["tokens"]}));
    assert_eq!(back["prompt"], text);
    let chat = chat(at, json!({"model": "tiny-base", "max_tokens": 12}));
    let complete = |prompt: &Value, echo: bool| {
        let body = json!({"model": "tiny-base", "prompt": prompt, "max_tokens": 12,
            "temperature": 0, "echo": echo});
        ok(at, "/v1/completions", &body)["choices"][0]["text"].as_str().expect("text").to_owned()
    };
    let reply = complete(&json!(text), false);
    assert_eq!(reply, chat["choices"][0]["message"]["content"]);
    assert_eq!(complete(&ids["tokens"], false), reply);
    assert_eq!(complete(&json!(text), true), format!("{text}{reply}"));
    let many = json!({"model": "tiny-base", "prompt": [text, "1 + 1"], "temperature": 0,
        "max_tokens": 12});
    let many = ok(at, "/v1/completions", &many);
    assert_eq!(many["choices"][0]["text"], reply);
    assert_eq!(many["choices"].as_array().map(Vec::len), Some(2));
    let pair = ok(at, "/apply-template", &with_question(json!({})));
    assert!(pair["prompt"].as_str().expect("a prompt").contains("Reason step by step"));
}

/// The logits after `ids`, by a forward pass outside of the engine.
fn logits(ids: &[TokenId]) -> Vec<f32> {
    let pair = Pair::tiny();
    let ModelSource::Embedded(files) = pair.base else { panic!("tiny is embedded") };
    let checkpoint = Checkpoint::embedded(files).expect("embedded files");
    let device = CpuDevice::new(CpuOptions::default()).expect("a device");
    let limits = PassLimits { rows: 512, full_rows: 64, positions: 1024 };
    let mut solo = Solo::load(device, &checkpoint, limits).expect("room");
    solo.logits(ids).expect("logits").pop().expect("rows")
}

#[test]
fn the_authors_requests_get_the_replies_they_expect() {
    let [_, base, draft] = shared();
    let headers = "Authorization: Bearer EMPTY\r\nContent-Type: application/json\r\n";
    let ask = |at: SocketAddr, body: Value| {
        // Before every completion their client asks for the name of the model.
        let name = get(at, "/v1/models").json()["data"][0]["id"].clone();
        let mut body = body;
        body["model"] = name.clone();
        let bytes = body.to_string().into_bytes();
        let response = receive(send(at, "POST", "/v1/chat/completions", headers, &bytes));
        assert_eq!(response.status, 200, "{body}: {}", response.body);
        let reply = response.json();
        assert_eq!((&reply["model"], &reply["object"]), (&name, &json!("chat.completion")));
        reply
    };
    let user = json!({"role": "user", "content": QUESTION});
    let first = json!({"messages": [user], "temperature": 0.6, "top_p": 0.95, "max_tokens": 512,
        "stop": ["\n\n"], "add_generation_prompt": true});
    let step = ask(draft, first);
    let message = &step["choices"][0]["message"];
    let step_text = message["content"].as_str().expect("a string, never null").to_owned();
    assert!(!step_text.contains("\n\n") && message["role"] == "assistant");
    assert_eq!(step["choices"][0]["finish_reason"], "stop");
    assert!(step["usage"]["completion_tokens"].as_u64() > Some(0));

    // Later steps continue the assistant's turn, trailing line breaks and all.
    let so_far = format!("<think>{step_text}\n\n");
    let later = |stop: &str| {
        json!({"messages": [user, {"role": "assistant", "content": so_far}],
        "temperature": 0.0, "top_p": 0.95, "max_tokens": 512, "stop": [stop],
        "add_generation_prompt": false, "continue_final_message": true})
    };
    let next = ask(base, later("\n\n"));
    let next = next["choices"][0]["message"]["content"].as_str().expect("a string").to_owned();
    assert!(!next.is_empty() && !next.contains("\n\n"), "{next:?}");
    // A reply that stops at once is empty text, and counts the token that stopped it.
    let empty = ask(base, later(&next[..1]));
    assert_eq!(empty["choices"][0]["message"]["content"], "");
    assert_eq!(empty["usage"]["completion_tokens"], 1);

    // The score: one token, its ten alternatives, from the logits as they are.
    let instruction = "Score the last step from 0 to 9.";
    let prefill = "<think>I think the quality score is: ";
    let messages = json!([user, {"role": "assistant", "content": so_far},
        {"role": "user", "content": instruction}, {"role": "assistant", "content": prefill}]);
    let score = ask(
        base,
        json!({"messages": messages, "temperature": 0.0, "max_tokens": 1,
        "logprobs": true, "top_logprobs": 10, "add_generation_prompt": false,
        "continue_final_message": true}),
    );
    let choice = &score["choices"][0];
    let told = choice["logprobs"]["content"].as_array().expect("one entry");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["token"], choice["message"]["content"]);
    assert_eq!(choice["finish_reason"], "length");
    let top = told[0]["top_logprobs"].as_array().expect("alternatives");
    assert_eq!((top.len(), &top[0]["token"]), (10, &told[0]["token"]));
    assert_eq!(top[0]["logprob"], told[0]["logprob"]);

    // The text the base read, and an independent softmax over its logits.
    let template = json!({"messages": messages, "add_generation_prompt": false,
        "continue_final_message": true});
    let read = ok(base, "/apply-template", &template)["prompt"].clone();
    let read = read.as_str().expect("a prompt");
    let tail = format!(
        "{so_far}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n\
        <|im_start|>assistant\n{prefill}"
    );
    assert!(read.ends_with(&tail), "{read}");
    let ids: Vec<TokenId> =
        serde_json::from_value(ok(base, "/tokenize", &json!({"prompt": read}))["tokens"].clone())
            .expect("ids");
    assert_eq!(score["usage"]["prompt_tokens"], ids.len());
    let logits = logits(&ids);
    let z: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let mut exact: Vec<f64> = logits.iter().map(|l| f64::from(*l) - z.ln()).collect();
    exact.sort_by(|a, b| b.total_cmp(a));
    for (told, exact) in top.iter().zip(exact) {
        let told = told["logprob"].as_f64().expect("a number");
        assert!((told - exact).abs() < 1e-3, "{told} is not {exact}");
    }

    // `</think>` stays in the text they search for it.
    let whole = ask(base, json!({"messages": [user], "temperature": 0.0, "max_tokens": 512}));
    let text = whole["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(text.contains("</think>") && !text.contains("<|im_end|>"), "{text}");

    // What they send wrongly is a 400: both flags, or a prompt that is too long.
    let both = json!({"messages": [user, user], "add_generation_prompt": true,
        "continue_final_message": true});
    assert_eq!(post(base, "/v1/chat/completions", &both).status, 400);
    let long = json!({"messages": [{"role": "user", "content": "x y ".repeat(3000)}]});
    assert_eq!(post(base, "/v1/chat/completions", &long).status, 400);
}

/// A metric's value; zero where it is not there yet.
fn metric(at: SocketAddr, name: &str) -> f64 {
    let page = get(at, "/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("forerun:{name} ")));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A request that goes on until the context is full.
fn endless(model: &str, stream: bool) -> Vec<u8> {
    let body = json!({"model": model, "prompt": "1 + 1", "max_tokens": 1000, "ignore_eos": true,
        "temperature": 0, "stream": stream, "n": 8});
    body.to_string().into_bytes()
}

#[test]
fn a_closed_connection_frees_its_request() {
    let options = ServerOptions { listen: vec![port(None)], ..ServerOptions::default() };
    let at = start(&options, 1)[0];
    for (i, stream) in [false, true].into_iter().enumerate() {
        let connection = send(at, "POST", "/v1/completions", "", &endless("tiny-base", stream));
        // One of eight runs, seven wait: those have to go too.
        wait_until("running", || metric(at, "num_requests_running") == 1.0);
        wait_until("waiting", || metric(at, "num_requests_waiting") > 0.0);
        drop(connection);
        wait_until("freed", || {
            metric(at, "num_requests_running") + metric(at, "num_requests_waiting") == 0.0
        });
        let aborted = metric(at, "request_success_total{finished_reason=\"abort\"}");
        let whole = metric(at, "request_success_total{finished_reason=\"length\"}");
        assert_eq!(aborted + whole, 8.0 * (i + 1) as f64);
        assert!(aborted >= 7.0 * (i + 1) as f64, "{aborted} aborted, {whole} ran to their end");
    }
    // And the engine is there for whoever comes next.
    chat(at, json!({"model": "tiny-base"}));
}

#[test]
fn more_requests_than_places_are_told_to_come_back() {
    let options = ServerOptions { listen: vec![port(None)], places: 8, ..ServerOptions::default() };
    let at = start(&options, 1)[0];
    let connection = send(at, "POST", "/v1/completions", "", &endless("tiny-base", true));
    wait_until("running", || metric(at, "num_requests_running") == 1.0);
    let full = post(at, "/v1/chat/completions", &with_question(json!({})));
    assert_eq!((full.status, full.error().1.as_deref()), (429, Some("queue_full")));
    assert!(full.head.contains("retry-after: 1"), "{}", full.head);
    assert_eq!(get(at, "/health").status, 200, "full is not ill");
    drop(connection);
    wait_until("a place", || {
        post(at, "/v1/chat/completions", &with_question(json!({}))).status == 200
    });
}

#[test]
fn without_the_key_every_route_but_health_is_refused() {
    let options = ServerOptions {
        listen: vec![port(None)],
        api_key: Some("open sesame".into()),
        ..ServerOptions::default()
    };
    let at = start(&options, 1)[0];
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/apply-template"),
        ("GET", "/nowhere"),
    ] {
        for headers in ["", "Authorization: Bearer open\r\n", "Authorization: open sesame\r\n"] {
            let response = receive(send(at, method, path, headers, b"{}"));
            assert_eq!(response.status, 401, "{path} {headers}");
            assert_eq!(response.error().1.as_deref(), Some("invalid_api_key"));
            assert!(!response.body.contains("sesame"), "{}", response.body);
        }
    }
    assert_eq!(get(at, "/health").status, 200);
    let key = "Authorization: Bearer open sesame\r\n";
    assert_eq!(receive(send(at, "GET", "/v1/models", key, b"")).status, 200);
}

#[test]
fn pages_of_other_origins_may_ask_where_they_are_named_and_nowhere_else() {
    let cors = |origins: &[&str]| ServerOptions {
        listen: vec![port(None)],
        api_key: Some("open sesame".into()),
        cors_origins: origins.iter().map(|o| (*o).to_owned()).collect(),
        ..ServerOptions::default()
    };
    let (a, b) = ("https://a.example", "https://b.example");
    for (origins, asks, allowed) in
        [(&[][..], a, None), (&[a][..], a, Some(a)), (&[a], b, None), (&["*"], b, Some("*"))]
    {
        let at = start(&cors(origins), 1)[0];
        let headers = format!("Origin: {asks}\r\nAccess-Control-Request-Method: POST\r\n");
        let preflight = receive(send(at, "OPTIONS", "/v1/chat/completions", &headers, b""));
        let health = receive(send(at, "GET", "/health", &headers, b""));
        for response in [preflight, health] {
            let lines = response.head.lines();
            let mut found = lines.filter_map(|l| l.strip_prefix("access-control-allow-origin: "));
            assert_eq!(found.next(), allowed, "{origins:?} {asks}: {}", response.head);
        }
    }
}

#[test]
fn every_documented_address_is_there() {
    let [at, ..] = shared();
    let document = get(at, "/openapi.json").json();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{name}", "tiny");
        for method in methods.as_object().expect("methods").keys() {
            let response = receive(send(at, &method.to_uppercase(), &path, "", b"{}"));
            assert!([200, 400].contains(&response.status), "{method} {path}: {}", response.body);
        }
    }
}

#[test]
fn health_is_503_until_the_engine_is_there() {
    let options = ServerOptions { listen: vec![port(None)], ..ServerOptions::default() };
    let server = Server::bind(&options, &Pair::tiny()).expect("free ports");
    let at = server.ports()[0].0;
    for (response, code) in [
        (get(at, "/health"), "loading"),
        (post(at, "/v1/chat/completions", &with_question(json!({}))), "loading"),
    ] {
        assert_eq!((response.status, response.error().1.as_deref()), (503, Some(code)));
        assert!(response.head.contains("retry-after"), "{}", response.head);
    }
    assert_eq!(get(at, "/v1/models").status, 200, "names are known before");
    server.ready(Engine::start(EngineOptions::new(Pair::tiny())).expect("the pair starts"));
    assert_eq!(get(at, "/health").status, 200);
}

#[test]
fn metrics_add_up() {
    let options = ServerOptions { listen: vec![port(None)], ..ServerOptions::default() };
    let at = start(&options, 2)[0];
    let pair = chat(at, json!({}));
    let base = chat(at, json!({"model": "tiny-base", "max_tokens": 9}));
    let sum = |name: &str| {
        let of = |reply: &Value| reply["usage"][name].as_f64().expect("a number");
        of(&pair) + of(&base)
    };
    assert_eq!(metric(at, "generation_tokens_total"), sum("completion_tokens"));
    assert_eq!(metric(at, "prompt_tokens_total"), sum("prompt_tokens"));
    let steps = &pair["choices"][0]["forerun"];
    assert_eq!(metric(at, "reason_steps_total{outcome=\"accepted\"}"), steps["accepted"]);
    assert_eq!(metric(at, "reason_steps_total{outcome=\"rejected\"}"), steps["rewritten"]);
    for name in ["time_to_first_token_seconds_count", "e2e_request_latency_seconds_count"] {
        assert_eq!(metric(at, name), 2.0, "{name}");
    }
    assert_eq!(metric(at, "request_success_total{finished_reason=\"length\"}"), 1.0);
}

#[path = "serve/formats.rs"]
mod formats;

#[cfg(unix)]
mod program {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    fn serve(arguments: &[&str]) -> (Child, Vec<(SocketAddr, String)>) {
        let ports = arguments.iter().filter(|a| **a == "--listen").count().max(1);
        let mut child = Command::new(env!("CARGO_BIN_EXE_forerun"))
            .arg("serve")
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ports = (0..ports)
            .map(|_| {
                let line = lines.next().expect("a line").expect("UTF-8");
                let rest = line.strip_prefix("listening on http://").expect("an address");
                let (address, models) = rest.split_once(" as ").expect("models");
                (address.parse().expect("an address"), models.to_owned())
            })
            .collect();
        (child, ports)
    }

    fn signal(child: &Child, name: &str) {
        let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    #[test]
    fn sigterm_drains_and_ends_with_success() {
        let (mut child, ports) = serve(&["--port", "0"]);
        let at = ports[0].0;
        assert_eq!(ports[0].1, "tiny, tiny-base, tiny-draft");
        let running = send(at, "POST", "/v1/completions", "", &endless("tiny-draft", true));
        wait_until("running", || metric(at, "num_requests_running") > 0.0);
        signal(&child, "TERM");
        // New requests are refused while the old one goes on.
        wait_until("draining", || get(at, "/health").status == 503);
        let refused = post(at, "/v1/chat/completions", &with_question(json!({})));
        assert_eq!((refused.status, refused.error().1.as_deref()), (503, Some("draining")));
        let events = receive(running).events();
        let ends = events.iter().filter(|e| e["choices"][0]["finish_reason"] == "length").count();
        assert_eq!(ends, 8, "every choice came to its own end");
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }

    #[test]
    fn a_second_signal_ends_at_once() {
        let (mut child, ports) = serve(&["--port", "0"]);
        let at = ports[0].0;
        let running = send(at, "POST", "/v1/completions", "", &endless("tiny-base", false));
        wait_until("running", || metric(at, "num_requests_running") > 0.0);
        signal(&child, "INT");
        wait_until("draining", || get(at, "/health").status == 503);
        signal(&child, "INT");
        assert_eq!(child.wait().expect("it ends").code(), Some(130));
        drop(running);
    }

    #[test]
    fn one_process_answers_as_the_base_on_one_port_and_as_the_draft_on_another() {
        let arguments = ["--listen", "0=pair-base", "--listen", "127.0.0.1:0=pair-draft"];
        let (mut child, ports) =
            serve(&[&arguments[..], &["--served-model-name", "pair"]].concat());
        for ((at, models), model) in ports.iter().zip(["pair-base", "pair-draft"]) {
            assert_eq!(models, model);
            assert_eq!(get(*at, "/v1/models").json()["data"][0]["id"], model);
            assert_eq!(chat(*at, json!({}))["model"], model);
        }
        signal(&child, "TERM");
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }

    #[test]
    fn log_lines_are_json_objects_when_asked() {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forerun"))
            .args(["serve", "--port", "0", "--log-json"])
            .env_clear()
            .env("FORERUN_LOG", "forerun=info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        out.read_line(&mut line).expect("a line");
        let address = line.split_whitespace().nth(2).and_then(|url| url.strip_prefix("http://"));
        let at: SocketAddr = address.and_then(|a| a.parse().ok()).expect("an address");
        let reply = chat(at, json!({"max_tokens": 9}));
        signal(&child, "TERM");
        let output = child.wait_with_output().expect("it ends");
        let log = String::from_utf8(output.stderr).expect("UTF-8");
        let lines: Vec<Value> = log.lines().map(|l| l.parse().expect("JSON")).collect();
        let replied: Vec<_> = lines.iter().filter(|l| l["message"] == "replied").collect();
        assert_eq!(replied.len(), 1, "one line per request: {log}");
        assert_eq!(replied[0]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
        assert_eq!(replied[0]["finish"], "length");
    }

    #[test]
    fn a_bad_flag_is_one_line() {
        for (arguments, part) in [
            (&["--listen", "0=gpt-4"][..], "listen: there is no model \"gpt-4\"; there are tiny"),
            (&["--listen", "nowhere"], "expected PORT or HOST:PORT"),
            (&["--api-key", ""], "--api-key: expected a key"),
            (&["--max-num-seqs", "0"], "--max-num-seqs"),
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
            let output =
                command.arg("serve").args(arguments).env_clear().output().expect("it runs");
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{error}");
            assert!(error.lines().count() == 1 && error.contains(part), "{error}");
        }
    }
}

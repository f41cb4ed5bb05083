//! Features together, two by two: every pair of values of every two features is in one request at
//! least, and every request says what it says alone.

#![cfg(feature = "serve")]

#[path = "common/problems.rs"]
mod problems;

use forerun::engine::{Engine, EngineOptions, Pair};
use forerun::error::{EngineError, KvError};
use forerun::server::{Listen, Server, ServerOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The features and how many values each has.
const FEATURES: [(&str, usize); 9] = [
    ("who", 6),
    ("stream", 2),
    ("logprobs", 3),
    ("schema", 2),
    ("prefix cache", 2),
    ("preemption", 2),
    ("stop", 2),
    ("n", 2),
    ("sampling", 3),
];

type Row = [usize; FEATURES.len()];

/// Whether the server takes such a request: what the base makes of a reply it never reads is not
/// to be had.
fn is_valid(row: &Row) -> bool {
    !(row[0] >= 4 && row[2] > 0)
}

fn all_rows() -> Vec<Row> {
    let mut rows = vec![[0; FEATURES.len()]];
    for (i, (_, values)) in FEATURES.iter().enumerate() {
        let with = |row: &Row| {
            let row = *row;
            (0..*values).map(move |value| {
                let mut row = row;
                row[i] = value;
                row
            })
        };
        rows = rows.iter().flat_map(with).collect();
    }
    rows.retain(is_valid);
    rows
}

fn pairs(row: &Row) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let row = *row;
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| (a, row[a], b, row[b])))
}

/// Rows that hold every pair some row holds, each the one with the most new pairs.
fn pairwise() -> Vec<Row> {
    let all = all_rows();
    let mut missing: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut chosen = vec![];
    while !missing.is_empty() {
        let new = |row: &&Row| pairs(row).filter(|pair| missing.contains(pair)).count();
        let best = *all.iter().max_by_key(new).expect("there are rows");
        pairs(&best).for_each(|pair| {
            missing.remove(&pair);
        });
        chosen.push(best);
    }
    chosen
}

fn body(row: &Row, index: usize, questions: &[String]) -> Value {
    let [who, _, logprobs, schema, cache, _, stop, n, sampling] = *row;
    // Who finds the beginning of the prompt in the cache asks what all such requests ask.
    let question = if cache == 1 { &questions[0] } else { &questions[1 + index] };
    let mut body = json!({"messages": [{"role": "user", "content": question}], "seed": index,
        "max_tokens": 120, "n": ([1, 3][n]), "temperature": ([0.0, 0.8, 0.0][sampling])});
    match who {
        0 => body["model"] = json!("tiny-base"),
        1 => body["model"] = json!("tiny-draft"),
        2 => body["model"] = json!("tiny"),
        3 => body["forerun"] = json!({"policy": "base"}),
        4 => body["forerun"] = json!({"policy": "draft"}),
        // Short steps leave room for a comparison in a short context.
        _ => {
            body["forerun"] = json!({"policy": "lookahead", "threshold": 4.5, "score": "mean",
                "step_tokens": 32});
        }
    }
    if who < 2 {
        body["separate_reasoning"] = json!(true);
    }
    if logprobs > 0 {
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(logprobs - 1);
    }
    if schema == 1 {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"schema": {
            "type": "object", "required": ["answer"], "additionalProperties": false,
            "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 9999}}}}});
    }
    if stop == 1 {
        body["stop"] = json!(["boxed", "7"]);
    }
    if sampling == 2 {
        body["repetition_penalty"] = json!(1.15);
    }
    body
}

fn serve(tight: bool) -> SocketAddr {
    let options = |kv_cache_memory_bytes| EngineOptions {
        max_model_len: Some(448),
        kv_cache_memory_bytes,
        sequences_max: 32,
        batch_rows_max: if tight { 48 } else { 512 },
        ..EngineOptions::new(Pair::tiny())
    };
    let bytes = match Engine::start(options(Some(1 << 16))).err().expect("too small") {
        EngineError::Kv(KvError::TooSmall { needed_bytes, .. }) => needed_bytes,
        other => panic!("{other}"),
    };
    let listen = vec![Listen { address: "0".into(), model: None }];
    let server = Server::bind(&ServerOptions { listen, ..ServerOptions::default() }, &Pair::tiny());
    let server = server.expect("a free port");
    server.ready(Engine::start(options(tight.then_some(bytes))).expect("it starts"));
    let at = server.ports()[0].0;
    std::mem::forget(server);
    at
}

fn exchange(at: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("the server listens");
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a response");
    let (head, reply) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(" 200 "), "{body}: {text}");
    reply.to_owned()
}

/// What a client makes of a reply, the same whether it was streamed or not: of each choice the
/// reasoning, the content, the log-probabilities and the end; then the tokens.
fn ask(at: SocketAddr, mut body: Value, stream: bool) -> Value {
    body["stream"] = json!(stream);
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    let reply = exchange(at, "POST", "/v1/chat/completions", &body.to_string());
    let n = body["n"].as_u64().expect("a number") as usize;
    let mut choices = vec![(String::new(), String::new(), vec![], Value::Null); n];
    let events: Vec<Value> = if stream {
        let data = reply.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|d| *d != "[DONE]").map(|d| d.parse().expect("JSON")).collect()
    } else {
        vec![reply.parse().expect("JSON")]
    };
    let mut usage = Value::Null;
    for event in events {
        for choice in event["choices"].as_array().expect("choices") {
            let at = &mut choices[choice["index"].as_u64().expect("a number") as usize];
            let message = if stream { &choice["delta"] } else { &choice["message"] };
            at.0.push_str(message["reasoning_content"].as_str().unwrap_or_default());
            at.1.push_str(message["content"].as_str().unwrap_or_default());
            at.2.extend(choice["logprobs"]["content"].as_array().into_iter().flatten().cloned());
            if choice["finish_reason"].is_string() {
                at.3 = json!([choice["finish_reason"], choice["forerun"]]);
            }
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    // What lay in the cache is nobody's promise, and where a stop string ends a reply the pair is
    // told to stop, which takes it a step.
    usage["prompt_tokens_details"] = Value::Null;
    // How far the draft looked ahead when a step was decided is a matter of timing.
    if body.get("stop").is_some() || body["forerun"]["policy"] == "lookahead" {
        usage["completion_tokens_details"]["wasted_tokens"] = Value::Null;
        choices.iter_mut().for_each(|choice| choice.3[1] = Value::Null);
    }
    json!([choices, usage])
}

#[test]
fn every_two_features_together_change_nothing_but_what_they_are_for() {
    let rows = pairwise();
    assert!((10..40).contains(&rows.len()), "{} rows", rows.len());
    let questions = problems::questions(rows.len() + 1);
    let bodies: Vec<_> = rows.iter().enumerate().map(|(i, row)| body(row, i, &questions)).collect();
    let alone: Vec<Value> = {
        let at = serve(false);
        bodies.iter().map(|body| ask(at, body.clone(), false)).collect()
    };
    let servers = [serve(false), serve(true)];
    // Came first, grow to the end of the context, and fill the small pool.
    let long = json!({"model": "tiny-base", "prompt": "1 + 1", "max_tokens": 400, "n": 8,
        "ignore_eos": true});
    let together: Vec<Value> = std::thread::scope(|scope| {
        scope.spawn(|| exchange(servers[1], "POST", "/v1/completions", &long.to_string()));
        while exchange(servers[1], "GET", "/metrics", "").contains("num_requests_running 0\n") {
            std::thread::yield_now();
        }
        let start = |(row, body): (&Row, &Value)| {
            let (at, stream, body) = (servers[row[5]], row[1] == 1, body.clone());
            scope.spawn(move || ask(at, body, stream))
        };
        let all: Vec<_> = rows.iter().zip(&bodies).map(start).collect();
        all.into_iter().map(|thread| thread.join().expect("a reply")).collect()
    });
    for ((row, body), (got, want)) in rows.iter().zip(&bodies).zip(together.iter().zip(&alone)) {
        let named: Vec<_> = FEATURES.iter().map(|f| f.0).zip(row).collect();
        assert_eq!(got, want, "{named:?}: {body}");
    }
    let metrics = exchange(servers[1], "GET", "/metrics", "");
    let line = metrics.lines().find_map(|l| l.strip_prefix("forerun:num_preemptions_total "));
    let preemptions: u64 = line.and_then(|n| n.parse().ok()).expect("a number");
    assert!(preemptions > 0, "the small pool was never full");
}

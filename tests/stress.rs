//! Many clients that behave badly, for as long as `FORERUN_STRESS_SECONDS` says (a few by default).
//!
//! The server is the program itself, so that its memory can be looked at. Whatever clients do: no
//! page is lost, memory stays flat, and every request ends exactly once.

#![cfg(all(unix, feature = "serve"))]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 64;
const SECONDS: u64 = 8;

/// SplitMix64: the test needs variety, not quality.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) % n
    }
}

fn connect(at: SocketAddr, method: &str, path: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    stream
}

/// Status and body.
fn receive(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).expect("a response that ends");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// How many requests of a kind came to which end.
#[derive(Default)]
struct Ends {
    finished: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
}

fn body(numbers: &mut Numbers) -> Value {
    let questions = [
        "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
        "Zoe bakes 12 cakes and sells 5 of them. How many cakes are left?",
        "A box holds 6 pens. How many pens do 7 boxes hold?",
    ];
    let question = format!(
        "{}{}",
        "Think well. ".repeat(numbers.below(12) as usize),
        questions[numbers.below(3) as usize]
    );
    let model = ["tiny", "tiny", "tiny-base", "tiny-draft"][numbers.below(4) as usize];
    let mut body = json!({"model": model, "temperature": numbers.below(2), "seed": numbers.0 >> 20,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 1 + numbers.below(160), "n": 1 + numbers.below(3) / 2,
        "priority": numbers.below(3) as i64 - 1});
    match numbers.below(8) {
        0 => body["stop"] = json!(["=", "\n\n"]),
        1 => body["response_format"] = json!({"type": "json_object"}),
        2 if model != "tiny-draft" => {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(numbers.below(4));
        }
        3 => body["repetition_penalty"] = json!(1.1),
        _ => {}
    }
    body
}

/// One whole reply, streamed or not, that has to end in one of the allowed ways.
fn whole(at: SocketAddr, mut body: Value, numbers: &mut Numbers, ends: &Ends) {
    let streamed = numbers.below(2) == 0;
    body["stream"] = json!(streamed);
    let choices = body["n"].as_u64().expect("a number");
    let text = body.to_string();
    let (status, reply) = receive(connect(at, "POST", "/v1/chat/completions", text.as_bytes()));
    if status == 429 {
        ends.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let timeout = body.get("timeout_ms").is_some();
    if !streamed {
        assert!(status == 200 || (timeout && status == 504), "{status}: {text}: {reply}");
        let reply: Value = serde_json::from_str(&reply).expect("JSON");
        let end = if status == 200 {
            let reasons = reply["choices"].as_array().expect("choices").iter();
            assert!(
                reasons.clone().all(|c| ["stop", "length"]
                    .contains(&c["finish_reason"].as_str().expect("a reason"))),
                "{reply}"
            );
            assert_eq!(reasons.count() as u64, choices);
            &ends.finished
        } else {
            &ends.timed_out
        };
        end.fetch_add(1, Ordering::Relaxed);
        return;
    }
    assert!(status == 200, "{status}: {text}: {reply}");
    let data: Vec<_> = reply.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.iter().filter(|d| **d == "[DONE]").count(), 1, "{reply}");
    assert_eq!(data.last(), Some(&"[DONE]"), "{reply}");
    let events = data[..data.len() - 1].iter();
    let events: Vec<Value> =
        events.map(|d| serde_json::from_str(d).expect("JSON events")).collect();
    let failed = events.iter().filter(|e| e.get("error").is_some()).count();
    let ended = |index| {
        let of = |e: &&Value| {
            e["choices"][0]["index"] == index && e["choices"][0]["finish_reason"].is_string()
        };
        events.iter().filter(of).count()
    };
    if failed > 0 {
        assert!(timeout && failed == 1, "{reply}");
        ends.timed_out.fetch_add(1, Ordering::Relaxed);
    } else {
        (0..choices).for_each(|i| assert_eq!(ended(i), 1, "choice {i}: {reply}"));
        ends.finished.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client that goes away at some moment.
fn leave(at: SocketAddr, mut body: Value, numbers: &mut Numbers, ends: &Ends) {
    body["stream"] = json!(numbers.below(2) == 0);
    let mut stream = connect(at, "POST", "/v1/chat/completions", body.to_string().as_bytes());
    match numbers.below(3) {
        0 => {}
        1 => std::thread::sleep(Duration::from_millis(numbers.below(40))),
        _ => {
            let mut some = vec![0; 1 + numbers.below(900) as usize];
            let _ = stream.read(&mut some);
        }
    }
    ends.left.fetch_add(1, Ordering::Relaxed);
}

fn malformed(at: SocketAddr, numbers: &mut Numbers, ends: &Ends) {
    let long = "apples ".repeat(3000);
    let bodies: [&[u8]; 7] = [
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{\"messages\": [{\"role\": 5}]}",
        b"{\"messages\": [], \"n\": -1}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"response_format\": \
            {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"type\": 7}}}}",
        &json!({"messages": [{"role": "user", "content": long}]}).to_string().into_bytes(),
    ];
    let bytes = bodies[numbers.below(7) as usize];
    let (status, reply) = receive(connect(at, "POST", "/v1/chat/completions", bytes));
    assert!(status == 400 || status == 429, "{status}: {reply}");
    ends.refused.fetch_add(1, Ordering::Relaxed);
}

fn client(at: SocketAddr, seed: u64, until: Instant, ends: &Ends) {
    let mut numbers = Numbers(seed << 32);
    while Instant::now() < until {
        let mut body = body(&mut numbers);
        match numbers.below(10) {
            0 | 1 => leave(at, body, &mut numbers, ends),
            2 => malformed(at, &mut numbers, ends),
            3 => {
                body["timeout_ms"] = json!(1 + numbers.below(60));
                whole(at, body, &mut numbers, ends);
            }
            _ => whole(at, body, &mut numbers, ends),
        }
    }
}

fn metrics(at: SocketAddr) -> Vec<(String, f64)> {
    let (status, page) = receive(connect(at, "GET", "/metrics", b""));
    assert_eq!(status, 200);
    let lines = page.lines().filter_map(|line| line.strip_prefix("forerun:"));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// The sum of all lines whose names begin so.
fn sum(at: SocketAddr, prefix: &str) -> f64 {
    metrics(at).iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
}

/// Resident memory in MiB, where the system tells.
fn resident_mib(child: &Child) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok().map(|kib: f64| kib / 1024.0)
}

#[test]
fn bad_clients_cost_no_page_no_memory_and_no_request_its_end() {
    let seconds = std::env::var("FORERUN_STRESS_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |s| s.parse().expect("FORERUN_STRESS_SECONDS: a number"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_forerun"))
        .args(["serve", "--port", "0", "--max-num-seqs", "16", "--max-queued-requests", "60"])
        .args(["--kv-cache-memory-bytes", "4M"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let address = line.strip_prefix("listening on http://").and_then(|l| l.split(' ').next());
    let at: SocketAddr = address.and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{line}"));

    let ends = Ends::default();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut warm_mib = None;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| {
                let ends = &ends;
                scope.spawn(move || client(at, seed + 1, until, ends))
            })
            .collect();
        std::thread::sleep(Duration::from_secs(seconds) / 2);
        warm_mib = resident_mib(&child);
        for client in clients {
            client.join().expect("no client was answered wrongly");
        }
    });
    let began = Instant::now();
    while sum(at, "num_requests_") > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(30), "requests nobody waits for go on");
        std::thread::sleep(Duration::from_millis(5));
    }
    let all = metrics(at);
    let one = |name: &str| all.iter().find(|(n, _)| n == name).map_or(0.0, |(_, value)| *value);
    assert_eq!(one("kv_pages{state=\"held\"}"), 0.0, "{all:?}");
    let ended = sum(at, "request_success_total") + one("request_failures_total");
    assert_eq!(ended, one("requests_received_total"), "each ends exactly once");
    let count = |end: &AtomicU64| end.load(Ordering::Relaxed);
    println!(
        "{seconds} s: {} finished, {} left, {} refused, {} timed out, {} preemptions",
        count(&ends.finished),
        count(&ends.left),
        count(&ends.refused),
        count(&ends.timed_out),
        one("num_preemptions_total")
    );
    assert!(count(&ends.finished) > 0 && count(&ends.left) > 0 && count(&ends.refused) > 0);
    if let (Some(warm), Some(now)) = (warm_mib, resident_mib(&child)) {
        println!("resident: {warm:.1} MiB half-way, {now:.1} MiB at the end");
        assert!(now < warm * 1.1 + 8.0, "memory grew from {warm} MiB to {now} MiB");
    }
    let (status, _) = receive(connect(at, "GET", "/health", b""));
    assert_eq!(status, 200);
    let kill = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

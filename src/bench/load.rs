//! A load generator that speaks to any OpenAI-compatible server.
//!
//! Closed loop: so many clients, each sending its next request when the last is done. Open loop:
//! requests at random moments (Poisson) with a mean rate, whoever is done. The names of the figures
//! are those of `vllm bench serve`, and so are their definitions: TTFT to the first token of any
//! kind, TPOT the mean gap after it, ITL every gap between pieces, E2EL to the end. TTFA is to the
//! first token of the answer, where a server tells thinking apart. Invariant: a request that fails
//! counts in nothing but `failed`.

use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whom to ask what, and how often.
#[derive(Debug, Clone)]
pub struct Load {
    /// `HOST:PORT`.
    pub address: String,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Fields of every request's body but its messages.
    pub body: Value,
    /// The questions, taken in turn.
    pub questions: Vec<String>,
    /// Requests in all.
    pub requests: usize,
    /// Requests in progress at the same time, at most.
    pub concurrency: usize,
    /// Requests a second of an open loop; without it the loop is closed.
    pub rate: Option<f64>,
    /// Limits of a good request.
    pub goodput: Goodput,
    /// How long a server may be silent.
    pub patience: Duration,
}

/// What a request has to keep to count as good, in milliseconds; without a limit everything does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Goodput {
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Mean time of a token after it.
    pub tpot_ms: Option<f64>,
    /// Time to the end.
    pub e2el_ms: Option<f64>,
}

/// One request that was answered. Times in milliseconds.
#[derive(Debug, Clone, Default)]
struct Answered {
    input_tokens: u64,
    output_tokens: u64,
    ttft_ms: f64,
    ttfa_ms: Option<f64>,
    e2el_ms: f64,
    gaps_ms: Vec<f64>,
}

impl Answered {
    fn tpot_ms(&self) -> Option<f64> {
        let more = self.output_tokens.checked_sub(1).filter(|n| *n > 0)?;
        Some((self.e2el_ms - self.ttft_ms) / more as f64)
    }

    fn is_good(&self, limits: &Goodput) -> bool {
        let keeps = |limit: Option<f64>, ms: f64| limit.is_none_or(|limit| ms <= limit);
        keeps(limits.ttft_ms, self.ttft_ms)
            && keeps(limits.tpot_ms, self.tpot_ms().unwrap_or(0.0))
            && keeps(limits.e2el_ms, self.e2el_ms)
    }
}

/// What a load came to. Throughputs are per second.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the names are those of vllm bench serve")]
pub struct LoadReport {
    pub max_concurrency: usize,
    pub request_rate: Option<f64>,
    pub duration: f64,
    pub completed: usize,
    pub failed: usize,
    pub total_input_tokens: u64,
    pub total_output_tokens: u64,
    pub request_throughput: f64,
    pub request_goodput: f64,
    pub output_throughput: f64,
    pub total_token_throughput: f64,
    #[serde(flatten)]
    pub latencies: serde_json::Map<String, Value>,
    /// What the first failed request was told.
    pub first_error: Option<String>,
}

/// Mean, median, standard deviation and 99th percentile, under vLLM's names.
fn spread(name: &str, mut values: Vec<f64>, into: &mut serde_json::Map<String, Value>) {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n.max(1.0);
    let figures = [
        ("mean", mean),
        ("median", percentile(&values, 0.5)),
        ("std", variance.sqrt()),
        ("p99", percentile(&values, 0.99)),
    ];
    for (kind, value) in figures {
        into.insert(format!("{kind}_{name}_ms"), json!(value));
    }
}

/// Between the two nearest ranks, as numpy does; 0 of nothing.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

impl Load {
    /// Sends everything and waits for all of it.
    #[must_use]
    pub fn run(&self) -> LoadReport {
        let next = AtomicUsize::new(0);
        let answered = Mutex::new(vec![]);
        let errors = Mutex::new(vec![]);
        let starts = self.starts();
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency.max(1) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(start) = starts.get(index) else { return };
                        std::thread::sleep(start.saturating_sub(began.elapsed()));
                        match self.ask(index) {
                            Ok(one) => lock(&answered).push(one),
                            Err(error) => lock(&errors).push(error),
                        }
                    }
                });
            }
        });
        let duration = began.elapsed().as_secs_f64();
        let answered = std::mem::take(&mut *lock(&answered));
        let errors = std::mem::take(&mut *lock(&errors));
        self.report(duration, &answered, &errors)
    }

    /// When each request begins, at the earliest.
    fn starts(&self) -> Vec<Duration> {
        let mut at = 0.0;
        // A fixed sequence: two runs send at the same moments.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut gap = |rate: f64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let uniform = ((state >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
            -uniform.ln() / rate
        };
        let mut start = |_| {
            at += self.rate.map_or(0.0, &mut gap);
            Duration::from_secs_f64(at)
        };
        (0..self.requests).map(&mut start).collect()
    }

    fn report(&self, duration: f64, answered: &[Answered], errors: &[String]) -> LoadReport {
        let sum = |count: fn(&Answered) -> u64| answered.iter().map(count).sum::<u64>();
        let (input, output) = (sum(|a| a.input_tokens), sum(|a| a.output_tokens));
        let good = answered.iter().filter(|a| a.is_good(&self.goodput)).count();
        let mut latencies = serde_json::Map::new();
        let all = |time: fn(&Answered) -> Option<f64>| answered.iter().filter_map(time).collect();
        spread("ttft", all(|a| Some(a.ttft_ms)), &mut latencies);
        spread("ttfa", all(|a| a.ttfa_ms), &mut latencies);
        spread("tpot", all(Answered::tpot_ms), &mut latencies);
        spread("itl", answered.iter().flat_map(|a| a.gaps_ms.clone()).collect(), &mut latencies);
        spread("e2el", all(|a| Some(a.e2el_ms)), &mut latencies);
        LoadReport {
            max_concurrency: self.concurrency,
            request_rate: self.rate,
            duration,
            completed: answered.len(),
            failed: errors.len(),
            total_input_tokens: input,
            total_output_tokens: output,
            request_throughput: answered.len() as f64 / duration,
            request_goodput: good as f64 / duration,
            output_throughput: output as f64 / duration,
            total_token_throughput: (input + output) as f64 / duration,
            latencies,
            first_error: errors.first().cloned(),
        }
    }

    /// One streamed request.
    fn ask(&self, index: usize) -> Result<Answered, String> {
        let question = &self.questions[index % self.questions.len()];
        let mut body = self.body.clone();
        body["messages"] = json!([{"role": "user", "content": question}]);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let began = Instant::now();
        let mut reader = self.send("POST", "/v1/chat/completions", &body.to_string())?;
        let mut one = Answered::default();
        let mut last = None;
        let mut line = String::new();
        let done = loop {
            line.clear();
            if reader.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                break false;
            }
            let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                break true;
            }
            let event: Value = serde_json::from_str(data).map_err(|e| e.to_string())?;
            if let Some(error) = event.get("error") {
                return Err(error.to_string());
            }
            if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
                one.input_tokens = usage["prompt_tokens"].as_u64().unwrap_or(0);
                one.output_tokens = usage["completion_tokens"].as_u64().unwrap_or(0);
            }
            let delta = &event["choices"][0]["delta"];
            let text = |name: &str| delta[name].as_str().is_some_and(|text| !text.is_empty());
            let now_ms = began.elapsed().as_secs_f64() * 1e3;
            if text("content") {
                one.ttfa_ms.get_or_insert(now_ms);
            }
            if text("content") || text("reasoning_content") || text("reasoning") {
                match last {
                    None => one.ttft_ms = now_ms,
                    Some(last) => one.gaps_ms.push(now_ms - last),
                }
                last = Some(now_ms);
            }
        };
        one.e2el_ms = began.elapsed().as_secs_f64() * 1e3;
        match (done, last) {
            (false, _) => Err("the reply ended without [DONE]".into()),
            (true, None) => Err("the reply has no text".into()),
            (true, Some(_)) => Ok(one),
        }
    }

    /// The name of the server's first model.
    ///
    /// # Errors
    /// When nobody answers, or names none.
    pub fn first_model(&self) -> Result<String, String> {
        let mut text = String::new();
        self.send("GET", "/v1/models", "")?.read_to_string(&mut text).map_err(|e| e.to_string())?;
        let list: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let name = list["data"][0]["id"].as_str();
        name.map(str::to_owned).ok_or_else(|| "the server names no model".into())
    }

    /// Sends a request over a connection of its own; what comes after the head of a 200.
    fn send(&self, method: &str, path: &str, body: &str) -> Result<BufReader<TcpStream>, String> {
        let at = |error: std::io::Error| format!("{}: {error}", self.address);
        let mut stream = TcpStream::connect(&self.address).map_err(at)?;
        stream.set_read_timeout(Some(self.patience)).map_err(at)?;
        stream.set_nodelay(true).map_err(at)?;
        let key = self.api_key.as_ref();
        let key = key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
        // Version 1.0: the reply ends with the connection and comes in no further pieces.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\n{key}\
             Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + body).as_bytes()).map_err(at)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).map_err(at)?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        loop {
            line.clear();
            if reader.read_line(&mut line).map_err(at)? <= 2 {
                break;
            }
        }
        if status == "200" {
            return Ok(reader);
        }
        let mut error = String::new();
        let _ = reader.read_to_string(&mut error);
        Err(format!("status {status}: {}", error.trim()))
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One line per load.
#[must_use]
pub fn load_table(reports: &[LoadReport]) -> String {
    let mut table = String::from(
        "| clients | done | failed | output tok/s | req/s | mean e2e ms | mean ttft ms | \
         mean ttfa ms | mean tpot ms | p99 itl ms |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for r in reports {
        let ms = |name: &str| r.latencies.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        table += &format!(
            "| {} | {} | {} | {:.1} | {:.2} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |\n",
            r.max_concurrency,
            r.completed,
            r.failed,
            r.output_throughput,
            r.request_throughput,
            ms("mean_e2el_ms"),
            ms("mean_ttft_ms"),
            ms("mean_ttfa_ms"),
            ms("mean_tpot_ms"),
            ms("p99_itl_ms"),
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn load(address: String, requests: usize) -> Load {
        Load {
            address,
            api_key: None,
            body: json!({"model": "m"}),
            questions: vec!["a".into(), "b".into()],
            requests,
            concurrency: 2,
            rate: None,
            goodput: Goodput::default(),
            patience: Duration::from_secs(10),
        }
    }

    /// A server that answers every request with `reply` until it is asked no more.
    fn answers(reply: &'static str, requests: usize) -> (String, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = move || {
            for _ in 0..requests {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).unwrap() > 2 {
                    if let Some(n) = line.strip_prefix("Content-Length: ") {
                        length = n.trim().parse().unwrap();
                    }
                    line.clear();
                }
                reader.read_exact(&mut vec![0; length]).unwrap();
                stream.write_all(reply.as_bytes()).unwrap();
            }
        };
        (address, std::thread::spawn(serve))
    }

    #[test]
    fn thinking_and_answer_and_tokens_are_told_apart() {
        let reply = "HTTP/1.0 200 OK\r\nX: y\r\n\r\n\
            data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
            : keep-alive\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"7\"}}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n\
            data: [DONE]\n\n";
        let (address, server) = answers(reply, 6);
        let report = load(address, 6).run();
        server.join().unwrap();
        assert_eq!((report.completed, report.failed), (6, 0), "{:?}", report.first_error);
        assert_eq!((report.total_input_tokens, report.total_output_tokens), (30, 18));
        let ms = |name: &str| report.latencies[name].as_f64().unwrap();
        assert!(ms("mean_ttft_ms") <= ms("mean_ttfa_ms"));
        assert!(ms("mean_ttfa_ms") <= ms("mean_e2el_ms"));
        assert!((report.output_throughput * report.duration - 18.0).abs() < 1e-6);
    }

    #[test]
    fn what_fails_is_counted_and_told_and_nothing_else() {
        for reply in [
            "HTTP/1.0 429 Too Many\r\n\r\n{\"error\": \"full\"}",
            "HTTP/1.0 200 OK\r\n\r\ndata: {\"error\": {\"message\": \"full\"}}\n\n",
            "HTTP/1.0 200 OK\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"full\"}}]}\n\n",
        ] {
            let (address, server) = answers(reply, 2);
            let report = load(address, 2).run();
            server.join().unwrap();
            assert_eq!((report.completed, report.failed), (0, 2));
            assert_eq!(report.total_output_tokens, 0);
            assert!(report.first_error.is_some());
        }
    }

    #[test]
    fn an_open_loop_keeps_its_mean_rate() {
        let open = Load { rate: Some(50.0), ..load(String::new(), 4000) };
        let starts = open.starts();
        assert!(starts.windows(2).all(|pair| pair[0] <= pair[1]));
        let seconds = starts.last().unwrap().as_secs_f64();
        // 4000 gaps of 20 ms: 80 s, with a standard deviation of 1.3 s.
        assert!((76.0..84.0).contains(&seconds), "{seconds}");
        assert_eq!(load(String::new(), 3).starts(), [Duration::ZERO; 3]);
    }

    #[test]
    fn percentiles_are_numpys() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&values, 0.5), 3.0);
        assert!((percentile(&values, 0.99) - 7.88).abs() < 1e-9);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_good_request_keeps_every_limit() {
        let one =
            Answered { output_tokens: 11, ttft_ms: 50.0, e2el_ms: 150.0, ..Default::default() };
        let limits = |ttft_ms, tpot_ms| Goodput { ttft_ms, tpot_ms, e2el_ms: None };
        assert!(one.is_good(&Goodput::default()) && one.is_good(&limits(Some(50.0), Some(10.0))));
        assert!(!one.is_good(&limits(Some(49.0), None)) && !one.is_good(&limits(None, Some(9.9))));
    }
}

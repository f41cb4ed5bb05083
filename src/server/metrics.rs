//! `GET /metrics`: Prometheus text, under the names vLLM's dashboards know, and nothing that is not
//! measured.
//!
//! Times are the server's own: from submission to the first text a client could see, and to the
//! end. A pair shows whole steps, so the time per output token is the mean over a reply. What the
//! engine is busy with is as of its last step.

use super::Port;
use super::collect::Counts;
use crate::engine::{Load, Reply};
use crate::error::RequestError;
use crate::ids::Role;
use crate::policy::Origin;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Upper bounds of the buckets, in seconds.
const LATENCY_S: [f64; 14] =
    [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Everything counted since the start.
#[derive(Default)]
pub(super) struct Metrics {
    counts: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    received: u64,
    waiting: u64,
    running: u64,
    /// Prompt tokens of both models, and those of them that lay in the prefix cache.
    looked_up: u64,
    cached: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
    wasted_tokens: u64,
    ended: BTreeMap<&'static str, u64>,
    failed: u64,
    steps: [u64; 3],
    first_text: Histogram,
    per_token: Histogram,
    whole: Histogram,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; LATENCY_S.len()],
    count: u64,
    sum_s: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (bucket, bound) in self.buckets.iter_mut().zip(LATENCY_S) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum_s += seconds;
    }
}

/// One request as it goes along; dropping it takes it out of the gauges.
pub(super) struct Observed<'a> {
    metrics: &'a Metrics,
    began: Instant,
    first: Option<Instant>,
    running: bool,
    prompt_tokens: usize,
}

impl Metrics {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Numbers stay numbers, whoever panicked while adding one.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that waits for a place in the engine since `began`.
    pub(super) fn waiting(&self, began: Instant, prompt_tokens: usize) -> Observed<'_> {
        let mut numbers = self.numbers();
        numbers.received += 1;
        numbers.waiting += 1;
        drop(numbers);
        Observed { metrics: self, began, first: None, running: false, prompt_tokens }
    }
}

impl Observed<'_> {
    /// The engine began.
    pub(super) fn started(&mut self) {
        let mut numbers = self.metrics.numbers();
        numbers.waiting -= 1;
        numbers.running += 1;
        self.running = true;
    }

    /// Text went out.
    pub(super) fn delta(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// The request ended as it should.
    pub(super) fn finished(&mut self, finish: &'static str, counts: Counts, reply: &Reply) {
        let whole_s = self.began.elapsed().as_secs_f64();
        let mut numbers = self.metrics.numbers();
        *numbers.ended.entry(finish).or_default() += 1;
        numbers.prompt_tokens += self.prompt_tokens as u64;
        numbers.generated_tokens += u64::from(counts.written());
        numbers.wasted_tokens += u64::from(reply.tokens.wasted);
        let tokens = &reply.tokens;
        numbers.looked_up += u64::from(tokens.prompt_base + tokens.prompt_draft);
        numbers.cached += u64::from(tokens.cached_base + tokens.cached_draft);
        numbers.whole.add(whole_s);
        if let Some(first) = self.first {
            let first_s = (first - self.began).as_secs_f64();
            numbers.first_text.add(first_s);
            if counts.written() > 1 {
                numbers.per_token.add((whole_s - first_s) / f64::from(counts.written() - 1));
            }
        }
        let unscored = reply.steps.iter().filter(|s| s.score.is_none() && s.origin == Origin::Base);
        let steps =
            [u64::from(reply.accepted), u64::from(reply.rewritten), unscored.count() as u64];
        numbers.steps.iter_mut().zip(steps).for_each(|(all, new)| *all += new);
        drop(numbers);
        tracing::info!(
            request = reply.id.0,
            finish,
            prompt_tokens = self.prompt_tokens,
            base_tokens = counts.base,
            draft_tokens = counts.draft,
            wasted_tokens = reply.tokens.wasted,
            seconds = whole_s,
            "replied"
        );
    }

    /// The request ended with an error.
    pub(super) fn failed(&mut self, error: &RequestError) {
        self.metrics.numbers().failed += 1;
        tracing::warn!("a request failed: {error}");
    }
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        let mut numbers = self.metrics.numbers();
        if self.running { numbers.running -= 1 } else { numbers.waiting -= 1 }
    }
}

/// Writes metrics in Prometheus' text format.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP forerun:{name} {help}\n# TYPE forerun:{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "forerun:{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, h: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, count) in LATENCY_S.iter().zip(h.buckets) {
            self.value(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.value(&format!("{name}_bucket"), "{le=\"+Inf\"}", h.count);
        self.value(&format!("{name}_sum"), "", h.sum_s);
        self.value(&format!("{name}_count"), "", h.count);
    }
}

/// What an engine is busy with.
fn add_load(page: &mut Page, load: &Load) {
    let help = "Engine steps since the start.";
    page.one("engine_steps_total", "counter", help, load.steps);
    let help = "How often a request gave its place back for want of pages or priority.";
    page.one("num_preemptions_total", "counter", help, load.preemptions);
    let help = "Share of the KV pool that holds a model's pages, cached ones included.";
    page.head("kv_cache_usage_perc", "gauge", help);
    for role in Role::ALL {
        let share = load.used_pages[role.index()] as f64 / load.pages.max(1) as f64;
        page.value("kv_cache_usage_perc", &format!("{{model=\"{role}\"}}"), share);
    }
    page.head("kv_pages", "gauge", "Pages of the KV pool; cached ones are free when needed.");
    let held = load.pages - load.free_pages - load.evictable_pages;
    let states = [("free", load.free_pages), ("cached", load.evictable_pages), ("held", held)];
    for (state, pages) in states {
        page.value("kv_pages", &format!("{{state=\"{state}\"}}"), pages);
    }
}

fn page(n: &Numbers, load: Option<&Load>) -> String {
    let mut page = Page(String::new());
    page.one("num_requests_running", "gauge", "Replies the engine works on.", n.running);
    page.one("num_requests_waiting", "gauge", "Replies that wait for a place.", n.waiting);
    let help = "Replies asked for that were not refused at once.";
    page.one("requests_received_total", "counter", help, n.received);
    page.one("prompt_tokens_total", "counter", "Prompt tokens of ended replies.", n.prompt_tokens);
    let help = "Tokens the models wrote into ended replies.";
    page.one("generation_tokens_total", "counter", help, n.generated_tokens);
    let help = "Tokens of drafted steps that were rejected.";
    page.one("draft_tokens_wasted_total", "counter", help, n.wasted_tokens);
    page.one("request_failures_total", "counter", "Replies that ended with an error.", n.failed);
    page.head("request_success_total", "counter", "Replies by how they ended otherwise.");
    for (reason, count) in &n.ended {
        let labels = format!("{{finished_reason=\"{reason}\"}}");
        page.value("request_success_total", &labels, count);
    }
    let help = "Prompt tokens of ended replies, on both models.";
    page.one("prefix_cache_queries_total", "counter", help, n.looked_up);
    let help = "Of these, tokens that lay in the prefix cache.";
    page.one("prefix_cache_hits_total", "counter", help, n.cached);
    let help =
        "Reasoning steps: drafted and accepted, drafted and rewritten, or unasked by the base.";
    page.head("reason_steps_total", "counter", help);
    for (outcome, count) in ["accepted", "rejected", "base"].iter().zip(n.steps) {
        page.value("reason_steps_total", &format!("{{outcome=\"{outcome}\"}}"), count);
    }
    let help = "From submission to the first text.";
    page.histogram("time_to_first_token_seconds", help, &n.first_text);
    let help = "Mean of a reply, after its first text.";
    page.histogram("request_time_per_output_token_seconds", help, &n.per_token);
    page.histogram("e2e_request_latency_seconds", "From submission to the end.", &n.whole);
    if let Some(load) = load {
        add_load(&mut page, load);
    }
    page.0
}

/// The route.
pub(super) async fn show(State(port): State<Port>) -> Response {
    let load = port.shared.engine.get().map(|engine| engine.load());
    let text = page(&port.shared.metrics.numbers(), load.as_ref());
    let mut response = Response::new(text.into());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_pool_add_up() {
        let load = Load {
            pages: 10,
            free_pages: 3,
            evictable_pages: 2,
            used_pages: [3, 4],
            ..Load::default()
        };
        let text = page(&Numbers::default(), Some(&load));
        for line in ["kv_pages{state=\"held\"} 5\n", "kv_cache_usage_perc{model=\"base\"} 0.4\n"] {
            assert!(text.contains(&format!("forerun:{line}")), "{line} in {text}");
        }
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let mut numbers = Numbers::default();
        [0.0005, 0.03, 999.0].iter().for_each(|s| numbers.whole.add(*s));
        let text = page(&numbers, None);
        let bucket = |le: &str| format!("e2e_request_latency_seconds_bucket{{le=\"{le}\"}}");
        for (le, count) in [("0.001", 1), ("0.02", 1), ("0.05", 2), ("120", 2), ("+Inf", 3)] {
            let line = format!("forerun:{} {count}\n", bucket(le));
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}

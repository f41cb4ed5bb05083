//! Sampling and chain acceptance against [`crate::sample`]: the same tokens, not nearly the same.

use super::{ARCHS, Gpu, SEEDS, noise};
use crate::device::cuda::layout::{Address, Batch, Counts, SampleOut};
use crate::device::cuda::ops::accept::{AcceptBuffers, AcceptOut, Chain, launch_accept};
use crate::device::cuda::ops::sample::{
    Cut, SCRATCH_BYTES, SampleBuffers, SampleSource, SampleTable, launch_sample,
};
use crate::ids::{BranchId, Role, TokenId};
use crate::sample::{
    ChainUniforms, Distribution, History, Key, Purpose, SamplingParams, Scratch, accept_chain,
    process, sample,
};

/// One row of logits and how to draw from it.
#[derive(Clone)]
struct Request {
    logits: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<TokenId>,
    generated: Vec<TokenId>,
    key: Key,
    allowed: Option<Vec<u32>>,
}

impl Request {
    fn new(logits: Vec<f32>, params: &SamplingParams, position: u32) -> Self {
        let key = Key {
            seed: 0x1234_5678_9abc,
            branch: BranchId(3),
            position,
            role: Role::Base,
            purpose: Purpose::Draw,
        };
        let params = params.clone();
        Self { logits, params, prompt: vec![], generated: vec![], key, allowed: None }
    }

    fn history(&self) -> History<'_> {
        History { prompt: &self.prompt, generated: &self.generated }
    }

    /// What the CPU draws; a forbidden token has a logit of minus infinity.
    fn expected(&self) -> SampleOut {
        let draw = |logits: &[f32]| {
            sample(logits, &self.params, &self.history(), &self.key, &mut Scratch::default())
        };
        let raw = draw(&self.logits);
        let id = self.allowed.as_ref().map_or(raw.id, |_| draw(&self.masked()).id);
        let stats = crate::sample::stats(&self.logits);
        SampleOut {
            id: id.0 as i32,
            logprob: stats.logprob_of(&self.logits, id),
            entropy_nats: raw.entropy_nats,
            top1_prob: raw.top1_prob,
        }
    }

    fn masked(&self) -> Vec<f32> {
        let Some(words) = &self.allowed else { return self.logits.clone() };
        let bit = |id: usize| words[id / 32] >> (id % 32) & 1 == 1;
        let forbid = |(id, logit): (usize, &f32)| if bit(id) { *logit } else { f32::NEG_INFINITY };
        self.logits.iter().enumerate().map(forbid).collect()
    }

    fn distribution(&self) -> Distribution<'static> {
        let mut scratch = Scratch::default();
        process(&self.masked(), &self.params, &self.history(), &mut scratch).into_owned()
    }
}

/// The draws of some requests, and where the kernel left what accepting needs.
struct Drawn {
    results: Vec<SampleOut>,
    source: SampleSource,
    results_at: Address,
    cuts_at: Address,
    scratch_at: Address,
}

fn draw_all(gpu: &Gpu, requests: &[Request]) -> Drawn {
    // Rows that look at their first ids alone have logits behind them that would win.
    let vocab = requests.iter().map(|r| r.logits.len()).max().unwrap();
    let mut table = SampleTable::default();
    let mut logits = Vec::new();
    for (row, r) in requests.iter().enumerate() {
        table.push(row, &r.params, &r.history(), &r.key, r.logits.len(), r.allowed.as_deref());
        logits.extend_from_slice(&r.logits);
        logits.resize((row + 1) * vocab, f32::MAX);
    }
    let count = requests.len();
    let counts = Counts { samples: count as i32, ..Default::default() };
    let batch = Batch { counts: gpu.upload(&[counts], "counts"), ..Default::default() };
    let source = SampleSource {
        samples: gpu.upload(&table.samples, "samples"),
        edits: gpu.upload(&table.edits, "edits"),
        allowed: gpu.upload(&table.allowed, "allowed"),
        logits: gpu.upload(&logits, "logits"),
        vocab: vocab as i32,
        reserved: 0,
    };
    let buffers = SampleBuffers {
        batch,
        source,
        scratch: gpu.unwritten(count * SCRATCH_BYTES, "scratch"),
        results: gpu.unwritten(count * size_of::<SampleOut>(), "results"),
        cuts: gpu.unwritten(count * size_of::<Cut>(), "cuts"),
    };
    for launch in launch_sample(&buffers, count as u32 + 2) {
        assert_eq!(gpu.run(&launch).local_bytes, 0);
    }
    Drawn {
        results: gpu.read(buffers.results, count),
        source,
        results_at: buffers.results,
        cuts_at: buffers.cuts,
        scratch_at: buffers.scratch,
    }
}

#[track_caller]
fn check(requests: &[Request]) {
    let gpu = Gpu::new(&["sample"], "compute_80", 0);
    for (i, (got, request)) in draw_all(&gpu, requests).results.iter().zip(requests).enumerate() {
        let expected = request.expected();
        let near = |a: f32, b: f32| a == b || (a - b).abs() <= 1e-5;
        let what = format!("request {i} of {} ids: {:?}", request.logits.len(), request.params);
        assert_eq!(got.id, expected.id, "{what}");
        assert!(near(got.logprob, expected.logprob), "{what}: {got:?} for {expected:?}");
        assert!(near(got.entropy_nats, expected.entropy_nats), "{what}: {got:?}, {expected:?}");
        assert!(near(got.top1_prob, expected.top1_prob), "{what}: {got:?} for {expected:?}");
    }
}

/// Logits as a language model's: a few far above the rest. `steps` above 0 rounds them to so many
/// a unit, which makes ties.
fn logits(seed: u32, vocab: usize, spread: f32, steps: f32) -> Vec<f32> {
    let shape = |x: f32| if x.abs() > 0.98 { 3.0 * x } else { x };
    let round = |x: f32| if steps > 0.0 { (x * steps).round() / steps } else { x };
    noise(seed, vocab).into_iter().map(|x| round(spread * shape(x))).collect()
}

fn sampled() -> SamplingParams {
    SamplingParams { temperature: 0.8, ..SamplingParams::greedy() }
}

/// Parameters that reach every rule, alone and together.
fn every_rule() -> Vec<SamplingParams> {
    let s = sampled;
    vec![
        SamplingParams::greedy(),
        s(),
        SamplingParams { temperature: 0.01, ..s() },
        SamplingParams { temperature: 30.0, ..s() },
        SamplingParams { top_k: 1, ..s() },
        SamplingParams { top_k: 7, ..s() },
        SamplingParams { top_k: 1500, ..s() },
        SamplingParams { top_p: 0.95, ..s() },
        SamplingParams { top_p: 1e-6, ..s() },
        SamplingParams { top_p: 0.9999, temperature: 2.0, ..s() },
        SamplingParams { min_p: 0.1, ..s() },
        SamplingParams { min_p: 1.0, ..s() },
        SamplingParams { top_k: 20, top_p: 0.8, min_p: 0.02, temperature: 1.3, ..s() },
    ]
}

#[test]
fn every_rule_draws_the_tokens_of_the_cpu() {
    for vocab in [2, 31, 33, 576, 1025, 5000] {
        let rules = every_rule();
        let requests: Vec<_> = (0..4 * rules.len())
            .map(|i| {
                let spread = [2.0, 8.0, 20.0, 0.1][i % 4];
                let logits = logits(i as u32, vocab, spread, 0.0);
                Request::new(logits, &rules[i / 4], i as u32)
            })
            .collect();
        check(&requests);
    }
}

#[test]
fn a_row_is_drawn_from_its_first_ids_alone() {
    let rules = every_rule();
    let requests: Vec<_> = (0..3 * rules.len())
        .map(|i| {
            let ids = [256, 5000, 1024][i % 3];
            Request::new(logits(90 + i as u32, ids, 8.0, 0.0), &rules[i / 3], i as u32)
        })
        .collect();
    check(&requests);
}

#[test]
fn ties_at_every_boundary_go_to_the_lower_ids() {
    for (vocab, steps) in [(40, 1.0), (576, 1.0), (3000, 4.0), (3000, 0.2)] {
        let rules = every_rule();
        let requests: Vec<_> = (0..3 * rules.len())
            .map(|i| {
                let logits = logits(50 + i as u32, vocab, 4.0, steps);
                Request::new(logits, &rules[i / 3], i as u32)
            })
            .collect();
        check(&requests);
    }
}

#[test]
fn rows_with_nothing_finite_and_rows_with_something_infinite_are_no_exception() {
    let nan = f32::NAN;
    let (minus, plus) = (f32::NEG_INFINITY, f32::INFINITY);
    let rows: [&[f32]; 7] = [
        &[minus; 5],
        &[nan; 5],
        &[nan, 1.0, minus, 1.0, 0.5],
        &[1.0, plus, 3.0, plus, f32::MAX],
        &[-0.0, 0.0, -0.0, 0.0, -1e-30],
        &[f32::MIN, f32::MAX, 0.0, f32::MIN, 1.0],
        &[-1e4, -1e4, -2e4, -1e4, minus],
    ];
    for params in every_rule() {
        let requests: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| Request::new(row.to_vec(), &params, i as u32))
            .collect();
        check(&requests);
    }
}

#[test]
fn bias_penalties_and_bitmasks_change_the_row_as_on_the_cpu() {
    let vocab = 40_000;
    let ids = |seed: u32, count: usize| -> Vec<TokenId> {
        let id = |x: f32| TokenId((x.abs() * 50.0 * (1.0 + x.abs() * 900.0)) as u32);
        noise(seed, count).into_iter().map(id).collect()
    };
    let edits = [
        SamplingParams { logit_bias: vec![(TokenId(7), 9.0), (TokenId(32_775), 8.5)], ..sampled() },
        SamplingParams { repetition_penalty: 1.3, ..sampled() },
        SamplingParams { presence_penalty: 1.5, frequency_penalty: -0.2, ..sampled() },
        SamplingParams { frequency_penalty: 0.7, repetition_penalty: 0.8, ..sampled() },
        SamplingParams {
            logit_bias: vec![(TokenId(3), -50.0), (TokenId(4), 20.0)],
            repetition_penalty: 1.1,
            presence_penalty: 0.4,
            frequency_penalty: 0.3,
            top_k: 50,
            top_p: 0.9,
            ..sampled()
        },
    ];
    let mut requests = Vec::new();
    for (i, params) in edits.iter().enumerate() {
        for greedy in [false, true] {
            for masked in [false, true] {
                let seed = 1000 + requests.len() as u32;
                let mut r = Request::new(logits(seed, vocab, 6.0, 0.0), params, seed);
                if greedy {
                    r.params.temperature = 0.0;
                }
                (r.prompt, r.generated) = (ids(seed, 300), ids(seed + 99, 40 * i));
                r.allowed = masked.then(|| {
                    (0..vocab.div_ceil(32) as u32).map(|w| 0x8421_1248_u32.rotate_left(w)).collect()
                });
                requests.push(r);
            }
        }
    }
    // A mask alone, a mask of one token, and one of none.
    for word in [u32::MAX, 1 << 31, 0] {
        let mut r = Request::new(logits(5, vocab, 3.0, 0.0), &sampled(), 5);
        let mut words = vec![0; vocab.div_ceil(32)];
        words[77] = word;
        r.allowed = Some(words);
        requests.push(r);
    }
    check(&requests);
}

#[test]
fn a_whole_vocabulary_is_drawn_from_without_a_sort() {
    let params = [
        SamplingParams { top_p: 0.95, temperature: 0.6, ..sampled() },
        SamplingParams { top_k: 40, ..sampled() },
        SamplingParams { temperature: 1.0, ..sampled() },
    ];
    let requests: Vec<_> = params
        .iter()
        .enumerate()
        .map(|(i, p)| Request::new(logits(i as u32, 151_936, 12.0, 0.0), p, i as u32))
        .collect();
    check(&requests);
}

#[test]
fn interleaving_and_architecture_draw_the_same_tokens() {
    let requests: Vec<_> = every_rule()
        .iter()
        .enumerate()
        .map(|(i, p)| Request::new(logits(i as u32, 700, 5.0, 3.0), p, i as u32))
        .collect();
    let draw = |arch: &str, seed| draw_all(&Gpu::new(&["sample"], arch, seed), &requests).results;
    let first = draw("compute_80", 0);
    for arch in ARCHS {
        for seed in SEEDS {
            assert_eq!(draw(arch, seed), first, "{arch}, seed {seed}");
        }
    }
}

/// One window: the draft's rows, and the base's with one more.
struct Window {
    base: Vec<Request>,
    draft: Vec<Request>,
}

/// A window of `k` tokens at `position`. The draft's logits are the base's plus noise of size
/// `apart`.
fn window(k: usize, position: u32, vocab: usize, params: &SamplingParams, apart: f32) -> Window {
    let history: Vec<_> = (0..30).map(|i| TokenId(i * 5)).collect();
    let request = |i: usize, role: Role| {
        let seed = position * 131 + i as u32;
        let mut row = logits(seed, vocab, 4.0, 0.0);
        if role == Role::Draft {
            let other = noise(seed + 7777, vocab);
            row.iter_mut().zip(other).for_each(|(x, other)| *x += apart * other);
        }
        let mut request = Request::new(row, params, position + i as u32);
        request.key.role = role;
        request.generated.clone_from(&history);
        request
    };
    Window {
        base: (0..=k).map(|i| request(i, Role::Base)).collect(),
        draft: (0..k).map(|i| request(i, Role::Draft)).collect(),
    }
}

/// What the CPU makes of a window whose drafted tokens are known.
fn expected(window: &Window, tokens: &[TokenId]) -> AcceptOut {
    let of =
        |requests: &[Request]| -> Vec<_> { requests.iter().map(Request::distribution).collect() };
    let uniforms = ChainUniforms::from_key(&window.base[0].key, tokens.len());
    let accepted = accept_chain(tokens, &of(&window.base), &of(&window.draft), &uniforms);
    AcceptOut { prefix: accepted.prefix as i32, next: accepted.next.0 as i32 }
}

/// Drafts, verifies and accepts on the device; the drafted tokens and what is left of them.
fn accept(arch: &str, seed: u64, windows: &[Window]) -> (Vec<Vec<TokenId>>, Vec<AcceptOut>) {
    let gpu = Gpu::new(&["sample", "accept"], arch, seed);
    let all = |of: fn(&Window) -> &Vec<Request>| -> Vec<Request> {
        windows.iter().flat_map(|w| of(w).clone()).collect()
    };
    let (draft, base) = (draw_all(&gpu, &all(|w| &w.draft)), draw_all(&gpu, &all(|w| &w.base)));
    let mut chains = Vec::new();
    let mut tokens = Vec::new();
    let (mut first_base, mut first_draft) = (0, 0);
    for w in windows {
        let k = w.draft.len();
        let drawn = &draft.results[first_draft..first_draft + k];
        tokens.push(drawn.iter().map(|r| TokenId(r.id as u32)).collect::<Vec<_>>());
        chains.push(Chain {
            drafted: k as i32,
            first_token: first_draft as i32,
            first_base: first_base as i32,
            first_draft: first_draft as i32,
        });
        (first_base, first_draft) = (first_base + k + 1, first_draft + k);
    }
    let results = gpu.unwritten(windows.len() * size_of::<AcceptOut>(), "accepted");
    let buffers = AcceptBuffers {
        count: gpu.upload(&[windows.len() as i32], "chain count"),
        chains: gpu.upload(&chains, "chains"),
        tokens: gpu.upload(&tokens.concat(), "drafted"),
        base: base.source,
        draft: draft.source,
        base_cuts: base.cuts_at,
        draft_cuts: draft.cuts_at,
        base_scratch: base.scratch_at,
        base_results: base.results_at,
        results,
    };
    let counters = gpu.run(&launch_accept(&buffers, windows.len() as u32 + 1));
    assert_eq!(counters.local_bytes, 0);
    (tokens, gpu.read(results, windows.len()))
}

#[test]
fn windows_are_accepted_as_on_the_cpu() {
    let rules = [
        SamplingParams::greedy(),
        sampled(),
        SamplingParams { top_p: 0.9, ..sampled() },
        SamplingParams { top_k: 5, temperature: 2.0, ..sampled() },
        SamplingParams { repetition_penalty: 1.4, min_p: 0.05, ..sampled() },
    ];
    let mut lengths = [0; 8];
    for (r, params) in rules.iter().enumerate() {
        let windows: Vec<_> = (0..24)
            .map(|i| {
                let apart = [0.0, 0.3, 1.0, 6.0][i % 4];
                window(i % 6, (r * 1000 + i * 10) as u32, 300, params, apart)
            })
            .collect();
        let (tokens, accepted) = accept("compute_80", 0, &windows);
        for (i, ((w, tokens), got)) in windows.iter().zip(&tokens).zip(&accepted).enumerate() {
            assert_eq!(*got, expected(w, tokens), "window {i}, {tokens:?} under {params:?}");
            lengths[got.prefix as usize] += 1;
        }
    }
    assert!(lengths[..6].iter().all(|n| *n > 0), "not every length was met: {lengths:?}");
}

#[test]
fn looked_up_drafts_are_points() {
    let params = SamplingParams { temperature: 1.5, ..sampled() };
    let windows: Vec<_> = (0..20)
        .map(|i| {
            let mut window = window(3, i * 10, 50, &params, 0.5);
            window.draft.iter_mut().for_each(|r| r.params = SamplingParams::greedy());
            window
        })
        .collect();
    let (tokens, accepted) = accept("compute_80", 0, &windows);
    for ((w, tokens), got) in windows.iter().zip(&tokens).zip(&accepted) {
        assert_eq!(*got, expected(w, tokens));
    }
}

#[test]
fn interleaving_and_architecture_accept_the_same_tokens() {
    let windows: Vec<_> = (0..4).map(|i| window(4, i * 10, 200, &sampled(), 0.8)).collect();
    let first = accept("compute_80", 0, &windows);
    for arch in ARCHS {
        for seed in SEEDS {
            assert_eq!(accept(arch, seed, &windows), first, "{arch}, seed {seed}");
        }
    }
}

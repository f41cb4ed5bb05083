//! What the host does in an engine step: scheduler, policies and batch assembly, everything but the
//! models. `cargo bench --bench host`.
//!
//! The whole engine runs on a device that computes nothing and answers at once: every argmax is a
//! token picked by position, every scoring a little better or worse than the threshold. So a step
//! is planned, assembled, staged, read and told to listeners as always, for 64 requests at once.

use criterion::{Criterion, criterion_group, criterion_main};
use forerun::device::{
    Device, DeviceInfo, Element, GateUpWeights, HeadKind, HeadResult, HeadWeights, KvType, Linear,
    MatrixView, PageCopy, PassLimits, QkvWeights, RaggedBatch, Results, Shape,
};
use forerun::engine::{
    Completion, Engine, EngineOptions, Events, Pair, PolicyOptions, Prompt, Request,
};
use forerun::error::DeviceError;
use forerun::ids::{Role, TokenId};
use forerun::policy::PolicyKind;
use forerun::sample::{Sampled, SamplingOverrides};
use std::time::{Duration, Instant};

const REQUESTS: usize = 64;

/// Sends the request of this number.
type Ask<'a> = dyn Fn(&Engine, u64) -> Events + 'a;

/// Ordinary tokens, and every so often the one that ends a step.
struct Idle {
    texts: Vec<TokenId>,
    delimiter: TokenId,
}

type Done = Result<(), DeviceError>;

impl Idle {
    fn token(&self, batch: &RaggedBatch, row: usize) -> TokenId {
        let position = batch.positions[row] as usize;
        if position % 24 == 23 { self.delimiter } else { self.texts[position % self.texts.len()] }
    }
}

impl Device for Idle {
    type Buffer = ();
    type Matrix = ();
    type GateUp = ();
    type Vector = ();
    type Stream = ();
    type Batch = RaggedBatch;
    type Results = ();

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: "idle", name: "nothing".into(), units: 1, memory_bytes: 1 << 34 }
    }
    fn kv_type(&self) -> KvType {
        KvType::Bf16
    }
    fn buffer(&self, _: usize, _: Element, _: &str) -> Done {
        Ok(())
    }
    fn matrix(&self, _: MatrixView<'_>) -> Done {
        Ok(())
    }
    fn gate_up_matrices(&self, _: MatrixView<'_>, _: MatrixView<'_>) -> Done {
        Ok(())
    }
    fn vector(&self, _: &[f32]) -> Done {
        Ok(())
    }
    fn results(&self, _: &PassLimits) -> Done {
        Ok(())
    }
    fn stream(&self, _: Role, _: &Shape, _: &PassLimits) -> Done {
        Ok(())
    }
    fn seal(&self) {}
    fn stage(&self, (): &(), batch: RaggedBatch) -> Result<RaggedBatch, DeviceError> {
        Ok(batch)
    }
    fn embed(&self, (): &(), (): &(), _: &RaggedBatch, (): &(), (): &mut ()) -> Done {
        Ok(())
    }
    fn qkv(
        &self,
        (): &(),
        _: &Shape,
        _: usize,
        _: &QkvWeights<Self>,
        (): &(),
        _: &RaggedBatch,
        (): &(),
        (): &mut (),
        (): &mut (),
    ) -> Done {
        Ok(())
    }
    fn keep_rows(&self, (): &(), _: &Shape, _: &RaggedBatch, (): &mut (), (): &mut ()) -> Done {
        Ok(())
    }
    fn attention(
        &self,
        (): &(),
        _: &Shape,
        _: usize,
        _: &RaggedBatch,
        (): &(),
        (): &(),
        (): &mut (),
    ) -> Done {
        Ok(())
    }
    fn project(
        &self,
        (): &(),
        _: &Linear<Self>,
        _: &RaggedBatch,
        (): &(),
        (): &(),
        (): &mut (),
    ) -> Done {
        Ok(())
    }
    fn gate_up(
        &self,
        (): &(),
        _: &Shape,
        _: &GateUpWeights<Self>,
        _: &RaggedBatch,
        (): &(),
        (): &mut (),
    ) -> Done {
        Ok(())
    }
    fn head(
        &self,
        (): &(),
        _: &Shape,
        _: &HeadWeights<'_, Self>,
        _: &RaggedBatch,
        (): &(),
        (): &mut (),
        (): &mut (),
    ) -> Done {
        Ok(())
    }
    fn sample(&self, (): &(), _: &RaggedBatch, (): &(), (): &mut ()) -> Done {
        Ok(())
    }
    fn feed(&self, (): &(), _: &RaggedBatch, (): &(), _: &mut RaggedBatch) -> Done {
        Ok(())
    }
    fn copy_pages(&self, (): &(), _: &Shape, _: &[PageCopy], (): &mut ()) -> Done {
        Ok(())
    }
    fn collect(
        &self,
        (): &(),
        batches: &[RaggedBatch],
        _: &mut [()],
    ) -> Result<Vec<Results>, DeviceError> {
        let one = |batch: &RaggedBatch| {
            let result = |head: &forerun::device::HeadRow| match &head.kind {
                HeadKind::Argmax => {
                    HeadResult::Argmax { id: self.token(batch, head.row), logit: 1.0 }
                }
                HeadKind::Labels(labels) => {
                    // Eight of ten steps are accepted.
                    let best = if batch.positions[head.row] % 10 < 8 { 9 } else { 1 };
                    let mut probs = vec![0.0; labels.len()];
                    probs[best] = 1.0;
                    HeadResult::Labels(probs)
                }
                HeadKind::LogProb(_) => HeadResult::LogProb(-1.0),
                HeadKind::Full => HeadResult::Full(0),
            };
            let heads = batch.heads.iter().map(result).collect();
            let full: Vec<_> = batch.heads.iter().filter(|h| h.kind == HeadKind::Full).collect();
            let sampled = |row: usize| Sampled {
                id: self.token(batch, full[row].row),
                logprob: -1.0,
                entropy_nats: 1.0,
                top1_prob: 0.5,
            };
            let samples = batch.samples.iter().map(|s| sampled(s.logits_row)).collect();
            Results { heads, samples, non_finite_row: None }
        };
        Ok(batches.iter().map(one).collect())
    }
    fn read(&self, (): &(), (): &(), _: usize, count: usize) -> Result<Vec<f32>, DeviceError> {
        Ok(vec![0.0; count])
    }
    fn first_non_finite(
        &self,
        (): &(),
        (): &(),
        _: usize,
        _: usize,
    ) -> Result<Option<usize>, DeviceError> {
        Ok(None)
    }
}

fn engine() -> Engine {
    let tiny = Engine::start(EngineOptions::new(Pair::tiny())).expect("the pair starts");
    let tokenizer = tiny.tokenizer(Role::Base).expect("a base");
    let id = |text: &str| *tokenizer.encode(text).expect("ids").last().expect("a token");
    let texts = [" apples", " and", " 3", " +", " 4", " =", " 7"].map(id).to_vec();
    let device = Idle { texts, delimiter: id("x\n\n") };
    let options = EngineOptions {
        sequences_max: REQUESTS,
        kv_cache_memory_bytes: Some(1 << 30),
        ..EngineOptions::new(Pair::tiny())
    };
    Engine::start_on(device, options).expect("it starts")
}

/// Keeps the engine busy with as many requests as it works on at once.
struct Busy<'a> {
    engine: &'a Engine,
    ask: &'a Ask<'a>,
    asked: u64,
    running: Vec<Events>,
}

impl Busy<'_> {
    fn fill(&mut self) {
        let load = self.engine.load();
        for _ in load.running + load.waiting..REQUESTS {
            self.asked += 1;
            self.running.push((self.ask)(self.engine, self.asked));
        }
        let drop = self.running.len().saturating_sub(4 * REQUESTS);
        self.running.drain(..drop);
    }

    /// Time of `steps` engine steps.
    fn steps(&mut self, steps: u64) -> Duration {
        self.fill();
        // Some end while others begin: all at once is not to be waited for.
        while self.engine.load().running < REQUESTS * 3 / 4 {
            self.fill();
            std::thread::sleep(Duration::from_micros(100));
        }
        let (from, began) = (self.engine.load().steps, Instant::now());
        loop {
            let done = self.engine.load().steps - from;
            if done >= steps {
                return began.elapsed().mul_f64(steps as f64 / done as f64);
            }
            self.fill();
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn steps(criterion: &mut Criterion) {
    let engine = engine();
    let mut group = criterion.benchmark_group("engine step, 64 requests");
    let question = "Tom has 3 apples and buys 4 more. How many apples does Tom have?";
    let pair = |engine: &Engine, _| {
        let options = PolicyOptions { stop_on_repeat: Some(false), ..PolicyOptions::default() };
        engine.submit(Request { options, ..Request::ask(question) }).expect("room")
    };
    let base = |engine: &Engine, _| {
        let request = Request { policy: PolicyKind::Base, ..Request::ask(question) };
        engine.submit(request).expect("room")
    };
    let sampled = |engine: &Engine, seed| {
        let sampling =
            SamplingOverrides { temperature: Some(0.6), seed: Some(seed), ..Default::default() };
        let completion = Completion::new(Role::Base, Prompt::Text(question.into()));
        engine.complete(&Completion { sampling, ..completion }).expect("room")
    };
    let kinds: [(&str, &Ask<'_>); 3] =
        [("specreason", &pair), ("base", &base), ("completion, sampled", &sampled)];
    for (name, ask) in kinds {
        let mut busy = Busy { engine: &engine, ask, asked: 0, running: vec![] };
        group.bench_function(name, |bencher| bencher.iter_custom(|n| busy.steps(n)));
        drop(busy);
        while engine.load().running + engine.load().waiting > 0 {
            std::thread::yield_now();
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);

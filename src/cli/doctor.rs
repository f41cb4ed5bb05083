//! `forerun doctor`: what drafting, scoring and verifying cost on this machine, and what pays.
//!
//! A few prompts run under four policies; their phases give the costs a token, a score and a
//! verified window, and their decisions the acceptance. [`crate::bench::cost`] makes predictions of
//! these. Measured and modelled figures are labelled as such.

use super::args::{EngineArgs, PairArgs};
use super::ui;
use crate::bench::cost::{Costs, Lookup, public_runs, tokens_per_pass};
use crate::engine::{Engine, PolicyOptions, Reply, Request};
use crate::eval::problem;
use crate::policy::{PolicyKind, Proposer, WindowSize};
use crate::sample::SamplingOverrides;
use crate::telemetry::Phase;
use anyhow::{Result, bail};
use clap::Args;
use clap::builder::{FalseyValueParser, RangedU64ValueParser};
use std::io::Write;
use std::path::PathBuf;

/// Tokens proposed at a time while verifying is measured.
const WINDOW: u32 = 4;
/// A policy that gains less than this is not worth a second model.
const WORTH: f64 = 1.05;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Prompts: JSON lines as `eval` takes them [default: an example the pair can answer]
    #[arg(long, value_name = "FILE.jsonl", env = "FORERUN_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// Prompts to run
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(env = "FORERUN_LIMIT", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: usize,
    /// Tokens each reply may have
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    #[arg(env = "FORERUN_TOKENS_MAX", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    tokens_max: u32,
    /// Only print the cost model for the published runs of SpecReason; no model is loaded
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_PUBLIC_RUNS", hide_env_values = true)]
    public_runs: bool,
    /// Measure on the software GPU too, whose times say nothing about a GPU
    #[arg(long, env = "FORERUN_EMULATED_TIMES", hide_env_values = true)]
    emulated_times: bool,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Replies to all prompts under one policy.
struct Measured(Vec<Reply>);

impl Measured {
    fn sum(&self, of: impl Fn(&Reply) -> f64) -> f64 {
        self.0.iter().map(of).sum()
    }

    /// Milliseconds and passes of some phases.
    fn cost(&self, phases: &[Phase]) -> (f64, f64) {
        let all = || self.0.iter().flat_map(|r| phases.iter().map(|p| r.phase(*p)));
        (all().map(|c| c.ms).sum(), all().map(|c| f64::from(c.passes)).sum())
    }

    fn written(&self) -> f64 {
        self.sum(|r| f64::from(r.tokens.draft + r.tokens.base))
    }

    /// Milliseconds from submission to end, a kept token.
    fn token_ms(&self) -> f64 {
        self.sum(|r| r.total_ms) / self.written().max(1.0)
    }

    fn agreement(&self) -> (f64, f64) {
        (self.sum(|r| f64::from(r.tokens.proposed)), self.sum(|r| f64::from(r.tokens.matched)))
    }
}

impl DoctorArgs {
    /// Measures, predicts, and says what to do.
    pub(super) fn run(self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.public_runs {
            return public(&mut out);
        }
        let pair = self.pair.resolve()?;
        if pair.draft.is_none() {
            bail!("doctor compares two models: name a pair, or add --draft M");
        }
        let prompts = match &self.data {
            Some(path) => {
                let problems = problem::read(path, 0, Some(self.limit))?;
                problems.into_iter().map(|p| p.question).collect()
            }
            None => vec![pair.settings.example.to_owned()],
        };
        let mut options = self.engine.options(pair)?;
        // Costs are told apart best where nothing overlaps.
        options.draft_ahead = Some(0);
        options.run_ahead = Some(1);
        let engine = Engine::start(options)?;
        ui::check_times(engine.device(), self.emulated_times)?;
        let run = |policy, proposer| self.measure(&engine, &prompts, policy, proposer);
        // What is compiled, paged in or captured on first use is.
        run(PolicyKind::SpecReason, None)?;
        let base = run(PolicyKind::Base, None)?;
        let spec = run(PolicyKind::SpecReason, None)?;
        let draft = run(PolicyKind::SpecDecode, Some(Proposer::Draft))?;
        let ngram = run(PolicyKind::SpecDecode, Some(Proposer::Ngram))?;
        let costs = costs(&base, &spec, &draft, &ngram);

        writeln!(out, "measured on {} ({} prompts)\n", engine.device().name, prompts.len())?;
        for (what, value) in [
            ("base writes a token", format!("{:.2} ms", costs.base_ms)),
            ("draft writes a token", format!("{:.2} ms", costs.draft_ms)),
            ("draft proposes a token", format!("{:.2} ms", costs.propose_ms)),
            ("base scores a step", in_tokens(costs.score_ms, costs.base_ms)),
            ("a proposed token adds to a pass", format!("{:.1} %", 100.0 * costs.verify_share)),
            ("tokens of a step", format!("{:.1}", costs.step_tokens)),
            ("steps accepted", percent(costs.acceptance)),
            ("draft's proposals agreed", percent(costs.agreement)),
            (
                "n-grams yield a pass",
                format!("{:.2} of {:.2} tokens", costs.lookup.matched, costs.lookup.proposed),
            ),
        ] {
            writeln!(out, "{what:<34} {value}")?;
        }
        writeln!(out, "\nspeed-up over the base alone, a kept token:")?;
        let seen = [
            ("specreason", &spec),
            ("spec-decode (draft)", &draft),
            ("spec-decode (n-gram)", &ngram),
        ];
        let speedups = costs.speedups().into_iter().map(|(name, modelled)| {
            let measured = seen.iter().find(|s| s.0 == name);
            let measured = measured.map(|s| base.token_ms() / s.1.token_ms());
            Speedup { name, modelled, measured }
        });
        let speedups: Vec<Speedup> = speedups.collect();
        for Speedup { name, modelled, measured } in &speedups {
            let measured = measured.map(|s| format!(", measured {s:.2}")).unwrap_or_default();
            writeln!(out, "{name:<42} model {modelled:.2}{measured}")?;
        }
        writeln!(out, "\n{}", advice(&speedups, &costs))?;
        Ok(())
    }

    fn measure(
        &self,
        engine: &Engine,
        prompts: &[String],
        policy: PolicyKind,
        proposer: Option<Proposer>,
    ) -> Result<Measured> {
        let mut replies = vec![];
        for prompt in prompts {
            let options = PolicyOptions {
                tokens_max: Some(self.tokens_max),
                proposer,
                window: Some(WindowSize::Fixed(WINDOW)),
                ..PolicyOptions::default()
            };
            let sampling =
                SamplingOverrides { temperature: Some(0.0), ..SamplingOverrides::default() };
            replies.push(engine.answer(Request {
                policy,
                options,
                sampling,
                ..Request::ask(prompt)
            })?);
        }
        Ok(Measured(replies))
    }
}

/// Costs from four runs.
fn costs(base: &Measured, spec: &Measured, draft: &Measured, ngram: &Measured) -> Costs {
    let per = |(ms, n): (f64, f64)| ms / n.max(1.0);
    let writing = [Phase::Rewrite, Phase::Answer];
    let base_ms = per(base.cost(&writing));
    let scores = spec.sum(|r| f64::from(r.accepted + r.rewritten));
    let drafted = spec.sum(|r| r.steps.iter().map(|s| f64::from(s.drafted)).sum());
    let accepted = spec.sum(|r| f64::from(r.accepted));
    let agreement = {
        let (proposed, matched) = draft.agreement();
        let passes = draft.cost(&writing).1;
        // Of k proposed tokens a + a² + … + aᵏ stay: the share of one is found by halving.
        rate(matched / (proposed / f64::from(WINDOW)).max(1.0), passes, proposed)
    };
    let judge_tokens = spec.sum(|r| r.settings.judge_suffix_tokens as f64);
    let verify_ms = per(draft.cost(&writing));
    let (proposed, matched) = ngram.agreement();
    let passes = ngram.cost(&writing).1.max(1.0);
    Costs {
        base_ms,
        draft_ms: per(spec.cost(&[Phase::Draft])),
        propose_ms: per(draft.cost(&[Phase::Draft])),
        score_ms: spec.cost(&[Phase::Score]).0 / scores.max(1.0),
        verify_share: ((verify_ms / base_ms - 1.0) / f64::from(WINDOW)).max(0.0),
        step_tokens: drafted / scores.max(1.0),
        acceptance: accepted / scores.max(1.0),
        agreement,
        judge_tokens: judge_tokens / spec.0.len().max(1) as f64,
        lookup: Lookup { proposed: proposed / passes, matched: matched / passes },
    }
}

/// The agreement of one token when `matched` of a window stay, in the mean over the windows; as
/// many passes as had no window count as windows of which none did.
fn rate(matched: f64, passes: f64, proposed: f64) -> f64 {
    let windows = proposed / f64::from(WINDOW);
    let matched = matched * (windows / passes.max(1.0)).min(1.0);
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if tokens_per_pass(WINDOW, middle) - 1.0 < matched { low = middle } else { high = middle }
    }
    low
}

fn in_tokens(ms: f64, base_ms: f64) -> String {
    format!("{ms:.2} ms, {:.1} tokens of the base", ms / base_ms.max(1e-9))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// How much faster than the base alone a policy is.
struct Speedup {
    name: &'static str,
    modelled: f64,
    measured: Option<f64>,
}

impl Speedup {
    /// What was measured counts before what the model says.
    fn best_known(&self) -> f64 {
        self.measured.unwrap_or(self.modelled)
    }
}

/// What to run here.
fn advice(speedups: &[Speedup], costs: &Costs) -> String {
    let (windows, k) = costs.verified_ms(costs.agreement, costs.propose_ms);
    let window = match k {
        0 => "propose no tokens from the draft: none pay".to_owned(),
        _ => format!("propose {k} tokens at a time ({windows:.2} ms a token, by the model)"),
    };
    // The draft alone is another model's answer.
    let pairs = speedups.iter().filter(|s| s.name != "draft");
    match pairs.max_by(|a, b| a.best_known().total_cmp(&b.best_known())) {
        Some(best) if best.best_known() >= WORTH => {
            let how = if best.measured.is_some() { "as measured" } else { "by the model" };
            format!(
                "fastest {how}: {}, {:.2} times the base; {window}",
                best.name,
                best.best_known()
            )
        }
        _ => format!(
            "speculation should be off for this pair on this machine: no policy gains {:.0} % \
             over --policy base",
            100.0 * (WORTH - 1.0)
        ),
    }
}

/// The model against the published runs.
fn public(out: &mut impl Write) -> Result<()> {
    writeln!(out, "MODEL of 167 public runs (AIME, QwQ-32B + R1-1.5B over vLLM, threshold 7).")?;
    writeln!(out, "Costs a token and a score are these runs' own; counts give the times:\n")?;
    let names = ["base writes", "draft writes", "base scores"];
    let modelled = public_runs::modelled_seconds();
    for ((name, modelled), measured) in names.iter().zip(modelled).zip(public_runs::SECONDS) {
        let off = 100.0 * (modelled / measured - 1.0);
        writeln!(out, "{name:<14} model {modelled:6.1} s, logged {measured:6.1} s ({off:+.1} %)")?;
    }
    writeln!(out, "\nspeed-up of plain SpecReason for the published shares of accepted steps:\n")?;
    for acceptance in public_runs::ACCEPTANCES {
        let costs = Costs { acceptance, ..public_runs::COSTS };
        let speedup = costs.base_step_ms() / costs.step_ms(Default::default());
        writeln!(
            out,
            "acceptance {acceptance:.3}: model {speedup:.2}; the paper reports 1.5 to 2.5"
        )?;
    }
    writeln!(
        out,
        "\nAcceptance alone leaves out: replies get shorter (the paper: 1.0 to 1.3 times fewer \
         tokens for this pair),\nscoring is counted in the paper as 1 to 2 tokens of the base \
         and was 3.1 in these runs, and the\npaper's costs a token are those of other GPUs.\n"
    )?;
    for (what, costs) in [
        ("these runs", public_runs::COSTS),
        ("one H100, one process (costs derived from bandwidth, not measured)", public_runs::H100),
    ] {
        writeln!(out, "MODEL, {what}, acceptance {:.3}:", costs.acceptance)?;
        writeln!(
            out,
            "  (assumed: {} of the draft's tokens agree, a pass looks up {} tokens of {})",
            costs.agreement, costs.lookup.matched, costs.lookup.proposed
        )?;
        for (name, speedup) in costs.speedups() {
            writeln!(out, "  {name:<42} {speedup:.2}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_a_token_is_found_from_what_stays_of_windows() {
        for exact in [0.2, 0.5, 0.9] {
            let matched = tokens_per_pass(WINDOW, exact) - 1.0;
            // 100 windows in 100 passes, then in 200 of which half proposed nothing.
            assert!((rate(matched, 100.0, 400.0) - exact).abs() < 1e-6);
            assert!(rate(matched, 200.0, 400.0) < exact);
        }
    }

    #[test]
    fn the_published_runs_are_reproduced_and_labelled() {
        let mut out = vec![];
        public(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.matches("MODEL").count() == 3 && text.contains("not measured"), "{text}");
        assert!(text.contains("logged  160.6 s"), "{text}");
    }

    fn modelled(costs: &Costs) -> Vec<Speedup> {
        let speedups = costs.speedups().into_iter();
        speedups.map(|(name, modelled)| Speedup { name, modelled, measured: None }).collect()
    }

    #[test]
    fn what_was_measured_counts_before_what_the_model_says() {
        let mut speedups = modelled(&public_runs::H100);
        speedups[1].measured = Some(9.0);
        let told = advice(&speedups, &public_runs::H100);
        assert!(told.contains("fastest as measured: spec-decode (draft), 9.00 times"), "{told}");
        speedups.iter_mut().for_each(|s| s.measured = Some(0.9));
        let told = advice(&speedups, &public_runs::H100);
        assert!(told.contains("should be off"), "{told}");
    }

    #[test]
    fn a_pair_that_gains_nothing_is_told_so() {
        let slow = Costs {
            draft_ms: 50.0,
            propose_ms: 50.0,
            agreement: 0.1,
            acceptance: 0.2,
            lookup: Lookup { proposed: 1.0, matched: 0.0 },
            ..public_runs::COSTS
        };
        let told = advice(&modelled(&slow), &slow);
        assert!(told.contains("should be off"), "{told}");
        let fast = public_runs::H100;
        assert!(advice(&modelled(&fast), &fast).contains("fastest by the model"));
    }
}

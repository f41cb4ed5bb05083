//! What policies would take: a model of one step from a handful of measured costs.
//!
//! The unit is one kept step of `S` tokens. Alone, the base takes `S · base`. SpecReason drafts it,
//! scores it, and with probability `1 - a` has the base write it:
//! `S · draft + score + (1 - a) · S · base`. What is added to that changes one term each; see
//! [`Costs::step_ms`]. The model leaves out that other steps make other replies: a draft that
//! needs fewer tokens gains time no acceptance shows. Everything here is a model and says so.

use crate::config::WINDOW_MAX;

/// What a pair costs on a machine, and how its models agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// The base writing a token, in milliseconds.
    pub base_ms: f64,
    /// The draft writing a token.
    pub draft_ms: f64,
    /// The draft proposing one, which may look at fewer ids.
    pub propose_ms: f64,
    /// The base scoring a step.
    pub score_ms: f64,
    /// A pass of the base for each row in it, beyond a plain decode, as a share of one.
    pub verify_share: f64,
    /// Tokens of a step.
    pub step_tokens: f64,
    /// Tokens of the judge that are scored after each step.
    pub judge_tokens: f64,
    /// Share of drafted steps the base accepts.
    pub acceptance: f64,
    /// Share of tokens the draft proposes that the base draws too.
    pub agreement: f64,
    /// What is looked up.
    pub lookup: Lookup,
}

/// What a pass of the base gets from the text, at one size of window.
///
/// Looked-up windows are right as a whole or not at all, so what stays of one is no power of an
/// agreement, and nothing is said here of other sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lookup {
    /// Tokens proposed, in the mean over all passes.
    pub proposed: f64,
    /// Of these, what stays.
    pub matched: f64,
}

/// What is done beside SpecReason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Additions {
    /// Tokens are proposed where the base writes.
    pub decode: bool,
    /// Rejected steps are proposed to the base.
    pub salvage: bool,
    /// The next step is drafted while one is scored.
    pub draft_ahead: bool,
    /// Two steps are scored together.
    pub merge: bool,
    /// The rubric is in the prompt, and little is scored after each step.
    pub short_judge: bool,
}

/// Tokens that the judge layout `prefix` scores after each step, in Qwen's vocabulary.
const SHORT_JUDGE_TOKENS: f64 = 13.0;

/// Tokens one pass yields when `k` are proposed, each of which agrees with probability `a`:
/// `1 + a + … + aᵏ`.
#[must_use]
pub fn tokens_per_pass(k: u32, a: f64) -> f64 {
    (0..=k).map(|i| a.powi(i as i32)).sum()
}

impl Costs {
    /// Milliseconds a token of the base takes with the best window, and that window: 0 to 8.
    #[must_use]
    pub fn verified_ms(&self, agreement: f64, propose_ms: f64) -> (f64, u32) {
        let ms = |k: u32| {
            let pass = self.base_ms * (1.0 + self.verify_share * f64::from(k));
            (f64::from(k) * propose_ms + pass) / tokens_per_pass(k, agreement)
        };
        let windows = (0..=WINDOW_MAX).map(|k| (ms(k), k));
        windows.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a window of 0")
    }

    /// Milliseconds a token of the base takes where tokens are looked up.
    #[must_use]
    pub fn looked_up_ms(&self) -> f64 {
        let Lookup { proposed, matched } = self.lookup;
        self.base_ms * (1.0 + self.verify_share * proposed) / (1.0 + matched)
    }

    /// A step by the base alone.
    #[must_use]
    pub fn base_step_ms(&self) -> f64 {
        self.step_tokens * self.base_ms
    }

    /// A step under SpecReason with `with` added.
    ///
    /// `decode` makes the base's tokens cheaper; `salvage` saves the first `1 + α + …` of them for
    /// one pass over the step; `draft_ahead` hides the shorter of drafting and scoring behind the
    /// other, unless the step is rejected; `merge` halves the scores of a step; `short_judge` takes
    /// rows from each.
    #[must_use]
    pub fn step_ms(&self, with: Additions) -> f64 {
        let drafting = self.step_tokens * self.draft_ms;
        let mut scoring = self.score_ms;
        if with.short_judge {
            let rows = (self.judge_tokens - SHORT_JUDGE_TOKENS).max(0.0);
            scoring -= (rows * self.verify_share * self.base_ms).min(scoring);
        }
        if with.merge {
            scoring /= 2.0;
        }
        let token = match with.decode {
            true => self.verified_ms(self.agreement, self.propose_ms).0,
            false => self.base_ms,
        };
        let mut rewriting = self.step_tokens * token;
        if with.salvage {
            let saved = tokens_per_pass(self.step_tokens as u32, self.agreement);
            let pass = self.base_ms * (1.0 + self.verify_share * self.step_tokens);
            rewriting += pass - saved.min(self.step_tokens) * token;
        }
        let hidden = if with.draft_ahead { self.acceptance * drafting.min(scoring) } else { 0.0 };
        drafting + scoring - hidden + (1.0 - self.acceptance) * rewriting
    }

    /// How much faster than the base alone each policy is, by the model.
    #[must_use]
    pub fn speedups(&self) -> Vec<(&'static str, f64)> {
        let base = self.base_step_ms();
        let with = |additions: Additions| base / self.step_ms(additions);
        let plain = Additions::default();
        let all = Additions {
            decode: true,
            salvage: true,
            draft_ahead: true,
            merge: true,
            short_judge: true,
        };
        vec![
            ("draft", self.base_ms / self.draft_ms),
            (
                "spec-decode (draft)",
                self.base_ms / self.verified_ms(self.agreement, self.propose_ms).0,
            ),
            ("spec-decode (n-gram)", self.base_ms / self.looked_up_ms()),
            ("specreason", with(plain)),
            ("specreason, token speculation", with(Additions { decode: true, ..plain })),
            ("specreason, salvage", with(Additions { salvage: true, ..plain })),
            ("specreason, draft-ahead", with(Additions { draft_ahead: true, ..plain })),
            ("specreason, two steps merged", with(Additions { merge: true, ..plain })),
            ("specreason, short judge", with(Additions { short_judge: true, ..plain })),
            ("specreason, all of these", with(all)),
        ]
    }
}

/// Means of 167 public runs of SpecReason on AIME: QwQ-32B and R1-Distill-Qwen-1.5B over vLLM,
/// threshold 7.
pub mod public_runs {
    use super::{Costs, Lookup};

    /// Steps scored.
    pub const STEPS: f64 = 155.8;
    /// Tokens the base wrote.
    pub const BASE_TOKENS: f64 = 2924.0;
    /// Tokens the draft wrote, kept (2,130) or not (2,783).
    pub const DRAFT_TOKENS: f64 = 2130.0 + 2783.0;
    /// Seconds of the base writing, of the draft, and of scoring.
    pub const SECONDS: [f64; 3] = [160.6, 46.1, 26.8];
    /// Published shares of steps the draft keeps for this pair (arXiv 2504.07891 v2, Fig. 3).
    pub const ACCEPTANCES: [f64; 2] = [0.381, 0.800];

    /// Their costs a token and a score, taken from these runs' own times. How often tokens agree
    /// is assumed, for nobody measured it, and a row costs what makes the hundred rows of a score a
    /// pass of 24 ms on an H100: over HTTP most of a score is not rows.
    pub const COSTS: Costs = Costs {
        base_ms: 54.9,
        draft_ms: 9.7,
        propose_ms: 9.7,
        score_ms: 172.0,
        verify_share: 0.002,
        step_tokens: 32.0,
        judge_tokens: 68.0,
        acceptance: 0.464,
        agreement: 0.8,
        lookup: Lookup { proposed: 2.0, matched: 0.6 },
    };

    /// The same pair on one H100 in one process: derived from bandwidth, not measured.
    pub const H100: Costs =
        Costs { base_ms: 20.0, draft_ms: 1.5, propose_ms: 1.5, score_ms: 24.0, ..COSTS };

    /// Milliseconds of a call to the draft and of each of its tokens, fitted to the calls of one
    /// problem of these runs, and of a score there.
    #[cfg(test)]
    pub(super) const ONE_PROBLEM_MS: [f64; 3] = [128.0, 4.1, 158.0];

    /// Seconds of the base, the draft and scoring, from counts and costs.
    #[must_use]
    pub fn modelled_seconds() -> [f64; 3] {
        [
            BASE_TOKENS * COSTS.base_ms / 1e3,
            DRAFT_TOKENS * COSTS.draft_ms / 1e3,
            STEPS * COSTS.score_ms / 1e3,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::public_runs::{
        ACCEPTANCES, COSTS, DRAFT_TOKENS, H100, ONE_PROBLEM_MS, SECONDS, STEPS, modelled_seconds,
    };
    use super::*;

    #[test]
    fn counts_and_costs_of_the_public_runs_give_their_times() {
        let close = |modelled: f64, measured: f64| {
            assert!((modelled / measured - 1.0).abs() < 0.15, "{modelled} for {measured}");
        };
        for (modelled, measured) in modelled_seconds().into_iter().zip(SECONDS) {
            close(modelled, measured);
        }
        // Costs of one problem alone, with the counts of all: not these times' own.
        let [call_ms, token_ms, score_ms] = ONE_PROBLEM_MS;
        close((STEPS * call_ms + DRAFT_TOKENS * token_ms) / 1e3, SECONDS[1]);
        close(STEPS * score_ms / 1e3, SECONDS[2]);
    }

    #[test]
    fn the_speed_up_of_plain_specreason_is_the_closed_form() {
        for (acceptance, costs) in ACCEPTANCES.into_iter().flat_map(|a| [(a, COSTS), (a, H100)]) {
            let Costs { base_ms: b, draft_ms: d, score_ms: v, step_tokens: s, .. } = costs;
            let exact = s * b / (s * d + v + (1.0 - acceptance) * s * b);
            let costs = Costs { acceptance, ..costs };
            let modelled = costs.base_step_ms() / costs.step_ms(Additions::default());
            assert!((modelled - exact).abs() < 1e-9);
        }
        // reference values of the published table: 1.23 and 2.67 for acceptances .46 and .90
        let at = |acceptance| {
            let costs = Costs { acceptance, ..COSTS };
            costs.base_step_ms() / costs.step_ms(Additions::default())
        };
        assert!((at(0.46) - 1.23).abs() < 0.01 && (at(0.90) - 2.67).abs() < 0.05);
    }

    #[test]
    fn nothing_is_proposed_where_it_does_not_pay() {
        let useless = Costs { agreement: 0.05, ..COSTS };
        assert_eq!(useless.verified_ms(0.05, 30.0), (useless.base_ms, 0));
        let (ms, k) = COSTS.verified_ms(0.9, 1.0);
        assert!(k >= 4 && ms < COSTS.base_ms / 2.0, "{k}: {ms}");
        assert!((tokens_per_pass(2, 0.5) - 1.75).abs() < 1e-12);
    }

    #[test]
    fn each_addition_alone_takes_its_own_term_of_a_step() {
        let Costs { base_ms: b, draft_ms: d, score_ms: v, step_tokens: s, acceptance: a, .. } =
            H100;
        let plain = H100.step_ms(Additions::default());
        let saves = |with: Additions, ms: f64| {
            assert!((plain - H100.step_ms(with) - ms).abs() < 1e-9, "{with:?}: {ms}");
        };
        let none = Additions::default();
        let (token, _) = H100.verified_ms(H100.agreement, d);
        saves(Additions { decode: true, ..none }, (1.0 - a) * s * (b - token));
        saves(Additions { draft_ahead: true, ..none }, a * v.min(s * d));
        saves(Additions { merge: true, ..none }, v / 2.0);
        saves(Additions { short_judge: true, ..none }, 55.0 * 0.002 * b);
        // 1 + .8 + … + .8³² tokens for a pass of 1 + 32 × .002
        let saved = (1.0 - 0.8_f64.powi(33)) / 0.2;
        saves(Additions { salvage: true, ..none }, (1.0 - a) * b * (saved - 1.064));
        let speedups = H100.speedups();
        let best = speedups.iter().skip(1).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert_eq!(best.0, "specreason, all of these");
    }

    #[test]
    fn what_is_looked_up_counts_as_measured() {
        let lookup = Lookup { proposed: 4.0, matched: 1.0 };
        let costs = Costs { base_ms: 10.0, verify_share: 0.05, lookup, ..COSTS };
        assert!((costs.looked_up_ms() - 10.0 * 1.2 / 2.0).abs() < 1e-12);
    }
}

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
    /// The base scoring a step.
    pub score_ms: f64,
    /// A pass of the base for each token proposed in it, beyond a plain decode, as a share of one.
    pub verify_share: f64,
    /// Tokens of a step.
    pub step_tokens: f64,
    /// Share of drafted steps the base accepts.
    pub acceptance: f64,
    /// Share of tokens the draft proposes that the base draws too.
    pub agreement: f64,
    /// The same of looked-up tokens, those places included where nothing is found.
    pub lookup_agreement: f64,
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
}

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

    /// A step by the base alone.
    #[must_use]
    pub fn base_step_ms(&self) -> f64 {
        self.step_tokens * self.base_ms
    }

    /// A step under SpecReason with `with` added.
    ///
    /// `decode` makes the base's tokens cheaper; `salvage` saves the first `1 + α + …` of them for
    /// one pass over the step; `draft_ahead` hides the shorter of drafting and scoring behind the
    /// other, unless the step is rejected; `merge` halves the scores of a step.
    #[must_use]
    pub fn step_ms(&self, with: Additions) -> f64 {
        let drafting = self.step_tokens * self.draft_ms;
        let scoring = if with.merge { self.score_ms / 2.0 } else { self.score_ms };
        let token = match with.decode {
            true => self.verified_ms(self.agreement, self.draft_ms).0,
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
        let decode = Additions { decode: true, ..plain };
        let salvage = Additions { salvage: true, ..decode };
        let ahead = Additions { draft_ahead: true, ..salvage };
        vec![
            ("draft", self.base_ms / self.draft_ms),
            (
                "spec-decode (draft)",
                self.base_ms / self.verified_ms(self.agreement, self.draft_ms).0,
            ),
            ("spec-decode (n-gram)", self.base_ms / self.verified_ms(self.lookup_agreement, 0.0).0),
            ("specreason", with(plain)),
            ("specreason, salvage", with(Additions { salvage: true, ..plain })),
            ("specreason+decode", with(decode)),
            ("specreason+decode, salvage", with(salvage)),
            ("specreason+decode, salvage, draft-ahead", with(ahead)),
            ("the same, steps merged", with(Additions { merge: true, ..ahead })),
        ]
    }
}

/// Means of 167 public runs of SpecReason on AIME: QwQ-32B and R1-Distill-Qwen-1.5B over vLLM,
/// threshold 7.
pub mod public_runs {
    use super::Costs;

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

    /// Their costs a token and a score, taken from these runs' own times, and an agreement that is
    /// assumed: nobody measured it.
    pub const COSTS: Costs = Costs {
        base_ms: 54.9,
        draft_ms: 9.7,
        score_ms: 172.0,
        verify_share: 0.02,
        step_tokens: 32.0,
        acceptance: 0.464,
        agreement: 0.8,
        lookup_agreement: 0.3,
    };

    /// The same pair on one H100 in one process: derived from bandwidth, not measured.
    pub const H100: Costs = Costs { base_ms: 20.0, draft_ms: 1.5, score_ms: 24.0, ..COSTS };

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
    use super::public_runs::{ACCEPTANCES, COSTS, H100, SECONDS, modelled_seconds};
    use super::*;

    #[test]
    fn counts_and_costs_of_the_public_runs_give_their_times() {
        for (modelled, measured) in modelled_seconds().into_iter().zip(SECONDS) {
            assert!((modelled / measured - 1.0).abs() < 0.15, "{modelled} for {measured}");
        }
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
    fn no_addition_makes_a_step_slower_than_its_closed_form_says() {
        let all = COSTS.speedups();
        let of = |name: &str| all.iter().find(|s| s.0 == name).unwrap().1;
        assert!(of("specreason+decode") > of("specreason"));
        assert!(of("specreason+decode, salvage, draft-ahead") > of("specreason+decode, salvage"));
        assert!(of("the same, steps merged") > of("specreason+decode, salvage, draft-ahead"));
    }
}

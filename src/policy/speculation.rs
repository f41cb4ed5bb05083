//! Token-level speculation: who proposes tokens to a decode, and how many at a time.
//!
//! A *window* is `k` tokens proposed beyond the tip. The base feeds them in one pass and draws its
//! own token at every place, with the random number that place has in any case; proposed tokens
//! stay as long as they are what it drew. So speculation changes no token, greedy or sampled: it
//! only lets several come out of one pass. A draft model proposes with the base's random numbers,
//! which makes agreement likelier than two independent draws would be.
//!
//! Where tokens come from is [`Proposer`]; [`lookup`] is the one without a model. How many pay is
//! a matter of measured costs and agreement: [`Costs::best_window`]. Everything here is pure.

use crate::config::WINDOW_MAX;
use crate::ids::TokenId;
use crate::sample::Window;
use serde::{Deserialize, Serialize};

/// Who proposes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proposer {
    /// The draft model.
    Draft,
    /// The text itself: what followed the last occurrence of the newest tokens.
    Ngram,
}

impl std::str::FromStr for Proposer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "draft" => Ok(Self::Draft),
            "ngram" => Ok(Self::Ngram),
            _ => Err(format!("{name:?} is none of draft, ngram")),
        }
    }
}

/// How many tokens a window has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowSize {
    /// As many as pay by what was measured, none if none do.
    #[default]
    Auto,
    /// So many, 0 to [`WINDOW_MAX`].
    Fixed(u32),
}

impl std::str::FromStr for WindowSize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.parse() {
            Ok(k) if k <= WINDOW_MAX => Ok(Self::Fixed(k)),
            _ if name == "auto" => Ok(Self::Auto),
            _ => Err(format!("expected auto or 0 to {WINDOW_MAX} tokens, got {name:?}")),
        }
    }
}

/// How tokens are proposed to a decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Speculation {
    /// By whom.
    pub by: Proposer,
    /// How many at a time, one after another.
    pub window: WindowSize,
    /// How many in one place, 1 to [`crate::config::BRANCHES_MAX`]: with more than one the window
    /// is a tree.
    pub branches: u32,
}

/// The longest run of newest tokens that [`lookup`] looks for.
const NGRAM_MAX: usize = 4;
/// The shortest: a single token says too little of what follows it.
const NGRAM_MIN: usize = 2;

/// Up to `k` tokens that followed an earlier occurrence of the newest tokens of `texts[0]`, of up
/// to `branches` occurrences that went on differently.
///
/// The longest of 4 to 2 newest tokens that occurs again decides first, its last occurrence before
/// earlier ones, in the text itself before its siblings (prompt lookup decoding).
#[must_use]
pub fn lookup(texts: &[&[TokenId]], k: usize, branches: usize) -> Window {
    let mut window = Window::default();
    let Some((own, _)) = texts.split_first() else { return window };
    let mut found = 0;
    for n in (NGRAM_MIN..=NGRAM_MAX.min(own.len())).rev() {
        let newest = &own[own.len() - n..];
        for text in texts {
            // The newest tokens themselves have nothing after them.
            let places = text.len().saturating_sub(n);
            for at in (0..places).rev().filter(|&at| &text[at..at + n] == newest) {
                if found == branches {
                    return window;
                }
                let nodes = window.len();
                let mut parent = None;
                for id in text[at + n..].iter().take(k) {
                    parent = Some(window.add(parent, *id));
                }
                found += usize::from(window.len() > nodes);
            }
        }
    }
    window
}

/// How often proposed tokens were what the base drew, the latest windows counting most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    agreed: f64,
    compared: f64,
    windows: u32,
}

impl Default for Agreement {
    /// Four in five, as weakly held as one token.
    fn default() -> Self {
        Self { agreed: 0.8, compared: 1.0, windows: 0 }
    }
}

impl Agreement {
    /// Counts a window of `proposed` tokens of which the first `matched` stayed.
    pub fn count(&mut self, proposed: u32, matched: u32) {
        /// What a window still counts when the next one comes: some ten are remembered.
        const FADE: f64 = 0.9;
        self.windows += 1;
        if proposed == 0 {
            return;
        }
        self.agreed = self.agreed * FADE + f64::from(matched);
        // Nothing is known of the tokens after the first that differed.
        self.compared = self.compared * FADE + f64::from((matched + 1).min(proposed));
    }

    /// The share of compared tokens that agreed, 0 to 1.
    #[must_use]
    pub fn rate(&self) -> f64 {
        (self.agreed / self.compared).clamp(0.0, 1.0)
    }
}

/// Milliseconds of passes, as measured, the latest counting most.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Costs {
    draft_ms: Mean,
    base_ms: [Mean; WINDOW_MAX as usize + 1],
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, ms: f64) {
        /// Weight of the newest measurement.
        const NEWEST: f64 = 0.2;
        self.0 = Some(self.0.map_or(ms, |mean| mean + NEWEST * (ms - mean)));
    }
}

impl Costs {
    /// A pass in which the draft drew one token.
    pub fn add_draft(&mut self, ms: f64) {
        self.draft_ms.add(ms);
    }

    /// A pass in which the base verified `k` proposed tokens, 0 for a plain decode; one with more
    /// than [`WINDOW_MAX`] says nothing of windows.
    pub fn add_base(&mut self, k: usize, ms: f64) {
        if let Some(mean) = self.base_ms.get_mut(k) {
            mean.add(ms);
        }
    }

    /// The cost of verifying `k` tokens: as measured, else between or beyond what was.
    fn base(&self, k: usize) -> Option<f64> {
        let known = |k: &usize| self.base_ms[*k].0;
        let below = (0..=k).rev().find(|k| known(k).is_some());
        let above = (k..self.base_ms.len()).find(|k| known(k).is_some());
        match (below, above) {
            (Some(a), Some(b)) => {
                let share = if a == b { 0.0 } else { (k - a) as f64 / (b - a) as f64 };
                let (a, b) = (known(&a)?, known(&b)?);
                Some(a + share * (b - a))
            }
            (one, other) => known(&one.or(other)?),
        }
    }

    /// The window, 0 to `most`, that yields the most tokens a second: `(1 + a + … + aᵏ)` tokens of
    /// agreement rate `a` for `k` passes of the draft (none where the text proposes) and one of the
    /// base. The smaller of equals. Now and then another, so that its cost becomes known.
    #[must_use]
    pub fn best_window(&self, by: Proposer, agreement: &Agreement, most: u32) -> u32 {
        /// Of so many windows one measures what is not known.
        const PROBE_EVERY: u32 = 16;
        let draft = if by == Proposer::Draft { self.draft_ms.0 } else { Some(0.0) };
        let (Some(draft), Some(_)) = (draft, self.base(0)) else { return most.min(4) };
        let rate = agreement.rate();
        let (mut best, mut best_goodput) = (0, 0.0);
        let (mut tokens, mut power) = (0.0, 1.0);
        for k in 0..=most {
            tokens += power;
            power *= rate;
            let base = self.base(k as usize).expect("some pass was measured");
            let goodput = tokens / (f64::from(k) * draft + base).max(1e-9);
            if goodput > best_goodput * (1.0 + 1e-9) {
                (best, best_goodput) = (k, goodput);
            }
        }
        match agreement.windows % PROBE_EVERY {
            0 if agreement.windows > 0 && best > 0 => 0,
            0 if agreement.windows > 0 => most.min(2),
            _ => best,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn what_followed_the_newest_tokens_is_looked_up_longest_match_and_latest_first() {
        let text = ids(&[1, 2, 3, 7, 7, 1, 2, 3, 8, 9, 5, 2, 3, 4, 0, 1, 2, 3]);
        // (2, 3) went on with 4 last, but (1, 2, 3) is longer and went on with 8.
        assert_eq!(lookup(&[&text], 3, 1), Window::chain(ids(&[8, 9, 5])));
        let tree = lookup(&[&text], 2, 3);
        assert_eq!(tree.ids(), ids(&[8, 9, 7, 7, 4, 0]));
        assert_eq!(tree.masks(), [0b1, 0b11, 0b100, 0b1100, 0b1_0000, 0b11_0000]);
        assert_eq!(lookup(&[&ids(&[1, 2, 3])], 3, 1), Window::default());
        let sibling = ids(&[9, 9, 2, 3, 6]);
        assert_eq!(lookup(&[&ids(&[5, 2, 3]), &sibling], 3, 1), Window::chain(ids(&[6])));
        assert!(lookup(&[], 3, 1).is_empty() && lookup(&[&[]], 3, 1).is_empty());
    }

    proptest! {
        #[test]
        fn the_window_follows_what_was_measured(rate in 0.0..1.0f64, draft in 0.0..2.0f64) {
            let mut costs = Costs::default();
            costs.add_draft(draft);
            for k in 0..=WINDOW_MAX {
                costs.add_base(k as usize, 1.0 + 0.05 * f64::from(k));
            }
            let agreement = Agreement { agreed: rate * 100.0, compared: 100.0, windows: 1 };
            let best = costs.best_window(Proposer::Draft, &agreement, WINDOW_MAX);
            let goodput = |k: u32| {
                let tokens: f64 = (0..=k).map(|i| rate.powi(i as i32)).sum();
                tokens / (f64::from(k) * draft + 1.0 + 0.05 * f64::from(k))
            };
            prop_assert!((0..=WINDOW_MAX).all(|k| goodput(k) <= goodput(best) * (1.0 + 1e-6)));
        }
    }

    #[test]
    fn windows_that_never_agree_are_given_up_and_tried_again_now_and_then() {
        let mut costs = Costs::default();
        costs.add_draft(0.5);
        costs.add_base(0, 1.0);
        costs.add_base(4, 1.2);
        let mut agreement = Agreement::default();
        assert!(costs.best_window(Proposer::Draft, &agreement, 8) > 0, "optimistic at first");
        let mut windows = vec![];
        for _ in 0..64 {
            let k = costs.best_window(Proposer::Draft, &agreement, 8);
            agreement.count(k, 0);
            windows.push(k);
        }
        assert!(windows[32..].iter().filter(|k| **k == 0).count() >= 28, "{windows:?}");
        assert!(windows[32..].iter().any(|k| *k > 0), "{windows:?}");
        assert_eq!(costs.best_window(Proposer::Draft, &agreement, 0), 0, "no room");
    }
}

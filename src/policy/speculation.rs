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

use crate::config::{FIRST_IDS_STEP, WINDOW_MAX};
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

/// Of which of its ids a draft proposes.
///
/// A draft reads the whole of its head for each token it proposes, and most tokens are among its
/// first ids: a vocabulary of merges has what is frequent in front. What it cannot propose the base
/// still writes, so no token depends on this (FR-Spec, arXiv 2502.14856, takes the most frequent
/// ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DraftVocab {
    /// The first 32,768 or 65,536 while the text has few others, else all.
    #[default]
    Auto,
    /// All.
    All,
    /// The first so many, at least 1.
    First(u32),
}

impl std::str::FromStr for DraftVocab {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.parse() {
            Ok(n) if n > 0 => Ok(Self::First(n)),
            _ if name == "auto" => Ok(Self::Auto),
            _ if name == "all" => Ok(Self::All),
            _ => Err(format!("expected auto, all or a number of ids, got {name:?}")),
        }
    }
}

impl DraftVocab {
    /// How many of its `vocab` ids the draft looks at after `text`: the first so many, or all.
    #[must_use]
    pub fn first_ids(self, text: &[&[TokenId]], vocab: usize) -> Option<usize> {
        /// What `auto` chooses from.
        const SIZES: [usize; 2] = [1 << 15, 1 << 16];
        /// Ids that are left out save less than they cost.
        const WORTH: usize = 2;
        /// The newest tokens decide.
        const NEWEST: usize = 256;
        /// One in so many may be another. Of what a window of 4 yields at an agreement of 0.8 that
        /// takes 17 %, which is what leaving out ids is worth where a head is a third of a draft.
        const OUTSIDE: usize = 8;
        let ids = match self {
            Self::All => vocab,
            Self::First(n) => (n as usize).next_multiple_of(FIRST_IDS_STEP),
            Self::Auto => {
                let newest = || text.iter().rev().flat_map(|ids| ids.iter().rev()).take(NEWEST);
                let most = newest().count() / OUTSIDE;
                let outside = |size: usize| newest().filter(|id| id.index() >= size).count();
                let pays = |size: &usize| size * WORTH <= vocab && outside(*size) <= most;
                SIZES.into_iter().find(pays).unwrap_or(vocab)
            }
        };
        (ids < vocab).then_some(ids)
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
    /// Of which ids, where the draft proposes.
    pub vocab: DraftVocab,
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

    #[test]
    fn a_draft_proposes_from_its_first_ids_while_the_text_has_few_others() {
        let (small, medium, large) = (TokenId(700), TokenId(40_000), TokenId(90_000));
        let auto = |text: &[&[TokenId]]| DraftVocab::Auto.first_ids(text, 151_936);
        let text = |others: &[(usize, TokenId)]| {
            let mut text = vec![small; 256];
            let others = others.iter().flat_map(|(n, id)| std::iter::repeat_n(*id, *n));
            text.iter_mut().zip(others).for_each(|(id, other)| *id = other);
            text
        };
        assert_eq!(auto(&[&text(&[(32, medium)])]), Some(1 << 15), "one in eight");
        assert_eq!(auto(&[&text(&[(33, medium)])]), Some(1 << 16), "more than one in eight");
        assert_eq!(auto(&[&text(&[(20, medium), (13, large)])]), Some(1 << 16));
        assert_eq!(auto(&[&text(&[(20, medium), (33, large)])]), None);
        // The newest 256 tokens decide, of the reply before the prompt.
        let (chinese, english) = (text(&[(256, large)]), text(&[]));
        assert_eq!(auto(&[&chinese, &english]), Some(1 << 15));
        assert_eq!(auto(&[&english, &chinese[..64]]), None);
        assert_eq!(auto(&[]), Some(1 << 15), "optimistic at first");
        // Where half of the head would be read in any case, all of it is.
        let of = |vocab| DraftVocab::Auto.first_ids(&[&english], vocab);
        assert_eq!((of(65_536), of(65_535), of(49_152)), (Some(1 << 15), None, None));
    }

    #[test]
    fn a_number_of_ids_is_rounded_up_to_what_a_head_can_look_at() {
        let first = |n| DraftVocab::First(n).first_ids(&[], 1000);
        let got = [1, 256, 257, 768, 769, 1000, u32::MAX].map(first);
        assert_eq!(got, [Some(256), Some(256), Some(512), Some(768), None, None, None]);
        assert_eq!(DraftVocab::All.first_ids(&[], 151_936), None);
        assert_eq!(DraftVocab::First(256).first_ids(&[], 0), None, "no draft");
        let parsed = ["auto", "all", "4096", "0", "-1", "some"].map(str::parse::<DraftVocab>);
        assert_eq!(
            parsed[..3],
            [DraftVocab::Auto, DraftVocab::All, DraftVocab::First(4096)].map(Ok)
        );
        assert!(parsed[3..].iter().all(|p| p.as_ref().is_err_and(|e| e.contains("auto, all"))));
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

//! The ragged batch: one description for decode, verify, scoring and chunked prefill.
//!
//! Rows come in groups. A row of a group sees every key of the group's `prefix`, then the group's
//! `own` keys causally (or by a tree mask). In plain decode and prefill `prefix` is empty and `own`
//! is the branch's table. For a scoring suffix `prefix` is the branch's table and `own` a scratch
//! table, so the suffix leaves no trace in the branch.
//!
//! Invariant: the keys a row sees form one sequence, `prefix` keys first, then the visible `own`
//! keys, without gaps ([`RaggedBatch::key`]); attention sums in this order. So a branch of a tree
//! draft has the same bits as the same tokens decoded one after another.

use crate::config::FIRST_IDS_STEP;
use crate::ids::{PageId, TokenId};
use crate::sample::{History, Key, SamplingParams};
use std::ops::Range;

/// A page table inside [`RaggedBatch::pages`] and how many tokens of it are filled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Span {
    /// The pages, as a range of [`RaggedBatch::pages`].
    pub pages: Range<usize>,
    /// Tokens filled before this pass.
    pub len: usize,
}

/// Which of the group's own keys a row sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mask {
    /// All up to and including itself.
    #[default]
    Causal,
    /// Row `i` sees own key `j` if bit `j` of entry `i` is set (itself included). At most 64 rows,
    /// `own.len` 0.
    Tree(Vec<u64>),
}

/// Consecutive rows that share their tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGroup {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Keys every row sees entirely; may be empty.
    pub prefix: Span,
    /// Where the group's new keys and values go: row `i` writes own index `own.len + i`.
    pub own: Span,
    /// Visibility among the own keys.
    pub mask: Mask,
}

impl RowGroup {
    /// How many keys row `i` of the group (counted from 0) sees, itself included.
    ///
    /// # Panics
    /// If a tree mask has no entry `i`.
    #[must_use]
    pub fn visible(&self, i: usize) -> usize {
        self.prefix.len
            + match &self.mask {
                Mask::Causal => self.own.len + i + 1,
                Mask::Tree(bits) => bits[i].count_ones() as usize,
            }
    }

    /// Leading keys that are the same for every row of the group that sees so many: all of them
    /// without a tree mask, the prefix with one.
    #[must_use]
    pub fn shared_keys(&self) -> usize {
        match &self.mask {
            Mask::Causal => self.prefix.len + self.own.len + self.rows.len(),
            Mask::Tree(_) => self.prefix.len,
        }
    }
}

/// What is wanted of one row's logits.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadKind {
    /// The id of the largest logit, ties to the lower id.
    Argmax,
    /// Probabilities over these ids only, softmaxed among themselves.
    Labels(Vec<TokenId>),
    /// The log-probability of this id under the full softmax.
    LogProb(TokenId),
    /// The whole row, kept on the device for [`SampleRow`]s or [`super::Device::read`].
    Full,
}

/// One wanted result; a row may appear several times.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadRow {
    /// The row of the batch.
    pub row: usize,
    /// What is wanted.
    pub kind: HeadKind,
    /// Of the first so many ids alone, a multiple of [`FIRST_IDS_STEP`] below the vocabulary: no
    /// weight of another is read. For [`HeadKind::Argmax`] and [`HeadKind::Full`], whose row of
    /// logits is then undefined behind them; what samples from it draws one of them.
    pub first_ids: Option<usize>,
}

impl HeadRow {
    /// Wants `kind` of a row, of the whole vocabulary.
    #[must_use]
    pub fn new(row: usize, kind: HeadKind) -> Self {
        Self { row, kind, first_ids: None }
    }

    /// How many of `vocab` ids it looks at.
    #[must_use]
    pub fn ids(&self, vocab: usize) -> usize {
        self.first_ids.unwrap_or(vocab)
    }
}

/// A token to draw from a `Full` head.
#[derive(Debug, Clone)]
pub struct SampleRow {
    /// Index among the `Full` heads of the batch: the row of the logits buffer.
    pub logits_row: usize,
    /// How to draw.
    pub params: SamplingParams,
    /// The random stream.
    pub key: Key,
    /// Tokens of the prompt; empty unless a penalty looks at them.
    pub prompt: Vec<TokenId>,
    /// Tokens after the prompt; empty unless a penalty looks at them.
    pub generated: Vec<TokenId>,
}

impl SampleRow {
    /// The tokens the penalties look at.
    #[must_use]
    pub fn history(&self) -> History<'_> {
        History { prompt: &self.prompt, generated: &self.generated }
    }
}

/// What drew a token: an argmax head or a sample, by its index in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// Of [`RaggedBatch::heads`].
    Head(usize),
    /// Of [`RaggedBatch::samples`].
    Sample(usize),
}

/// A row whose token the pass before draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FedRow {
    /// The row of this batch.
    pub row: usize,
    /// Where the pass before draws its token.
    pub drawn: Drawn,
}

/// A pass of so few rows costs the same without some of them.
const FEW_ROWS: usize = 8;

/// One forward pass for one model.
#[derive(Debug, Clone, Default)]
pub struct RaggedBatch {
    /// `[T]` ids in the model's own numbering.
    pub tokens: Vec<TokenId>,
    /// `[T]` rotary positions.
    pub positions: Vec<u32>,
    /// Groups, covering the rows in order without gaps.
    pub groups: Vec<RowGroup>,
    /// All page tables, one after another.
    pub pages: Vec<PageId>,
    /// Wanted results.
    pub heads: Vec<HeadRow>,
    /// Tokens to draw.
    pub samples: Vec<SampleRow>,
    /// Rows whose entry in `tokens` is replaced by what the pass before draws; see
    /// [`super::Device::feed`].
    pub fed: Vec<FedRow>,
    /// `[T]` where the rows of a batch that was split off were, ascending; see
    /// [`Self::split_off_wanted`]. Empty in every other.
    pub kept: Vec<usize>,
}

impl RaggedBatch {
    /// Rows of the pass, `T`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of the logits buffer this batch fills.
    #[must_use]
    pub fn full_rows(&self) -> usize {
        self.heads.iter().filter(|h| h.kind == HeadKind::Full).count()
    }

    /// Ids in each row of the logits buffer that this batch fills: `vocab`, or the first so many.
    pub(super) fn ids_of_full_rows(&self, vocab: usize) -> Vec<usize> {
        let full = self.heads.iter().filter(|head| head.kind == HeadKind::Full);
        full.map(|head| head.ids(vocab)).collect()
    }

    /// Moves heads and samples to a new batch, whose rows are those that heads ask for: behind the
    /// last layer's keys and values nobody reads the others. `None`, and nothing moves, where too
    /// few could be left out to be worth it. Rows of a tree stay together.
    ///
    /// The new batch sees the keys that its rows see in this one, which have to be there.
    ///
    /// # Panics
    /// If the batch is not a valid one.
    #[must_use]
    pub fn split_off_wanted(&mut self) -> Option<Self> {
        let rows = self.rows();
        if rows <= FEW_ROWS {
            return None;
        }
        let mut wanted = vec![false; rows];
        self.heads.iter().for_each(|head| wanted[head.row] = true);
        for group in self.groups.iter().filter(|group| matches!(group.mask, Mask::Tree(_))) {
            let wanted = &mut wanted[group.rows.clone()];
            wanted.fill(wanted.contains(&true));
        }
        let kept: Vec<usize> = (0..rows).filter(|row| wanted[*row]).collect();
        if 2 * kept.len() > rows {
            return None;
        }
        let mut groups = vec![];
        for group in &self.groups {
            let begin = kept.partition_point(|row| *row < group.rows.start);
            let end = kept.partition_point(|row| *row < group.rows.end);
            let mut next = begin;
            for run in kept[begin..end].chunk_by(|a, b| a + 1 == *b) {
                let len = group.own.len + run[0] - group.rows.start;
                let rows = next..next + run.len();
                next = rows.end;
                let own = Span { len, ..group.own.clone() };
                groups.push(RowGroup { rows, own, ..group.clone() });
            }
        }
        let of = |head: HeadRow| HeadRow {
            row: kept.binary_search(&head.row).expect("a wanted row is kept"),
            ..head
        };
        Some(Self {
            tokens: kept.iter().map(|row| self.tokens[*row]).collect(),
            positions: kept.iter().map(|row| self.positions[*row]).collect(),
            groups,
            pages: self.pages.clone(),
            heads: std::mem::take(&mut self.heads).into_iter().map(of).collect(),
            samples: std::mem::take(&mut self.samples),
            fed: vec![],
            kept,
        })
    }

    /// Moves the rows of `values`, `[rows before the split, width]`, to where they are in this
    /// batch.
    pub(super) fn keep_rows(&self, values: &mut [f32], width: usize) {
        for (to, from) in self.kept.iter().enumerate() {
            values.copy_within(from * width..(from + 1) * width, to * width);
        }
    }

    /// Replaces the tokens of fed rows by what the pass before drew.
    ///
    /// # Panics
    /// If a row is fed from a head that is no argmax.
    pub(super) fn feed(&mut self, before: &Results) {
        for fed in &self.fed {
            self.tokens[fed.row] = match fed.drawn {
                Drawn::Sample(index) => before.samples[index].id,
                Drawn::Head(index) => match before.heads[index] {
                    HeadResult::Argmax { id, .. } => id,
                    ref other => panic!("a row fed from {other:?}"),
                },
            };
        }
    }

    /// Page and slot of token `index` of `span`; `page_tokens` is a power of two.
    ///
    /// # Panics
    /// If the span's pages do not reach that far.
    #[must_use]
    pub fn place(&self, span: &Span, index: usize, page_tokens: usize) -> (PageId, usize) {
        debug_assert!(page_tokens.is_power_of_two(), "{page_tokens} tokens per page");
        let page = index >> page_tokens.trailing_zeros();
        (self.pages[span.pages.clone()][page], index & (page_tokens - 1))
    }

    /// Page and slot of the `j`-th key that row `i` of `group` sees, `j < group.visible(i)`.
    ///
    /// # Panics
    /// If the row sees fewer keys.
    #[must_use]
    pub fn key(&self, group: &RowGroup, i: usize, j: usize, page_tokens: usize) -> (PageId, usize) {
        let Some(own) = j.checked_sub(group.prefix.len) else {
            return self.place(&group.prefix, j, page_tokens);
        };
        let index = match &group.mask {
            Mask::Causal => own,
            Mask::Tree(bits) => {
                // Clear the lowest set bits to find the `own`-th visible key.
                let rest = (0..own).fold(bits[i], |b, _| b & b.wrapping_sub(1));
                rest.trailing_zeros() as usize
            }
        };
        self.place(&group.own, index, page_tokens)
    }

    /// Checks every index against every other, for a model with `vocab` ids, `page_tokens` tokens
    /// per page and `positions_max` rotary positions.
    ///
    /// # Errors
    /// A sentence naming the first contradiction: a bug of the caller, worth more than a crash.
    pub fn validate(
        &self,
        vocab: usize,
        page_tokens: usize,
        positions_max: usize,
    ) -> Result<(), String> {
        let rows = self.rows();
        if self.positions.len() != rows {
            return Err(format!("{} positions for {rows} rows", self.positions.len()));
        }
        if let Some(t) = self.tokens.iter().find(|t| t.index() >= vocab) {
            return Err(format!("token {t} outside a vocabulary of {vocab}"));
        }
        if let Some(p) = self.positions.iter().find(|p| **p as usize >= positions_max) {
            return Err(format!("position {p} outside a context of {positions_max}"));
        }
        let mut next = 0;
        for (g, group) in self.groups.iter().enumerate() {
            if group.rows.start != next || group.rows.end <= next || group.rows.end > rows {
                return Err(format!("group {g} covers rows {:?} after row {next}", group.rows));
            }
            next = group.rows.end;
            self.check_span(g, "prefix", &group.prefix, group.prefix.len, page_tokens)?;
            let own = group.own.len + group.rows.len();
            self.check_span(g, "own", &group.own, own, page_tokens)?;
            if let Mask::Tree(bits) = &group.mask {
                let n = group.rows.len();
                let inside =
                    |(i, b): (usize, &u64)| b >> i & 1 == 1 && (i == 63 || b >> (i + 1) == 0);
                if n > 64
                    || bits.len() != n
                    || group.own.len != 0
                    || !bits.iter().enumerate().all(inside)
                {
                    return Err(format!("group {g} has a malformed tree mask"));
                }
            }
        }
        if next != rows {
            return Err(format!("groups cover {next} of {rows} rows"));
        }
        for head in &self.heads {
            let ids: &[TokenId] = match &head.kind {
                HeadKind::Labels(ids) => ids,
                HeadKind::LogProb(id) => std::slice::from_ref(id),
                HeadKind::Argmax | HeadKind::Full => &[],
            };
            if head.row >= rows || ids.iter().any(|id| id.index() >= vocab) {
                return Err(format!("head {head:?} outside {rows} rows or {vocab} ids"));
            }
            let may = matches!(head.kind, HeadKind::Argmax | HeadKind::Full);
            let fits = |n: usize| n > 0 && n < vocab && n.is_multiple_of(FIRST_IDS_STEP);
            if head.first_ids.is_some_and(|n| !may || !fits(n)) {
                return Err(format!("head {head:?} cannot look at so many of {vocab} ids"));
            }
        }
        if let Some(fed) = self.fed.iter().find(|fed| fed.row >= rows) {
            return Err(format!("row {} of {rows} is fed", fed.row));
        }
        match self.samples.iter().find(|s| s.logits_row >= self.full_rows()) {
            Some(s) => {
                Err(format!("sample from logits row {} of {}", s.logits_row, self.full_rows()))
            }
            None => Ok(()),
        }
    }

    fn check_span(
        &self,
        group: usize,
        which: &str,
        span: &Span,
        tokens: usize,
        page_tokens: usize,
    ) -> Result<(), String> {
        let inside = span.pages.start <= span.pages.end && span.pages.end <= self.pages.len();
        if !inside || span.pages.len() * page_tokens < tokens {
            return Err(format!(
                "group {group}: {which} pages {:?} of {} cannot hold {tokens} tokens",
                span.pages,
                self.pages.len()
            ));
        }
        Ok(())
    }
}

/// What one wanted head produced.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadResult {
    /// For [`HeadKind::Argmax`].
    Argmax {
        /// The id.
        id: TokenId,
        /// Its logit.
        logit: f32,
    },
    /// For [`HeadKind::Labels`]: one probability per label, summing to 1.
    Labels(Vec<f32>),
    /// For [`HeadKind::LogProb`], in nats.
    LogProb(f32),
    /// For [`HeadKind::Full`]: the row of the logits buffer.
    Full(usize),
}

/// Everything one pass brings back to the host.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// In the order of [`RaggedBatch::heads`].
    pub heads: Vec<HeadResult>,
    /// In the order of [`RaggedBatch::samples`].
    pub samples: Vec<crate::sample::Sampled>,
    /// The first batch row whose head produced a NaN or an infinity. Results are then meaningless.
    pub non_finite_row: Option<usize>,
}

#[cfg(test)]
mod tests;

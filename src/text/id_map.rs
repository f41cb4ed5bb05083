//! One numbering for two models.
//!
//! The tail of a request is kept in the base's ids. Ordinary ids must agree; added tokens may
//! not (R1-Distill and Qwen2.5 share all merges, yet number `<think>` differently and end a turn
//! with different tokens). Invariant: an id without a counterpart maps to nothing, never to a
//! neighbour. Read next: `Tokenizer::compare`.

use std::collections::BTreeMap;

use super::tokenizer::{Kind, Tokenizer};
use crate::ids::TokenId;

/// The added tokens of one model that have a meaning to the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialRoles {
    /// Every id that ends the model's turn; the first is the one to write.
    pub end_of_turn: Vec<TokenId>,
    /// `<think>`, where it is one token.
    pub think: Option<TokenId>,
    /// `</think>`, where it is one token; otherwise it is matched as text.
    pub close_think: Option<TokenId>,
}

impl SpecialRoles {
    /// Roles with the usual tags, looked up among the added tokens.
    #[must_use]
    pub fn with_tags(tokenizer: &Tokenizer, end_of_turn: Vec<TokenId>) -> Self {
        let added = |text| tokenizer.id_of(text).filter(|&id| tokenizer.is_added(id));
        Self { end_of_turn, think: added("<think>"), close_think: added("</think>") }
    }
}

/// Translates ids between a draft's and a base's numbering.
#[derive(Debug, Clone)]
pub struct IdMap {
    draft: Tokenizer,
    base: Tokenizer,
    /// Added tokens of the draft to ids of the base.
    to_base: BTreeMap<TokenId, TokenId>,
    /// Added tokens of the base to ids of the draft.
    to_draft: BTreeMap<TokenId, TokenId>,
}

impl IdMap {
    /// Pairs the added tokens: a role first, then the same text. An end of turn without a twin
    /// becomes the partner's first end of turn, so that a stop is a stop in both numberings.
    ///
    /// # Errors
    /// If ordinary tokens or merges differ (the message names the first difference), or only one
    /// of the models has an end of turn.
    pub fn build(
        draft: &Tokenizer,
        draft_roles: &SpecialRoles,
        base: &Tokenizer,
        base_roles: &SpecialRoles,
    ) -> Result<Self, String> {
        draft
            .compare(base)
            .map_err(|difference| format!("draft and base tokenizers differ at {difference}"))?;
        if draft_roles.end_of_turn.is_empty() != base_roles.end_of_turn.is_empty() {
            let lacking = if draft_roles.end_of_turn.is_empty() { "draft" } else { "base" };
            return Err(format!("the {lacking} model has no end-of-turn token, its partner has"));
        }
        Ok(Self {
            to_base: pair_up(draft, draft_roles, base, base_roles),
            to_draft: pair_up(base, base_roles, draft, draft_roles),
            draft: draft.clone(),
            base: base.clone(),
        })
    }

    /// The base's id for a draft's; `None` for padding and for tokens the base does not have.
    #[must_use]
    pub fn to_base(&self, id: TokenId) -> Option<TokenId> {
        translate(&self.draft, &self.to_base, id)
    }

    /// The draft's id for a base's; `None` for padding and for tokens the draft does not have.
    #[must_use]
    pub fn to_draft(&self, id: TokenId) -> Option<TokenId> {
        translate(&self.base, &self.to_draft, id)
    }

    /// True if both models number every token alike, so that nothing needs translation.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        let same = |tokenizer: &Tokenizer, map: &BTreeMap<TokenId, TokenId>| {
            tokenizer.added_tokens().all(|(id, _)| map.get(&id) == Some(&id))
        };
        same(&self.draft, &self.to_base) && same(&self.base, &self.to_draft)
    }
}

fn translate(from: &Tokenizer, map: &BTreeMap<TokenId, TokenId>, id: TokenId) -> Option<TokenId> {
    match from.kind(id) {
        Kind::Absent => None,
        Kind::Ordinary => Some(id),
        Kind::Added | Kind::Special => map.get(&id).copied(),
    }
}

fn pair_up(
    from: &Tokenizer,
    from_roles: &SpecialRoles,
    to: &Tokenizer,
    to_roles: &SpecialRoles,
) -> BTreeMap<TokenId, TokenId> {
    let by_text: BTreeMap<&str, TokenId> = to.added_tokens().map(|(id, t)| (t, id)).collect();
    let mut map = BTreeMap::new();
    for (id, text) in from.added_tokens() {
        let twin = by_text.get(text).copied();
        let partner = if from_roles.end_of_turn.contains(&id) {
            // A twin that does not end the partner's turn would let it run on.
            twin.filter(|twin| to_roles.end_of_turn.contains(twin))
                .or(to_roles.end_of_turn.first().copied())
        } else if from_roles.think == Some(id) {
            to_roles.think.or(twin)
        } else if from_roles.close_think == Some(id) {
            to_roles.close_think.or(twin)
        } else {
            twin
        };
        if let Some(partner) = partner {
            map.insert(id, partner);
        }
    }
    map
}

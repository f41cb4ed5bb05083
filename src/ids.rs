//! Newtypes for every index that crosses a module boundary.
//!
//! A token id, a page and a branch are all small integers; mixing two of them up compiles only if
//! somebody writes `.0` twice. Read next: [`crate::config`].

use serde::{Deserialize, Serialize};

/// An entry of a vocabulary. Above the `model` floor ids are always in the base model's numbering;
/// [`crate::text::IdMap`] translates for a draft whose special tokens differ.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
#[repr(transparent)]
pub struct TokenId(pub u32);

// SAFETY: a transparent `u32` has no padding, no niche and no invalid bit pattern.
unsafe impl bytemuck::Pod for TokenId {}
// SAFETY: as above; zero is a valid id.
unsafe impl bytemuck::Zeroable for TokenId {}

impl TokenId {
    /// The id as an index into a vocabulary-sized slice.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the two models of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The small model that writes steps first.
    Draft,
    /// The large model that scores steps and rewrites the rejected ones.
    Base,
}

impl Role {
    /// Both roles, draft first; index with [`Role::index`].
    pub const ALL: [Self; 2] = [Self::Draft, Self::Base];

    /// 0 for the draft, 1 for the base.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The lower-case name used in reports and traces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Base => "base",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A page of the shared KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PageId(pub u32);

impl PageId {
    /// The page as an index into the pool.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A branch of one request: a tail of tokens that may share its beginning with its siblings.
/// Branch 0 exists from the start.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BranchId(pub u32);

impl BranchId {
    /// The branch every request starts with.
    pub const ROOT: Self = Self(0);
}

/// A request, unique within one engine.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {}", self.0)
    }
}

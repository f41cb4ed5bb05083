//! Handles: numbers that stand for the driver's objects and are never addresses.
//!
//! A handle says what kind of thing it names, so that a stale one, or an event passed where a
//! stream belongs, is found out instead of being followed.

use crate::driver::failure::{Code, Outcome, failure};
use std::collections::BTreeMap;
use std::fmt;

/// What the C side passes as an opaque pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Handle(pub u64);

impl Handle {
    /// The null pointer.
    pub const NULL: Self = Self(0);

    /// Whether it is the null pointer.
    #[must_use]
    pub fn is_null(self) -> bool {
        self == Self::NULL
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a handle names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `CUcontext`.
    Context = 1,
    /// `CUstream`.
    Stream,
    /// `CUevent`.
    Event,
    /// `CUmodule`.
    Module,
    /// `CUfunction`.
    Function,
    /// `CUgraph`.
    Graph,
    /// `CUgraphNode`.
    Node,
    /// `CUgraphExec`.
    Executable,
    /// `CUgreenCtx`.
    GreenContext,
    /// `CUdevResourceDesc`.
    Descriptor,
    /// `CUmemoryPool`.
    Pool,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Context => "context",
            Self::Stream => "stream",
            Self::Event => "event",
            Self::Module => "module",
            Self::Function => "function",
            Self::Graph => "graph",
            Self::Node => "graph node",
            Self::Executable => "executable graph",
            Self::GreenContext => "green context",
            Self::Descriptor => "resource descriptor",
            Self::Pool => "memory pool",
        }
    }

    /// The `n`-th handle of this kind on the `generation`-th device of the process. Bit 62 keeps
    /// it out of every host and device address range.
    #[must_use]
    pub fn handle(self, generation: u16, n: u32) -> Handle {
        Handle(1 << 62 | (self as u64) << 48 | u64::from(generation) << 32 | u64::from(n))
    }

    /// The number in a handle of this kind, for logs.
    #[must_use]
    pub fn number_of(self, handle: Handle) -> u32 {
        (handle.0 & 0xFFFF_FFFF) as u32
    }

    /// The failure for a handle that names no live object of this kind.
    #[must_use]
    pub fn stale(self, handle: Handle) -> crate::driver::failure::Failure {
        let code = if self == Self::Context { Code::InvalidContext } else { Code::InvalidHandle };
        failure(code, format!("{handle} is not a live {}", self.name()))
    }
}

/// The live objects of one kind.
#[derive(Debug)]
pub struct Table<T> {
    kind: Kind,
    generation: u16,
    next: u32,
    entries: BTreeMap<Handle, T>,
}

impl<T> Table<T> {
    /// No objects.
    #[must_use]
    pub fn new(kind: Kind, generation: u16) -> Self {
        Self { kind, generation, next: 1, entries: BTreeMap::new() }
    }

    /// Adds an object. A handle is never given twice.
    pub fn insert(&mut self, object: T) -> Handle {
        let handle = self.kind.handle(self.generation, self.next);
        self.next += 1;
        self.entries.insert(handle, object);
        handle
    }

    /// The object.
    ///
    /// # Errors
    /// `InvalidHandle` (`InvalidContext` for contexts) when there is none of that handle.
    pub fn get(&self, handle: Handle) -> Outcome<&T> {
        self.entries.get(&handle).ok_or_else(|| self.kind.stale(handle))
    }

    /// The object, to change it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_mut(&mut self, handle: Handle) -> Outcome<&mut T> {
        self.entries.get_mut(&handle).ok_or_else(|| self.kind.stale(handle))
    }

    /// Takes the object out.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn remove(&mut self, handle: Handle) -> Outcome<T> {
        self.entries.remove(&handle).ok_or_else(|| self.kind.stale(handle))
    }

    /// Every object, in the order they were made.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.entries.iter().map(|(handle, object)| (*handle, object))
    }

    /// Every object, to change it.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Handle, &mut T)> {
        self.entries.iter_mut().map(|(handle, object)| (*handle, object))
    }

    /// Keeps the objects for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.entries.retain(|_, object| keep(object));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_or_foreign_handle_is_found_out() {
        let mut streams = Table::new(Kind::Stream, 1);
        let mut events = Table::new(Kind::Event, 1);
        let stream = streams.insert("stream");
        let event = events.insert("event");
        assert_eq!(*streams.get(stream).unwrap(), "stream");
        assert_eq!(streams.get(event).unwrap_err().code, Code::InvalidHandle);
        streams.remove(stream).unwrap();
        assert_eq!(streams.get(stream).unwrap_err().code, Code::InvalidHandle);
        assert_ne!(streams.insert("another"), stream);
        assert_ne!(Table::new(Kind::Stream, 2).insert("on a fresh device"), stream);
    }
}

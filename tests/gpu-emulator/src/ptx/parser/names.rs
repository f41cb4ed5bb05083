//! What names mean: module-scope symbols, and a stack of scopes inside a function.
//!
//! Every register gets planes of its own here; `compact` lets those share that are never alive
//! together.

use crate::ptx::compact::Unit;
use crate::ptx::ir::{Param, Register};
use std::collections::HashMap;

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) enum Name<'a> {
    Register(Register),
    Predicate(u32),
    /// Index in the parser's shared variables.
    Shared(u32),
    /// Offset in the function's local frame.
    Local(u32),
    /// Offset in the function's parameters.
    Param(u32),
    /// Offset and size in the function's outgoing `.param` variables.
    CallParam(u32, u32),
    /// Index in the module's variables.
    Variable(u32),
    /// Index in the module's functions.
    Function(u32),
    /// `.branchtargets`: label and the line it stands on.
    Targets(Vec<(&'a str, u32)>),
    /// `.callprototype`: inputs, returns.
    Prototype(Vec<Param>, Vec<Param>),
}

/// A run of registers declared as `%r<n>`.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    count: u32,
    /// Width in bits, or `None` for predicates.
    bits: Option<u8>,
}

/// A branch whose label is not placed yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending<'a> {
    pub(super) label: &'a str,
    pub(super) line: u32,
    pub(super) instruction: usize,
    /// Index in a branch table; 0 for a plain branch.
    pub(super) slot: usize,
}

/// A braced scope.
#[derive(Debug, Default)]
struct Scope<'a> {
    names: HashMap<&'a str, Name<'a>>,
    ranges: HashMap<&'a str, Range>,
    labels: HashMap<&'a str, u32>,
    pending: Vec<Pending<'a>>,
    /// Where outgoing parameters stood before the scope.
    call_bytes: u32,
}

/// The scopes of a function, innermost last, and what they have used.
#[derive(Debug)]
pub(super) struct Names<'a> {
    scopes: Vec<Scope<'a>>,
    /// Planes given out.
    pub(super) planes: u32,
    /// Predicates given out.
    pub(super) predicates: u32,
    /// The registers that have the planes.
    pub(super) units: Vec<Unit>,
    call_bytes: u32,
    /// The most bytes of outgoing parameters ever in use.
    pub(super) most_call_bytes: u32,
}

/// Planes a register of that width takes.
pub(super) const fn planes_of(bits: u8) -> u32 {
    Register { plane: 0, bits }.planes()
}

/// Registers one function may declare; more is a malformed file, not a program.
const REGISTER_LIMIT: u32 = 1 << 20;

impl<'a> Names<'a> {
    pub(super) fn new() -> Self {
        Self {
            scopes: vec![Scope::default()],
            planes: 0,
            predicates: 0,
            units: Vec::new(),
            call_bytes: 0,
            most_call_bytes: 0,
        }
    }

    fn top(&mut self) -> &mut Scope<'a> {
        self.scopes.last_mut().expect("the function's own scope is closed only with it")
    }

    pub(super) fn depth(&self) -> usize {
        self.scopes.len()
    }

    pub(super) fn open(&mut self) {
        self.scopes.push(Scope { call_bytes: self.call_bytes, ..Scope::default() });
    }

    /// Closes the innermost scope: its branches that found their label, with the label's
    /// instruction. The others wait for the scope around; of the outermost they are `Err`.
    pub(super) fn close(&mut self) -> Result<Vec<(Pending<'a>, u32)>, Pending<'a>> {
        let scope = self.scopes.pop().expect("one scope is open");
        let mut placed = Vec::new();
        let mut waiting = Vec::new();
        for pending in scope.pending {
            match scope.labels.get(pending.label) {
                Some(target) => placed.push((pending, *target)),
                None => waiting.push(pending),
            }
        }
        if let Some(outer) = self.scopes.last_mut() {
            outer.pending.append(&mut waiting);
            self.call_bytes = scope.call_bytes;
        } else if let Some(lost) = waiting.first() {
            return Err(*lost);
        }
        Ok(placed)
    }

    /// Gives a name a meaning in the innermost scope.
    pub(super) fn declare(&mut self, name: &'a str, meaning: Name<'a>) -> Result<(), String> {
        match self.top().names.insert(name, meaning) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` is declared twice in one scope")),
        }
    }

    pub(super) fn label(&mut self, name: &'a str, target: u32) -> Result<(), String> {
        match self.top().labels.insert(name, target) {
            None => Ok(()),
            Some(_) => Err(format!("label `{name}` is placed twice in one scope")),
        }
    }

    pub(super) fn wait_for(&mut self, pending: Pending<'a>) {
        self.top().pending.push(pending);
    }

    /// `count` registers (predicates if `bits` is `None`); the index of the first.
    fn allocate(&mut self, bits: Option<u8>, count: u32) -> Result<u32, String> {
        let each = bits.map_or(1, planes_of);
        let next = if bits.is_some() { &mut self.planes } else { &mut self.predicates };
        let first = *next;
        let end = u64::from(first) + u64::from(count) * u64::from(each);
        if end > u64::from(REGISTER_LIMIT) {
            return Err(format!("more than {REGISTER_LIMIT} registers in one function"));
        }
        *next = end as u32;
        if bits.is_some() {
            let units = (0..count).map(|i| Unit { plane: first + i * each, planes: each });
            self.units.extend(units);
        }
        Ok(first)
    }

    /// A register nobody can name, gone with the scope.
    pub(super) fn temporary(&mut self, bits: u8) -> Result<u32, String> {
        self.allocate(Some(bits), 1)
    }

    /// `.reg .b32 name;`
    pub(super) fn register(&mut self, name: &'a str, bits: Option<u8>) -> Result<(), String> {
        let first = self.allocate(bits, 1)?;
        let meaning = match bits {
            Some(bits) => Name::Register(Register { plane: first, bits }),
            None => Name::Predicate(first),
        };
        self.declare(name, meaning)
    }

    /// `.reg .b32 prefix<count>;`
    pub(super) fn registers(
        &mut self,
        prefix: &'a str,
        bits: Option<u8>,
        count: u32,
    ) -> Result<(), String> {
        let first = self.allocate(bits, count)?;
        match self.top().ranges.insert(prefix, Range { first, count, bits }) {
            None => Ok(()),
            Some(_) => Err(format!("registers `{prefix}` are declared twice in one scope")),
        }
    }

    /// An outgoing parameter of `size` bytes.
    pub(super) fn call_param(
        &mut self,
        name: &'a str,
        size: u32,
        align: u32,
    ) -> Result<(), String> {
        let offset = self.call_bytes.next_multiple_of(align.max(1));
        self.call_bytes = offset.checked_add(size).ok_or("too many parameter bytes")?;
        self.most_call_bytes = self.most_call_bytes.max(self.call_bytes);
        self.declare(name, Name::CallParam(offset, size))
    }

    /// What a name means, from the innermost scope outwards.
    pub(super) fn find(&self, name: &str) -> Option<Name<'a>> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.names.get(name).cloned().or_else(|| scope.in_range(name)))
    }
}

impl<'a> Scope<'a> {
    /// The register of a range: its prefix, then a number without leading zeros.
    fn in_range(&self, name: &str) -> Option<Name<'a>> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        (name.len() - digits..name.len()).find_map(|cut| {
            let (prefix, number) = name.split_at_checked(cut)?;
            let range = self.ranges.get(prefix)?;
            let index: u32 = number.parse().ok()?;
            let canonical = number.len() == 1 || !number.starts_with('0');
            (canonical && index < range.count).then(|| match range.bits {
                Some(bits) => {
                    let plane = range.first + index * planes_of(bits);
                    Name::Register(Register { plane, bits })
                }
                None => Name::Predicate(range.first + index),
            })
        })
    }
}

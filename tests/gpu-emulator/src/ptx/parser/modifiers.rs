//! The dotted words after an opcode. Each is taken by whoever understands it; one that nobody took
//! is an error, so no modifier is ever ignored by accident.

use super::cursor::Parsed;
use crate::ptx::ir::{Rounding, Scope, Type};

/// The modifiers of one instruction.
pub(super) struct Modifiers<'a> {
    words: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(super) fn new(words: Vec<&'a str>) -> Self {
        Self { words }
    }

    /// Takes the word wherever it stands.
    pub(super) fn take(&mut self, word: &str) -> bool {
        match self.words.iter().position(|w| *w == word) {
            Some(at) => {
                self.words.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first word of the table that is present and gives its value.
    pub(super) fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(word, _)| self.take(word)).map(|(_, value)| *value)
    }

    /// Takes and returns all words that `test` accepts.
    pub(super) fn take_where(&mut self, test: impl Fn(&str) -> bool) -> Vec<&'a str> {
        let (taken, left) = self.words.iter().partition(|w| test(w));
        self.words = left;
        taken
    }

    /// Takes the leftmost type.
    pub(super) fn optional_type(&mut self) -> Option<Type> {
        let at = self.words.iter().position(|w| type_named(w).is_some())?;
        type_named(self.words.remove(at))
    }

    /// Takes the leftmost type, which must be there.
    pub(super) fn ty(&mut self) -> Parsed<Type> {
        self.optional_type().ok_or_else(|| "the instruction has no type it is known with".into())
    }

    /// Takes a rounding of a float result.
    pub(super) fn rounding(&mut self) -> Option<Rounding> {
        self.one_of(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
        ])
    }

    /// Takes a scope.
    pub(super) fn scope(&mut self) -> Option<Scope> {
        self.one_of(&[
            ("cta", Scope::Cta),
            ("cluster", Scope::Cluster),
            ("gpu", Scope::Gpu),
            ("sys", Scope::Sys),
        ])
    }

    /// Takes a word that has to be there.
    pub(super) fn require(&mut self, word: &str) -> Parsed<()> {
        if self.take(word) { Ok(()) } else { Err(format!("modifier `.{word}` is missing")) }
    }

    /// Fails on any word nobody took.
    pub(super) fn finish(&self) -> Parsed<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!("modifier `.{word}` is not known here")),
        }
    }
}

/// The type of that name.
pub(super) fn type_named(word: &str) -> Option<Type> {
    Some(match word {
        "b8" => Type::B8,
        "b16" => Type::B16,
        "b32" => Type::B32,
        "b64" => Type::B64,
        "b128" => Type::B128,
        "u8" => Type::U8,
        "u16" => Type::U16,
        "u32" => Type::U32,
        "u64" => Type::U64,
        "s8" => Type::S8,
        "s16" => Type::S16,
        "s32" => Type::S32,
        "s64" => Type::S64,
        "f16" => Type::F16,
        "f16x2" => Type::F16x2,
        "bf16" => Type::Bf16,
        "bf16x2" => Type::Bf16x2,
        "tf32" => Type::Tf32,
        "f32" => Type::F32,
        "f64" => Type::F64,
        "f32x2" => Type::F32x2,
        "u16x2" => Type::U16x2,
        "s16x2" => Type::S16x2,
        "e4m3" => Type::E4m3,
        "e5m2" => Type::E5m2,
        "e4m3x2" => Type::E4m3x2,
        "e5m2x2" => Type::E5m2x2,
        "pred" => Type::Pred,
        _ => return None,
    })
}

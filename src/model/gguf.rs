//! Reading the header of a GGUF file: metadata and the table of tensors.
//!
//! Works on borrowed bytes and copies nothing but names, so a file of any size costs what its
//! header costs. Invariant: every count and length in the file is compared with the bytes that are
//! left before anything is sized by it, and every tensor of a known type lies inside the file.
//! Read next: [`super::gguf_model`], which turns the metadata into an architecture.

use std::collections::BTreeMap;

use super::file_bytes::{Blame, excerpt};
use super::tensors::StoredTensor;
use crate::device::blocks::BlockType;
use crate::error::LoadError;

/// Metadata entries a file may have; real files have about fifty.
const ENTRIES_MAX: u64 = 1 << 16;
/// Tensors a file may have; real files have at most a few thousand.
const TENSORS_MAX: u64 = 1 << 16;
/// Dimensions a tensor may have, as in GGML.
const DIMENSIONS_MAX: u32 = 4;
/// Alignment of tensor data unless `general.alignment` says otherwise.
const ALIGNMENT_DEFAULT: u64 = 32;

/// The header of a GGUF file, borrowing from its bytes.
pub(super) struct Gguf<'a> {
    blame: Blame<'a>,
    /// Version of the format, 2 or 3.
    pub(super) version: u32,
    entries: BTreeMap<&'a str, Value<'a>>,
    /// Every tensor, in the order of the file; shapes are row-major (the slowest dimension first).
    pub(super) tensors: Vec<StoredTensor>,
}

/// One metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(&'a str),
    /// Elements of one scalar type, still encoded.
    Array(Array<'a>),
}

/// An array whose elements have been walked once, so that decoding them cannot fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Array<'a> {
    kind: u32,
    /// Number of elements.
    pub(super) count: usize,
    bytes: &'a [u8],
}

/// The format's numbers of value types.
mod value_type {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

fn value_type_name(kind: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64",
        "f64",
    ];
    NAMES.get(kind as usize).copied().unwrap_or("unknown")
}

impl Value<'_> {
    /// What the value is, for messages.
    fn kind_name(&self) -> String {
        match self {
            Self::Unsigned(n) => format!("unsigned integer {n}"),
            Self::Signed(n) => format!("signed integer {n}"),
            Self::Float(n) => format!("float {n}"),
            Self::Bool(b) => format!("bool {b}"),
            Self::Text(text) => format!("string \"{}\"", excerpt(text)),
            Self::Array(array) => {
                format!("array of {} {}", array.count, value_type_name(array.kind))
            }
        }
    }
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(n) => n.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::Text(text) => f.write_str(&excerpt(text)),
            Self::Array(_) => f.write_str(&self.kind_name()),
        }
    }
}

/// A position in the header. Every read names what it reads, for the error.
struct Cursor<'a> {
    blame: Blame<'a>,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], LoadError> {
        let left = self.left();
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let taken = &self.bytes[self.at..][..length];
                self.at += length;
                Ok(taken)
            }
            _ => Err(self.blame.malformed(
                what,
                format!("{length} bytes at offset {}", self.at),
                format!("the end of the file after {left} bytes"),
            )),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadError> {
        Ok(self.take(N as u64, what)?.try_into().expect("take returns the length asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, LoadError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map_err(|e| self.blame.malformed(what, "UTF-8 text", format!("invalid bytes ({e})")))
    }

    fn value(&mut self, kind: u32, what: &str) -> Result<Value<'a>, LoadError> {
        Ok(match kind {
            value_type::U8 => Value::Unsigned(self.array::<1>(what)?[0].into()),
            value_type::I8 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            value_type::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            value_type::I16 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            value_type::U32 => Value::Unsigned(self.u32(what)?.into()),
            value_type::I32 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            value_type::U64 => Value::Unsigned(self.u64(what)?),
            value_type::I64 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            value_type::F32 => Value::Float(f32::from_le_bytes(self.array(what)?).into()),
            value_type::F64 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            value_type::BOOL => match self.array::<1>(what)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.blame.malformed(what, "bool 0 or 1", other)),
            },
            value_type::STRING => Value::Text(self.text(what)?),
            value_type::ARRAY => Value::Array(self.array_value(what)?),
            other => {
                return Err(self.blame.malformed(what, "a value type from 0 to 12", other));
            }
        })
    }

    fn array_value(&mut self, what: &str) -> Result<Array<'a>, LoadError> {
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        let start = self.at;
        match scalar_bytes(kind) {
            Some(size) => {
                let Some(length) = count.checked_mul(size) else {
                    return Err(self.count_error(what, count));
                };
                self.take(length, what)?;
            }
            None if kind == value_type::STRING => {
                // Each string has at least its length, so a forged count fails here, not later.
                if count > (self.left() / size_of::<u64>()) as u64 {
                    return Err(self.count_error(what, count));
                }
                for _ in 0..count {
                    self.text(what)?;
                }
            }
            None => {
                return Err(self.blame.unsupported(
                    what,
                    format!("an array of {} (type {kind})", value_type_name(kind)),
                    "arrays of numbers, bools or strings",
                ));
            }
        }
        let count = usize::try_from(count).expect("the elements fit in memory that is mapped");
        Ok(Array { kind, count, bytes: &self.bytes[start..self.at] })
    }

    fn count_error(&self, what: &str, count: u64) -> LoadError {
        self.blame.malformed(
            what,
            format!("elements that fit in the {} bytes left", self.left()),
            format!("a count of {count}"),
        )
    }
}

/// Size of one element of a fixed-size type.
fn scalar_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        value_type::U8 | value_type::I8 | value_type::BOOL => 1,
        value_type::U16 | value_type::I16 => 2,
        value_type::U32 | value_type::I32 | value_type::F32 => 4,
        value_type::U64 | value_type::I64 | value_type::F64 => 8,
        _ => return None,
    })
}

/// The name of a tensor type this engine does not read, for messages.
fn ggml_type_name(number: u32) -> String {
    let known = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return format!("type {number}"),
    };
    format!("{known} (type {number})")
}

impl<'a> Gguf<'a> {
    /// Reads and checks the header of `bytes`.
    ///
    /// # Errors
    /// [`LoadError`] naming the field or tensor.
    pub(super) fn parse(blame: Blame<'a>, bytes: &'a [u8]) -> Result<Self, LoadError> {
        let mut cursor = Cursor { blame, bytes, at: 0 };
        let magic: [u8; 4] = cursor.array("magic")?;
        if magic != *b"GGUF" {
            return Err(blame.malformed("magic", "\"GGUF\"", magic.escape_ascii()));
        }
        let version = cursor.u32("version")?;
        if !matches!(version, 2 | 3) {
            let got = if matches!(version.swap_bytes(), 1..=16) {
                format!("{} in big-endian byte order", version.swap_bytes())
            } else {
                version.to_string()
            };
            return Err(blame.unsupported("GGUF version", got, "2 and 3, little-endian"));
        }
        let tensor_count = cursor.u64("number of tensors")?;
        let entry_count = cursor.u64("number of metadata entries")?;
        if tensor_count > TENSORS_MAX {
            let expected = format!("at most {TENSORS_MAX}");
            return Err(blame.malformed("number of tensors", expected, tensor_count));
        }
        if entry_count > ENTRIES_MAX {
            let expected = format!("at most {ENTRIES_MAX}");
            return Err(blame.malformed("number of metadata entries", expected, entry_count));
        }
        let mut gguf = Self { blame, version, entries: BTreeMap::new(), tensors: Vec::new() };
        for index in 0..entry_count {
            let key = cursor.text(&format!("key of metadata entry {index}"))?;
            let what = excerpt(key);
            let kind = cursor.u32(&what)?;
            let value = cursor.value(kind, &what)?;
            if gguf.entries.insert(key, value).is_some() {
                return Err(blame.malformed(what, "one entry of this name", "several"));
            }
        }
        gguf.read_tensors(&mut cursor, tensor_count)?;
        Ok(gguf)
    }

    fn read_tensors(&mut self, cursor: &mut Cursor<'a>, count: u64) -> Result<(), LoadError> {
        let blame = self.blame;
        let alignment = self.u32("general.alignment")?.map_or(ALIGNMENT_DEFAULT, u64::from);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            let expected = "a power of two up to 1048576";
            return Err(blame.malformed("general.alignment", expected, alignment));
        }
        let mut offsets = Vec::new();
        for index in 0..count {
            let name = cursor.text(&format!("name of tensor {index}"))?;
            let what = format!("tensor {}", excerpt(name));
            let dimensions = cursor.u32(&what)?;
            if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
                let expected = format!("1 to {DIMENSIONS_MAX} dimensions");
                return Err(blame.malformed(what, expected, dimensions));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                let size = cursor.u64(&what)?;
                let size = usize::try_from(size)
                    .map_err(|_| blame.malformed(&what, "a size that fits in memory", size))?;
                shape.push(size);
            }
            // GGUF lists the fastest dimension first.
            shape.reverse();
            let number = cursor.u32(&what)?;
            let kind = BlockType::from_ggml(number).ok_or_else(|| ggml_type_name(number));
            let offset = cursor.u64(&what)?;
            if !offset.is_multiple_of(alignment) {
                let expected = format!("an offset that is a multiple of {alignment}");
                return Err(blame.malformed(what, expected, offset));
            }
            offsets.push(offset);
            self.tensors.push(StoredTensor {
                name: name.to_owned(),
                kind,
                shape,
                file: 0,
                bytes: 0..0,
            });
        }
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let file_bytes = cursor.bytes.len() as u64;
        for (tensor, offset) in self.tensors.iter_mut().zip(offsets) {
            // The size of an unknown type is unknown; such a tensor is refused when it is needed.
            let Ok(kind) = tensor.kind else { continue };
            let what = || format!("tensor {}", excerpt(&tensor.name));
            let Some(size) = tensor.size_bytes(kind) else {
                return Err(blame.malformed(
                    what(),
                    format!("rows of whole {kind} blocks of {} elements", kind.block_elements()),
                    format!("shape {:?}", tensor.shape),
                ));
            };
            let start = data_start.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(size as u64));
            match (start, end) {
                (Some(start), Some(end)) if end <= file_bytes => {
                    // Both are at most the length of the slice.
                    tensor.bytes = start as usize..end as usize;
                }
                _ => {
                    return Err(blame.malformed(
                        what(),
                        format!("{size} bytes at offset {offset} of the data at {data_start}"),
                        format!("a file of {file_bytes} bytes"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries.get(key)
    }

    /// Every entry, sorted by key.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        self.entries.iter().map(|(key, value)| (*key, value))
    }

    fn wrong_type(&self, key: &str, expected: &str, value: &Value<'_>) -> LoadError {
        self.blame.malformed(key, expected, value.kind_name())
    }

    /// A non-negative integer of any width.
    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match *value {
            Value::Unsigned(n) => u32::try_from(n).ok(),
            Value::Signed(n) => u32::try_from(n).ok(),
            _ => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(key, "an unsigned 32-bit integer", value)),
        }
    }

    /// As [`Self::u32`], but the key must exist.
    pub(super) fn required_u32(&self, key: &str) -> Result<u32, LoadError> {
        self.u32(key)?.ok_or_else(|| self.blame.malformed(key, "an integer", "nothing"))
    }

    /// A number of any type.
    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match *value {
            Value::Float(n) => Ok(Some(n)),
            Value::Unsigned(n) => Ok(Some(n as f64)),
            Value::Signed(n) => Ok(Some(n as f64)),
            _ => Err(self.wrong_type(key, "a number", value)),
        }
    }

    /// A boolean.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(self.wrong_type(key, "a bool", value)),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong_type(key, "a string", value)),
        }
    }

    /// An array of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.kind == value_type::STRING => {
                Ok(Some(array.texts(self.blame)?))
            }
            Some(value) => Err(self.wrong_type(key, "an array of strings", value)),
        }
    }

    /// An array of 32-bit signed (or unsigned, below 2³¹) integers.
    pub(super) fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, LoadError> {
        let decode = |word: [u8; 4]| i32::from_le_bytes(word);
        self.words(key, &[value_type::I32, value_type::U32], "an array of i32", decode)
    }

    /// An array of f32.
    pub(super) fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.words(key, &[value_type::F32], "an array of f32", f32::from_le_bytes)
    }

    fn words<T>(
        &self,
        key: &str,
        kinds: &[u32],
        expected: &str,
        decode: impl Fn([u8; 4]) -> T,
    ) -> Result<Option<Vec<T>>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if kinds.contains(&array.kind) => {
                let (words, _) = array.bytes.as_chunks::<4>();
                Ok(Some(words.iter().map(|word| decode(*word)).collect()))
            }
            Some(value) => Err(self.wrong_type(key, expected, value)),
        }
    }
}

impl<'a> Array<'a> {
    fn texts(&self, blame: Blame<'a>) -> Result<Vec<&'a str>, LoadError> {
        let mut cursor = Cursor { blame, bytes: self.bytes, at: 0 };
        (0..self.count).map(|_| cursor.text("array of strings")).collect()
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;

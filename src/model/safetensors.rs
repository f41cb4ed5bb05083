//! Reading the headers of safetensors files and the index of a sharded checkpoint.
//!
//! A safetensors file is eight bytes of length, a JSON header of that length, and data. The header
//! is parsed here rather than by the `safetensors` crate because its errors do not say which
//! tensor is wrong; a test holds the two to the same answers. Invariant: the tensors of a file lie
//! one after the other and cover its data exactly, as the format demands.
//! Read next: [`super::tensors`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::file_bytes::{Blame, excerpt};
use super::tensors::StoredTensor;
use crate::device::blocks::BlockType;
use crate::error::LoadError;

/// Longest header the format allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Shards an index may name; the largest published checkpoints have a few hundred.
const SHARDS_MAX: usize = 4096;
/// Tensors one file may have.
const TENSORS_MAX: usize = 1 << 16;
/// Dimensions a tensor may have.
const DIMENSIONS_MAX: usize = 8;

/// The tensors of one file, in the order of their data. `file` is its number in the checkpoint.
///
/// # Errors
/// [`LoadError`] naming the tensor or header field.
pub(super) fn read_header(
    blame: Blame<'_>,
    bytes: &[u8],
    file: usize,
) -> Result<Vec<StoredTensor>, LoadError> {
    let what = "safetensors header";
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let got = format!("a file of {} bytes", bytes.len());
        return Err(blame.malformed(what, "8 bytes of length", got));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX.min(rest.len() as u64) {
        let most = HEADER_BYTES_MAX.min(rest.len() as u64);
        return Err(blame.malformed(what, format!("a length of at most {most}"), length));
    }
    let (header, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(header)
        .map_err(|e| blame.malformed(what, "UTF-8 text", format!("invalid bytes ({e})")))?;
    let Header(entries) = serde_json::from_str(text)
        .map_err(|e| blame.malformed(what, "a JSON object of tensors", e))?;

    let data_start = 8 + length as usize;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let what = || format!("tensor {}", excerpt(&name));
        let shape: Option<Vec<usize>> =
            entry.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        let Some(shape) = shape else {
            return Err(blame.malformed(what(), "sizes that fit in memory", "larger ones"));
        };
        let [start, end] = entry.data_offsets;
        if start > end || end > data.len() as u64 {
            return Err(blame.malformed(
                what(),
                format!("data offsets within {} bytes of data", data.len()),
                format!("{start} to {end}"),
            ));
        }
        let kind = match entry.dtype.as_str() {
            "F32" => Ok(BlockType::F32),
            "F16" => Ok(BlockType::F16),
            "BF16" => Ok(BlockType::BF16),
            other => Err(excerpt(other)),
        };
        // Both ends are at most the length of a slice.
        let bytes = data_start + start as usize..data_start + end as usize;
        let tensor = StoredTensor { kind, shape, file, bytes, name: name.clone() };
        if let Ok(kind) = tensor.kind {
            let elements = tensor.shape.iter().try_fold(1usize, |p, &n| p.checked_mul(n));
            let size = elements.and_then(|n| n.checked_mul(kind.block_bytes()));
            if size != Some(tensor.bytes.len()) {
                let got = format!("{} bytes", tensor.bytes.len());
                return Err(blame.malformed(
                    what(),
                    format!("{kind} data of shape {:?}", tensor.shape),
                    got,
                ));
            }
        }
        tensors.push(tensor);
    }
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    let mut covered = data_start;
    for tensor in &tensors {
        if tensor.bytes.start != covered {
            return Err(blame.malformed(
                format!("tensor {}", excerpt(&tensor.name)),
                format!("data from offset {}, where the one before it ends", covered - data_start),
                tensor.bytes.start - data_start,
            ));
        }
        covered = tensor.bytes.end;
    }
    if covered != bytes.len() {
        return Err(blame.malformed(
            "length of the file",
            format!("{covered} bytes by its header"),
            bytes.len(),
        ));
    }
    Ok(tensors)
}

/// The header's tensors by name.
struct Header(BTreeMap<String, Entry>);

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "bounded_shape")]
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == TENSORS_MAX {
                        return Err(A::Error::custom("more than 65536 tensors"));
                    }
                    let entry = map.next_value().map_err(|e| {
                        A::Error::custom(format_args!("tensor {}: {e}", excerpt(&name)))
                    })?;
                    let doubled = || format!("two tensors named {}", excerpt(&name));
                    if entries.contains_key(&name) {
                        return Err(A::Error::custom(doubled()));
                    }
                    entries.insert(name, entry);
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A shape of few dimensions: a header of nothing but sizes must not grow a vector.
fn bounded_shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Shape;

    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of sizes")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(size) = seq.next_element()? {
                if shape.len() == DIMENSIONS_MAX {
                    return Err(A::Error::custom("more than 8 dimensions"));
                }
                shape.push(size);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(Shape)
}

/// The `weight_map` of a `model.safetensors.index.json`: tensor name to file name.
#[derive(Debug)]
pub(super) struct Index {
    files: Vec<String>,
    weight_map: HashMap<String, String>,
}

impl Index {
    /// Parses the index. File names must be plain names within the folder.
    ///
    /// # Errors
    /// [`LoadError`] naming the field.
    pub(super) fn parse(blame: Blame<'_>, bytes: &[u8]) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Fields {
            weight_map: HashMap<String, String>,
        }
        let Fields { weight_map } = serde_json::from_slice(bytes)
            .map_err(|e| blame.malformed("index", "a JSON object with a weight_map", e))?;
        let mut files: Vec<String> = weight_map.values().cloned().collect();
        files.sort_unstable();
        files.dedup();
        for file in &files {
            let plain = file.ends_with(".safetensors") && !file.contains(['/', '\\', ':', '\0']);
            if !plain {
                let expected = "names of .safetensors files in the same folder";
                return Err(blame.malformed("weight_map", expected, file));
            }
        }
        if files.is_empty() || files.len() > SHARDS_MAX {
            let expected = format!("1 to {SHARDS_MAX} files");
            return Err(blame.malformed("weight_map", expected, files.len()));
        }
        Ok(Self { files, weight_map })
    }

    /// The shards, sorted.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// Checks that every tensor of the map is in the shard it names; `tensors[i].file` counts in
    /// the order of [`Self::files`].
    ///
    /// # Errors
    /// [`LoadError`] naming the tensor.
    pub(super) fn check(
        &self,
        blame: Blame<'_>,
        tensors: &[StoredTensor],
    ) -> Result<(), LoadError> {
        let stored: HashMap<(&str, &str), ()> =
            tensors.iter().map(|t| ((&*t.name, &*self.files[t.file]), ())).collect();
        // The smallest name, so that the message does not depend on hashing.
        let missing = self
            .weight_map
            .iter()
            .filter(|(tensor, file)| !stored.contains_key(&(tensor.as_str(), file.as_str())))
            .min();
        match missing {
            None => Ok(()),
            Some((tensor, file)) => Err(blame.malformed(
                format!("tensor {}", excerpt(tensor)),
                format!("data in {}", excerpt(file)),
                "no tensor of this name there",
            )),
        }
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;

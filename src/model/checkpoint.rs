//! An opened model, ready to be loaded: what it is, where its tensors are, how it writes text.
//!
//! One view of both formats, Hugging Face folders and GGUF files; nothing above this module knows
//! which it was. Opening maps the weights and checks everything, and takes memory for nothing but
//! names. Invariant: after [`Checkpoint::open`] every tensor of the architecture is there, with
//! the right shape, in a supported type, in Hugging Face's row order.
//! Read next: [`super::architecture`], [`super::tensors`].

use std::path::{Path, PathBuf};

use super::architecture::Architecture;
use super::file_bytes::{Blame, FileBytes};
use super::gguf::Gguf;
use super::hf_folder::{self, FolderFiles};
use super::tensors::{Format, TensorInfo, TensorMap, TensorName, TensorView};
use super::{gguf_model, tensors};
use crate::error::LoadError;
use crate::text::{GgufVocab, SpecialText};

/// A model file or folder that was opened and found usable.
#[derive(Debug)]
pub struct Checkpoint {
    /// As the user gave it; errors name it.
    name: String,
    /// Canonical path, if it came from one.
    path: Option<PathBuf>,
    format: Format,
    architecture: Architecture,
    files: Vec<FileBytes>,
    stored: Vec<tensors::StoredTensor>,
    tensors: TensorMap,
    text: TextSettings,
    tokenizer_json: Option<FileBytes>,
    summary: Vec<(String, String)>,
}

/// What the tokenizer of a checkpoint is built from.
#[derive(Debug)]
pub enum TokenizerSource<'a> {
    /// The bytes of `tokenizer.json`.
    Json(&'a [u8]),
    /// The vocabulary in GGUF metadata.
    Gguf(GgufVocab),
}

/// Sampling settings the model's authors recommend; `None` where they say nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Smallest set of tokens with at least this probability.
    pub top_p: Option<f32>,
    /// The most likely tokens; 0 is all.
    pub top_k: Option<u32>,
    /// Least probability relative to the most likely token.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that were used.
    pub repetition_penalty: Option<f32>,
    /// False for models that are meant to be decoded greedily.
    pub do_sample: Option<bool>,
}

/// How the model writes text, apart from its tokenizer.
#[derive(Debug, Clone, Default)]
pub(super) struct TextSettings {
    pub(super) chat_template: Option<String>,
    pub(super) special: SpecialText,
    pub(super) eos_ids: Vec<u32>,
    pub(super) bos: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) generation: GenerationDefaults,
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a `.gguf` file, and checks all of it that can be checked
    /// without reading the weights.
    ///
    /// # Errors
    /// [`LoadError`] naming the file and the tensor or field, what was expected and what found.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let io = |source| LoadError::Io { path: name.clone(), source };
        let canonical = path.canonicalize().map_err(io)?;
        let mut checkpoint = if canonical.is_dir() {
            Self::from_folder(name.clone(), FolderFiles::Disk(path.to_owned()))?
        } else {
            let bytes = FileBytes::map(path)?;
            Self::from_gguf(&name, bytes)?
        };
        checkpoint.path = Some(canonical);
        Ok(checkpoint)
    }

    /// As [`Checkpoint::open`] for files compiled into the program, by name.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(files: &[(&'static str, &'static [u8])]) -> Result<Self, LoadError> {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), FileBytes::from(*bytes)));
        Self::from_files("embedded", files)
    }

    /// As [`Checkpoint::open`] for a folder whose files are in memory, by name.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_files(
        name: &str,
        files: impl IntoIterator<Item = (String, FileBytes)>,
    ) -> Result<Self, LoadError> {
        let files = files.into_iter().collect();
        Self::from_folder(name.to_owned(), FolderFiles::Memory { name: name.to_owned(), files })
    }

    /// As [`Checkpoint::open`] for the bytes of a GGUF file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_gguf(name: &str, bytes: FileBytes) -> Result<Self, LoadError> {
        let blame = Blame(name);
        let gguf = Gguf::parse(blame, &bytes)?;
        let architecture = gguf_model::architecture(&gguf, blame, &bytes)?;
        let text = gguf_model::text_settings(&gguf, blame, &architecture)?;
        // Copied and dropped: a vocabulary that cannot be read is an error now, not later.
        gguf_model::vocabulary(&gguf, blame)?;
        let summary = gguf_model::summary(&gguf);
        let stored = gguf.tensors;
        let file_names = [name.to_owned()];
        let tensors = TensorMap::resolve(Format::Gguf, &architecture, &stored, &file_names, name)?;
        Ok(Self {
            name: name.to_owned(),
            path: None,
            format: Format::Gguf,
            architecture,
            files: vec![bytes],
            stored,
            tensors,
            text,
            tokenizer_json: None,
            summary,
        })
    }

    fn from_folder(name: String, files: FolderFiles) -> Result<Self, LoadError> {
        let folder = hf_folder::read(files)?;
        let tensors = TensorMap::resolve(
            Format::Folder,
            &folder.architecture,
            &folder.tensors,
            &folder.file_names,
            &name,
        )?;
        Ok(Self {
            name,
            path: None,
            format: Format::Folder,
            architecture: folder.architecture,
            files: folder.files,
            stored: folder.tensors,
            tensors,
            text: folder.text,
            tokenizer_json: folder.tokenizer_json,
            summary: folder.summary,
        })
    }

    /// The path or name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The canonical path, by which two checkpoints are known to be the same.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Which of the two formats it was.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Sizes and variants.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// A tensor in Hugging Face's row order; the embedding for the head of a tied model. Borrowed
    /// from the file except for the q and k of llama GGUFs, whose rows have to be put in order.
    ///
    /// # Errors
    /// [`LoadError::Malformed`] if the architecture has no such tensor.
    pub fn tensor(&self, name: TensorName) -> Result<TensorView<'_>, LoadError> {
        self.tensors.view(name, &self.files).ok_or_else(|| {
            let what = format!("tensor {}", name.in_file(self.format));
            let expected = format!("a tensor that {} models have", self.architecture.family);
            Blame(&self.name).malformed(what, expected, "none")
        })
    }

    /// Gives back the pages of the files that were read, see [`FileBytes::release`].
    pub fn release(&self) {
        self.files.iter().for_each(FileBytes::release);
    }

    /// What to build the tokenizer from.
    ///
    /// # Errors
    /// [`LoadError::Io`] if a folder has no `tokenizer.json`.
    pub fn tokenizer_source(&self) -> Result<TokenizerSource<'_>, LoadError> {
        match self.format {
            Format::Gguf => {
                let blame = Blame(&self.name);
                let gguf = Gguf::parse(blame, &self.files[0])?;
                gguf_model::vocabulary(&gguf, blame).map(TokenizerSource::Gguf)
            }
            Format::Folder => match &self.tokenizer_json {
                Some(bytes) => Ok(TokenizerSource::Json(bytes)),
                None => Err(LoadError::Io {
                    path: format!("{}/tokenizer.json", self.name),
                    source: std::io::ErrorKind::NotFound.into(),
                }),
            },
        }
    }

    /// The Jinja source of the chat template.
    #[must_use]
    pub fn chat_template(&self) -> Option<String> {
        self.text.chat_template.clone()
    }

    /// The texts of the special tokens.
    #[must_use]
    pub fn special_text(&self) -> &SpecialText {
        &self.text.special
    }

    /// Ids that end generation, the most usual first; empty where the files name none.
    #[must_use]
    pub fn eos_ids(&self) -> Vec<u32> {
        self.text.eos_ids.clone()
    }

    /// The id of the beginning-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.text.bos
    }

    /// Whether text without a template begins with [`Self::bos`]. For folders this is
    /// `tokenizer_config.json`'s word; a post-processor in `tokenizer.json` may add it as well.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.text.add_bos
    }

    /// Sampling settings its authors recommend.
    #[must_use]
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.text.generation
    }

    /// Bytes of the weight files together.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    /// Every tensor in the files, in their order.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorInfo> {
        self.stored.iter().map(tensors::StoredTensor::info).collect()
    }

    /// The metadata or configuration as lines of key and value, shortened for people.
    #[must_use]
    pub fn metadata_summary(&self) -> &[(String, String)] {
        &self.summary
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;

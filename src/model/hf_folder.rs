//! Opening a Hugging Face folder, on disk or compiled into the binary.
//!
//! Finds the files, maps the weights, reads the small ones. Invariant: only plain names inside the
//! folder are ever opened. Read next: [`super::safetensors`] and [`super::hf_config`].

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::architecture::Architecture;
use super::checkpoint::TextSettings;
use super::file_bytes::{Blame, FileBytes};
use super::hf_config::{self, Fields};
use super::safetensors::{Index, read_header};
use super::tensors::StoredTensor;
use crate::error::LoadError;

/// Largest `config.json` and `generation_config.json` that are parsed.
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Largest `tokenizer_config.json`, which lists the added tokens.
const TOKENIZER_CONFIG_BYTES_MAX: usize = 8 << 20;
/// Largest index of shards.
const INDEX_BYTES_MAX: usize = 16 << 20;
/// Largest `tokenizer.json` and `chat_template.jinja`.
const TEXT_BYTES_MAX: usize = 256 << 20;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Where the files of a folder come from.
pub(super) enum FolderFiles {
    /// A directory.
    Disk(PathBuf),
    /// Files by name.
    Memory {
        /// What errors call the folder.
        name: String,
        /// The files; each is taken once.
        files: HashMap<String, FileBytes>,
    },
}

impl FolderFiles {
    fn path_of(&self, file: &str) -> String {
        match self {
            Self::Disk(folder) => folder.join(file).display().to_string(),
            Self::Memory { name, .. } => format!("{name}/{file}"),
        }
    }

    fn take(&mut self, file: &str) -> Result<Option<FileBytes>, LoadError> {
        match self {
            Self::Disk(folder) => {
                let path = folder.join(file);
                if !path.exists() {
                    return Ok(None);
                }
                FileBytes::map(&path).map(Some)
            }
            Self::Memory { files, .. } => Ok(files.remove(file)),
        }
    }

    fn missing(&self, file: &str) -> LoadError {
        let source = std::io::ErrorKind::NotFound.into();
        LoadError::Io { path: self.path_of(file), source }
    }

    fn required(&mut self, file: &str) -> Result<FileBytes, LoadError> {
        self.take(file)?.ok_or_else(|| self.missing(file))
    }
}

/// What a folder holds, before its tensors are matched with the architecture.
pub(super) struct Folder {
    pub(super) architecture: Architecture,
    pub(super) tensors: Vec<StoredTensor>,
    pub(super) files: Vec<FileBytes>,
    pub(super) file_names: Vec<String>,
    pub(super) text: TextSettings,
    pub(super) tokenizer_json: Option<FileBytes>,
    pub(super) summary: Vec<(String, String)>,
}

/// Reads every file of a checkpoint folder but the weights themselves.
///
/// # Errors
/// [`LoadError`] naming the file and what is wrong with it.
pub(super) fn read(mut source: FolderFiles) -> Result<Folder, LoadError> {
    let config = object(&mut source, "config.json", CONFIG_BYTES_MAX)?
        .ok_or_else(|| source.missing("config.json"))?;
    let config_name = source.path_of("config.json");
    let config_fields = Fields::new(Blame(&config_name), &config);
    let architecture = hf_config::architecture(config_fields)?;
    let text = text_settings(&mut source, config_fields)?;

    let index = source.take(INDEX_FILE)?;
    let index_name = source.path_of(INDEX_FILE);
    let (index, shards) = match &index {
        Some(bytes) => {
            if bytes.len() > INDEX_BYTES_MAX {
                let expected = format!("at most {INDEX_BYTES_MAX} bytes");
                let blame = Blame(&index_name);
                return Err(blame.malformed("size of the file", expected, bytes.len()));
            }
            let index = Index::parse(Blame(&index_name), bytes)?;
            let shards = index.files().to_vec();
            (Some(index), shards)
        }
        None => (None, vec![SINGLE_FILE.to_owned()]),
    };
    let (mut files, mut file_names, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
    for (number, shard) in shards.iter().enumerate() {
        let bytes = source.required(shard)?;
        let name = source.path_of(shard);
        tensors.extend(read_header(Blame(&name), &bytes, number)?);
        files.push(bytes);
        file_names.push(name);
    }
    if let Some(index) = index {
        index.check(Blame(&index_name), &tensors)?;
    }
    let tokenizer_json = source.take("tokenizer.json")?;
    if let Some(bytes) = &tokenizer_json {
        check_text_size(&source, "tokenizer.json", bytes)?;
    }
    let mut summary = vec![("format".to_owned(), "safetensors".to_owned())];
    summary.extend(hf_config::summary(&config));
    Ok(Folder { architecture, tensors, files, file_names, text, tokenizer_json, summary })
}

fn object(
    source: &mut FolderFiles,
    file: &str,
    bytes_max: usize,
) -> Result<Option<Map<String, Value>>, LoadError> {
    let Some(bytes) = source.take(file)? else { return Ok(None) };
    hf_config::parse_object(Blame(&source.path_of(file)), &bytes, bytes_max).map(Some)
}

fn check_text_size(source: &FolderFiles, file: &str, bytes: &[u8]) -> Result<(), LoadError> {
    if bytes.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    let name = source.path_of(file);
    let expected = format!("at most {TEXT_BYTES_MAX} bytes");
    Err(Blame(&name).malformed("size of the file", expected, bytes.len()))
}

fn text_settings(source: &mut FolderFiles, config: Fields<'_>) -> Result<TextSettings, LoadError> {
    let mut text = TextSettings::default();
    let mut eos_ids = Vec::new();
    let mut bos = None;
    if let Some(object) = object(source, "generation_config.json", CONFIG_BYTES_MAX)? {
        let name = source.path_of("generation_config.json");
        let fields = Fields::new(Blame(&name), &object);
        text.generation = hf_config::generation_defaults(fields)?;
        eos_ids = fields.ids("eos_token_id")?;
        bos = fields.ids("bos_token_id")?.first().copied();
    }
    // The model's own end tokens follow those of generation: a stop at either is wanted.
    eos_ids.extend(config.ids("eos_token_id")?);
    for id in eos_ids {
        if !text.eos_ids.contains(&id) {
            text.eos_ids.push(id);
        }
    }
    text.bos = config.ids("bos_token_id")?.first().copied().or(bos);

    let file = "tokenizer_config.json";
    if let Some(object) = object(source, file, TOKENIZER_CONFIG_BYTES_MAX)? {
        let name = source.path_of(file);
        let fields = Fields::new(Blame(&name), &object);
        text.special = hf_config::special_text(fields)?;
        text.chat_template = hf_config::chat_template(fields)?;
        text.add_bos = fields.bool("add_bos_token")?.unwrap_or(false);
    }
    // A file of its own overrules the string, as in transformers.
    let file = "chat_template.jinja";
    if let Some(bytes) = source.take(file)? {
        check_text_size(source, file, &bytes)?;
        let template = std::str::from_utf8(&bytes).map_err(|e| {
            let name = source.path_of(file);
            Blame(&name).malformed("content", "UTF-8 text", format!("invalid bytes ({e})"))
        })?;
        text.chat_template = Some(template.to_owned());
    }
    Ok(text)
}

//! The Hugging Face hub: one large file in resumable pieces, or a whole repository into the hub's
//! own cache.
//!
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_CACHE` are read by the client, `HF_HUB_OFFLINE`
//! here. Invariant: a machine without the hub learns so within [`CONTACT_SECONDS_MAX`]; after the
//! first answer nothing is given up for being slow.

use super::super::models::KnownModel;
use super::super::ui;
use anyhow::{Context, Result, anyhow, bail};
use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, HFResult};
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// How long the hub may take to say anything at all.
const CONTACT_SECONDS_MAX: u64 = 10;
/// Bytes asked for at once: what an interruption can lose.
const PIECE_BYTES: u64 = 32 << 20;
/// Times a piece is asked for.
const PIECE_ATTEMPTS: usize = 3;
/// What a model needs of a repository.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.safetensors*",
];

type Repository = HFRepositorySync<RepoTypeModel>;

/// Whether the user forbids the hub, with the spellings its own tools accept.
pub(super) fn offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// The hub that downloads come from.
pub(super) struct Hub {
    client: HFClientSync,
}

impl Hub {
    /// The one the environment names.
    ///
    /// # Errors
    /// When its address is none.
    pub(super) fn of_environment() -> Result<Self> {
        Ok(Self { client: HFClient::builder().retry_max_attempts(1).build_sync()? })
    }

    /// One at another address.
    #[cfg(test)]
    pub(super) fn at(endpoint: &str) -> Self {
        let client = HFClient::builder().endpoint(endpoint).retry_max_attempts(1);
        Self { client: client.build_sync().expect("a valid address") }
    }
}

/// Asks the hub something small on a thread of its own, which is left behind if no answer comes:
/// looking up a name and connecting have no time limit that could be set.
fn first_contact<T: Send + 'static>(
    ask: impl FnOnce() -> HFResult<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more once the time is up.
        let _ = sender.send(ask());
    });
    match receiver.recv_timeout(Duration::from_secs(CONTACT_SECONDS_MAX)) {
        Ok(answer) => answer.map_err(explained),
        Err(_) => bail!("no answer within {CONTACT_SECONDS_MAX} s"),
    }
}

/// A failure of the connection by its root cause; the layers above it only repeat the address.
fn explained(error: HFError) -> anyhow::Error {
    let transport = matches!(error, HFError::Request { .. });
    let error = anyhow::Error::new(error);
    match error.chain().last() {
        Some(root) if transport => anyhow!("it cannot be reached: {root}"),
        _ => error,
    }
}

/// Downloads a file of a repository to `partial`, going on where an earlier attempt stopped.
///
/// # Errors
/// When the hub cannot be reached, or has another file by that name.
pub(super) fn download(
    hub: &Hub,
    model: &KnownModel,
    (id, file): (&str, &str),
    partial: &Path,
) -> Result<PathBuf> {
    let (owner, name) = hf_hub::split_id(id);
    let repository = hub.client.model(owner, name);
    let (asked, path) = (repository.clone(), file.to_owned());
    let entries = first_contact(move || asked.get_paths_info().paths(vec![path]).send())?;
    let found = entries.into_iter().find_map(|entry| match entry {
        RepoTreeEntry::File { path, size, lfs, .. } if path == file => Some((size, lfs)),
        _ => None,
    });
    let (size, lfs) = found.ok_or_else(|| anyhow!("{id} has no file {file}"))?;
    let sha256 = lfs.and_then(|lfs| lfs.sha256);
    if size != model.bytes || sha256.is_some_and(|sha256| sha256 != model.sha256) {
        bail!(
            "{id} has another file by the name {file}: expected {} bytes, got {size}",
            model.bytes
        );
    }
    in_pieces(&repository, model, file, &partial.join("hub"))
}

fn in_pieces(
    repository: &Repository,
    model: &KnownModel,
    file: &str,
    path: &Path,
) -> Result<PathBuf> {
    let at = || path.display().to_string();
    let mut out: File = OpenOptions::new().create(true).append(true).open(path).with_context(at)?;
    let mut position = out.metadata().with_context(at)?.len();
    if position > model.bytes {
        out.set_len(0).with_context(at)?;
        position = 0;
    }
    let bar = ui::byte_bar(&format!("downloading {}", model.name), model.bytes);
    bar.set_position(position);
    while position < model.bytes {
        let range = position..model.bytes.min(position + PIECE_BYTES);
        let piece = piece(repository, file, range.clone())?;
        if piece.len() as u64 != range.end - range.start {
            bail!(
                "{file}: expected {} bytes from {}, got {}",
                range.end - range.start,
                range.start,
                piece.len()
            );
        }
        out.write_all(&piece).with_context(at)?;
        position = range.end;
        bar.set_position(position);
    }
    out.sync_all().with_context(at)?;
    bar.finish_and_clear();
    Ok(path.to_owned())
}

fn piece(
    repository: &Repository,
    file: &str,
    range: std::ops::Range<u64>,
) -> Result<impl std::ops::Deref<Target = [u8]> + use<>> {
    let mut attempt = 1;
    loop {
        match repository.download_file_to_bytes().filename(file).range(range.clone()).send() {
            Ok(bytes) => return Ok(bytes),
            Err(error) if attempt == PIECE_ATTEMPTS => return Err(explained(error)),
            Err(error) => tracing::info!("{file} from byte {}: {error}; again", range.start),
        }
        attempt += 1;
    }
}

/// Downloads what a model needs of a repository into the hub's cache; the snapshot's folder.
///
/// # Errors
/// When the hub cannot be reached or has no such model.
pub(super) fn snapshot(owner: &str, name: &str) -> Result<PathBuf> {
    let id = format!("{owner}/{name}");
    let repository = Hub::of_environment()?.client.model(owner, name);
    let offline = offline();
    if !offline {
        let asked = repository.clone();
        first_contact(move || asked.info().send())
            .with_context(|| format!("{id} cannot be had from the hub"))?;
    }
    let patterns = MODEL_FILES.map(str::to_owned).to_vec();
    let folder = repository
        .snapshot_download()
        .allow_patterns(patterns)
        .local_files_only(offline)
        .progress(Bars::default())
        .send()
        .map_err(explained)
        .with_context(|| format!("{id} cannot be had from the hub"))?;
    let whole = fs::read_dir(&folder).is_ok_and(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(".safetensors"))
    });
    if !whole || !folder.join("config.json").is_file() {
        bail!("{id} has no config.json and safetensors that could be run");
    }
    Ok(folder)
}

/// One bar for all files of a repository.
struct Bars {
    bar: Mutex<(ProgressBar, HashMap<String, u64>)>,
}

impl Default for Bars {
    fn default() -> Self {
        Self { bar: Mutex::new((ProgressBar::hidden(), HashMap::new())) }
    }
}

impl ProgressHandler for Bars {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let Ok(mut state) = self.bar.lock() else { return };
        let (bar, done) = &mut *state;
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                *bar = ui::byte_bar("downloading", *total_bytes)
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    let bytes = match file.status {
                        FileStatus::Complete => file.total_bytes.max(file.bytes_completed),
                        _ => file.bytes_completed,
                    };
                    done.insert(file.filename.clone(), bytes);
                }
                bar.set_position(done.values().sum());
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                bar.set_position(*bytes_completed);
            }
            DownloadEvent::Complete => bar.finish_and_clear(),
        }
    }
}

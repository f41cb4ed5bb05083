//! The Hugging Face hub: files that go on where an earlier attempt stopped.
//!
//! Two routes of it are enough: what a repository holds, and a file's bytes from some position on.
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_OFFLINE` and the usual proxy
//! variables are obeyed. Invariant: a machine without the hub learns so within
//! [`CONTACT_SECONDS_MAX`] for each thing that has to be found; a slow hub is not given up, only a
//! silent one. Read next: `snapshot.rs` for whole repositories.

use super::super::models::KnownModel;
use super::super::ui;
use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use serde::Deserialize;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};

/// How long looking up the hub's name, connecting, or its first answer may take.
const CONTACT_SECONDS_MAX: u64 = 10;
/// How long a hub that answered may say nothing.
const SILENCE_SECONDS_MAX: u64 = 60;
/// Times in a row that a download may end without a single byte.
const FRUITLESS_ATTEMPTS_MAX: usize = 3;

/// Whether the user forbids the hub, with the spellings its own tools accept.
pub(super) fn offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// The hub that downloads come from.
pub(super) struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a repository holds, as of one commit.
#[derive(Debug, Deserialize)]
pub(super) struct Repository {
    /// The commit.
    pub(super) sha: String,
    #[serde(rename = "siblings")]
    pub(super) files: Vec<RepositoryFile>,
}

/// A file of a repository.
#[derive(Debug, Deserialize)]
pub(super) struct RepositoryFile {
    #[serde(rename = "rfilename")]
    pub(super) name: String,
    #[serde(rename = "size")]
    pub(super) bytes: u64,
    /// Git's name of the content.
    #[serde(rename = "blobId")]
    blob: String,
    /// Of a large file: what git has in its place.
    lfs: Option<Pointer>,
}

#[derive(Debug, Deserialize)]
struct Pointer {
    sha256: String,
}

impl RepositoryFile {
    /// The name its content goes by in the cache that the hub's tools share.
    pub(super) fn content_name(&self) -> &str {
        self.sha256().unwrap_or(&self.blob)
    }

    /// Its checksum, where the hub knows it.
    pub(super) fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().map(|pointer| pointer.sha256.as_str())
    }
}

impl Hub {
    /// The one the environment names.
    pub(super) fn of_environment() -> Self {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|address| !address.is_empty());
        Self {
            token: token_of_environment(),
            ..Self::at(endpoint.as_deref().unwrap_or("https://huggingface.co"))
        }
    }

    /// One at another address, as nobody in particular.
    pub(super) fn at(endpoint: &str) -> Self {
        let contact = Some(Duration::from_secs(CONTACT_SECONDS_MAX));
        let silence = Some(Duration::from_secs(SILENCE_SECONDS_MAX));
        let config = Agent::config_builder()
            .timeout_resolve(contact)
            .timeout_connect(contact)
            .timeout_recv_response(contact)
            .timeout_per_read(silence)
            // The token is for the hub, not for the stores it sends one to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("forerun/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent: config.build().new_agent(), endpoint, token: None }
    }

    /// What the repository holds now.
    ///
    /// # Errors
    /// When the hub cannot be reached or has no such repository.
    pub(super) fn repository(&self, id: &str) -> Result<Repository> {
        let path = format!("api/models/{id}/revision/main?blobs=true");
        let mut response = self.get(&path, None)?;
        let text = response.body_mut().read_to_string().map_err(explained)?;
        serde_json::from_str(&text).with_context(|| format!("{path}: not what the hub answers"))
    }

    /// Brings a file of a repository to `path`, going on where an earlier attempt stopped.
    ///
    /// # Errors
    /// When the hub cannot be reached any more, or the file cannot be written.
    pub(super) fn download(
        &self,
        (id, commit): (&str, &str),
        file: &RepositoryFile,
        path: &Path,
        bar: &ProgressBar,
    ) -> Result<()> {
        let at = || path.display().to_string();
        let mut out = OpenOptions::new().create(true).append(true).open(path).with_context(at)?;
        if let Err(TryLockError::WouldBlock) = out.try_lock() {
            bail!("{}: another pull of it is under way; wait until it is done", file.name);
        }
        let mut position = out.metadata().with_context(at)?.len();
        if position > file.bytes {
            out.set_len(0).with_context(at)?;
            position = 0;
        }
        bar.inc(position);
        let url = format!("{id}/resolve/{commit}/{}", file.name);
        let mut fruitless = 0;
        while position < file.bytes {
            let ended = self.append(&url, position..file.bytes, &mut out, bar);
            let reached = out.metadata().with_context(at)?.len();
            match ended {
                Ok(()) if reached > position => fruitless = 0,
                Err(error) if reached > position => {
                    fruitless = 0;
                    tracing::info!("{url} ended at byte {reached}: {error:#}; going on");
                }
                _ if fruitless + 1 < FRUITLESS_ATTEMPTS_MAX => fruitless += 1,
                Ok(()) => bail!("{}: expected {} bytes, got {reached}", file.name, file.bytes),
                Err(error) => return Err(error),
            }
            position = reached;
        }
        out.sync_all().with_context(at)
    }

    /// Writes what the hub gives of a range.
    fn append(
        &self,
        path: &str,
        range: std::ops::Range<u64>,
        out: &mut File,
        bar: &ProgressBar,
    ) -> Result<()> {
        let response = self.get(path, Some(format!("bytes={}-{}", range.start, range.end - 1)))?;
        if range.start > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            bail!("{path}: the hub cannot go on at byte {}", range.start);
        }
        let rest = response.into_body().into_reader().take(range.end - range.start);
        io::copy(&mut bar.wrap_read(rest), out)?;
        Ok(())
    }

    fn get(&self, path: &str, range: Option<String>) -> Result<Response<ureq::Body>> {
        let mut request = self.agent.get(format!("{}/{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        request.call().map_err(explained)
    }
}

/// What the hub's own tools would send: `HF_TOKEN`, or what `hf auth login` left.
fn token_of_environment() -> Option<String> {
    let plain = |token: String| Some(token.trim().to_owned()).filter(|token| !token.is_empty());
    std::env::var("HF_TOKEN").ok().and_then(plain).or_else(|| {
        let path = std::env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
            let home = std::env::var_os("HF_HOME").map(PathBuf::from);
            let home = home.or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
            Some(home?.join("token"))
        });
        std::fs::read_to_string(path?).ok().and_then(plain)
    })
}

/// A failure in a user's words.
fn explained(error: ureq::Error) -> anyhow::Error {
    match error {
        ureq::Error::StatusCode(status @ (401 | 403)) => {
            anyhow!("the hub refuses it (status {status}): it may be private, or want HF_TOKEN set")
        }
        ureq::Error::StatusCode(404) => anyhow!("the hub has no such thing (status 404)"),
        ureq::Error::StatusCode(status) => anyhow!("the hub answered with status {status}"),
        ureq::Error::Timeout(_) => anyhow!("no answer within {CONTACT_SECONDS_MAX} s"),
        ureq::Error::Io(error) => anyhow!("it cannot be reached: {error}"),
        error => anyhow!("it cannot be reached: {error}"),
    }
}

/// Downloads the file of a known model to `partial`, going on where an earlier attempt stopped.
///
/// # Errors
/// When the hub cannot be reached, or has another file by that name.
pub(super) fn download(
    hub: &Hub,
    model: &KnownModel,
    (id, name): (&str, &str),
    partial: &Path,
) -> Result<PathBuf> {
    let repository = hub.repository(id)?;
    let file = repository.files.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| anyhow!("{id} has no file {name}"))?;
    if file.bytes != model.bytes || file.sha256().is_some_and(|sha256| sha256 != model.sha256) {
        bail!(
            "{id} has another file by the name {name}: expected {} bytes, got {}",
            model.bytes,
            file.bytes
        );
    }
    let path = partial.join("hub");
    let bar = ui::byte_bar(&format!("downloading {}", model.name), model.bytes);
    hub.download((id, &repository.sha), file, &path, &bar)?;
    bar.finish_and_clear();
    Ok(path)
}

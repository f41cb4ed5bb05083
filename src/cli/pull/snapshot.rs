//! A repository of the hub, in the cache that the hub's own tools share.
//!
//! `models--OWNER--NAME/` there holds contents by checksum in `blobs/`, links to them by file name
//! in `snapshots/COMMIT/`, and the commit of a branch in `refs/`. Invariant: a content has its
//! final name only when it is whole, links are made when all contents are there, and `refs/main`
//! is written last; so an interrupted pull never looks like a model.

use super::super::models::{cached, hub_cache};
use super::super::ui;
use super::checksum;
use super::hub::{self, Hub, Repository, RepositoryFile};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use std::fs;
use std::path::{Path, PathBuf};

/// What a model needs of a repository, besides its safetensors.
const MODEL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Brings what a model needs of a repository into the hub's cache; the snapshot's folder.
///
/// # Errors
/// When the hub cannot be reached or has no such model.
pub(super) fn pull(owner: &str, name: &str) -> Result<PathBuf> {
    let id = format!("{owner}/{name}");
    let cache = hub_cache();
    let folder = match hub::offline() {
        false => brought(&Hub::of_environment(), &id, &cache)
            .with_context(|| format!("{id} cannot be had from the hub"))?,
        true => match cached(&cache, owner, name) {
            Some(folder) => folder,
            None => bail!(
                "{id} cannot be had from the hub: HF_HUB_OFFLINE is set, and it is not in {}",
                cache.display()
            ),
        },
    };
    let whole = fs::read_dir(&folder).is_ok_and(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(".safetensors"))
    });
    if !whole || !folder.join("config.json").is_file() {
        bail!("{id} has no config.json and safetensors that could be run");
    }
    Ok(folder)
}

fn brought(hub: &Hub, id: &str, cache: &Path) -> Result<PathBuf> {
    let repository = hub.repository(id)?;
    let files = needed(id, &repository)?;
    let root = cache.join(format!("models--{}", id.replace('/', "--")));
    let blobs = root.join("blobs");
    fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;
    let bar = ui::byte_bar("downloading", files.iter().map(|file| file.bytes).sum());
    for file in &files {
        content(hub, (id, &repository.sha), file, &blobs, &bar)?;
    }
    bar.finish_and_clear();

    let folder = root.join("snapshots").join(&repository.sha);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for file in &files {
        let link = folder.join(&file.name);
        let linked = link_to_blob(&blobs, file.content_name(), &link);
        linked.with_context(|| link.display().to_string())?;
    }
    let branch = root.join("refs/main");
    let written = fs::create_dir_all(root.join("refs"))
        .and_then(|()| fs::write(&branch, repository.sha.as_bytes()));
    written.with_context(|| branch.display().to_string())?;
    Ok(folder)
}

/// The files a model consists of.
///
/// # Errors
/// When the hub names something that cannot be the name of a file: nothing it says may lead out of
/// the cache.
fn needed<'a>(id: &str, repository: &'a Repository) -> Result<Vec<&'a RepositoryFile>> {
    let wanted = |name: &str| MODEL_FILES.contains(&name) || name.contains(".safetensors");
    let files = repository.files.iter().filter(|f| !f.name.contains('/') && wanted(&f.name));
    let files: Vec<_> = files.collect();
    let plain = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !text.is_empty() && !text.starts_with('.') && text.chars().all(allowed)
    };
    let names = files.iter().flat_map(|file| [file.name.as_str(), file.content_name()]);
    if let Some(wrong) = names.chain([repository.sha.as_str()]).find(|name| !plain(name)) {
        bail!("{id}: the hub names a file {wrong:?}");
    }
    Ok(files)
}

/// Brings one content to its place.
fn content(
    hub: &Hub,
    of: (&str, &str),
    file: &RepositoryFile,
    blobs: &Path,
    bar: &ProgressBar,
) -> Result<()> {
    let path = blobs.join(file.content_name());
    if path.metadata().is_ok_and(|there| there.len() == file.bytes) {
        bar.inc(file.bytes);
        return Ok(());
    }
    let incomplete = blobs.join(format!("{}.incomplete", file.content_name()));
    hub.download(of, file, &incomplete, bar)?;
    let at = || incomplete.display().to_string();
    if let Some(sha256) = file.sha256() {
        let own = checksum::of_file(&incomplete, |_| {}).with_context(at)?;
        if own != sha256 {
            fs::remove_file(&incomplete).with_context(at)?;
            bail!("{}: expected SHA-256 {sha256}, got {own}; it was removed", file.name);
        }
    }
    fs::rename(&incomplete, &path).with_context(at)
}

/// A link relative to the snapshot, so that the cache may be moved.
#[cfg(unix)]
fn link_to_blob(_blobs: &Path, content: &str, link: &Path) -> std::io::Result<()> {
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    std::os::unix::fs::symlink(Path::new("../../blobs").join(content), link)
}

/// Where links need rights that users rarely have, one content has two names.
#[cfg(not(unix))]
fn link_to_blob(blobs: &Path, content: &str, link: &Path) -> std::io::Result<()> {
    if link.exists() {
        fs::remove_file(link)?;
    }
    fs::hard_link(blobs.join(content), link)
}

#[cfg(test)]
mod tests {
    use super::super::fake_hub::FakeHub;
    use super::*;

    fn files() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("config.json", b"{}".to_vec()),
            ("model.safetensors", vec![7; 1000]),
            ("README.md", b"not needed".to_vec()),
            ("extra/config.json", b"not needed".to_vec()),
        ]
    }

    #[test]
    fn a_snapshot_has_the_layout_of_the_hubs_own_tools() {
        let cache = tempfile::tempdir().unwrap();
        let hub = FakeHub::start("owner/name", files());
        let folder = brought(&Hub::at(&hub.endpoint()), "owner/name", cache.path()).unwrap();
        let root = cache.path().join("models--owner--name");
        let commit = fs::read_to_string(root.join("refs/main")).unwrap();
        assert_eq!(folder, root.join("snapshots").join(commit));
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), [7; 1000]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        assert_eq!(cached(cache.path(), "owner", "name"), Some(folder.clone()));
        #[cfg(unix)]
        {
            let target = fs::read_link(folder.join("config.json")).unwrap();
            assert!(target.starts_with("../../blobs"), "{}", target.display());
        }
        // What is there is not asked for again.
        let asked = hub.requests().len();
        brought(&Hub::at(&hub.endpoint()), "owner/name", cache.path()).unwrap();
        assert_eq!(hub.requests().len(), asked + 1);
    }

    #[test]
    fn an_interrupted_snapshot_is_no_model_and_goes_on_where_it_stopped() {
        let cache = tempfile::tempdir().unwrap();
        let hub = FakeHub::start("owner/name", files());
        let at = Hub::at(&hub.endpoint());
        let repository = at.repository("owner/name").unwrap();
        let of_name = |file: &&RepositoryFile| file.name == "model.safetensors";
        let weights = repository.files.iter().find(of_name).unwrap().content_name();
        let blobs = cache.path().join("models--owner--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{weights}.incomplete")), [7; 600]).unwrap();
        assert_eq!(cached(cache.path(), "owner", "name"), None);
        let folder = brought(&at, "owner/name", cache.path()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), [7; 1000]);
        assert!(
            hub.requests().iter().any(|r| r.ends_with("bytes=600-999")),
            "{:?}",
            hub.requests()
        );
    }

    #[test]
    fn a_content_with_another_checksum_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let hub = FakeHub::start("owner/name", files());
        let at = Hub::at(&hub.endpoint());
        let repository = at.repository("owner/name").unwrap();
        let of_name = |file: &&RepositoryFile| file.name == "model.safetensors";
        let weights = repository.files.iter().find(of_name).unwrap().content_name();
        let blobs = cache.path().join("models--owner--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{weights}.incomplete")), [8; 600]).unwrap();
        let error = brought(&at, "owner/name", cache.path()).unwrap_err().to_string();
        assert!(error.starts_with("model.safetensors: expected SHA-256 "), "{error}");
        assert_eq!(cached(cache.path(), "owner", "name"), None);
        brought(&at, "owner/name", cache.path()).unwrap();
    }

    #[test]
    fn no_name_of_the_hub_leads_out_of_the_cache() {
        let repository = |sha: &str, blob: &str, name: &str| -> Repository {
            let file = serde_json::json!({ "rfilename": name, "size": 1, "blobId": blob });
            serde_json::from_value(serde_json::json!({ "sha": sha, "siblings": [file] })).unwrap()
        };
        assert_eq!(needed("a/b", &repository("c0", "b0", "config.json")).unwrap().len(), 1);
        for (sha, blob, name) in [
            ("../c0", "b0", "config.json"),
            ("c0", "../../b0", "config.json"),
            ("c0", "", "config.json"),
            ("c0", "b0", "..\\x.safetensors"),
        ] {
            let refused = needed("a/b", &repository(sha, blob, name)).unwrap_err().to_string();
            assert!(refused.starts_with("a/b: the hub names a file "), "{refused}");
        }
        assert_eq!(needed("a/b", &repository("c0", "b0", "../config.json")).unwrap().len(), 0);
    }
}

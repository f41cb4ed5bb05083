//! Where the real models lie that some tests run.

use std::path::PathBuf;

/// The file of a pulled model; None, with a line on stderr, where it is not on this machine.
pub(crate) fn model_path(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let named = std::env::var_os("FORERUN_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| home.join(".cache/forerun/models"));
    let path = folder.join(format!("{name}.gguf"));
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {name} is not here; `forerun pull {name}` brings it");
    None
}

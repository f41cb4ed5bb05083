//! What comparisons on real models share: where the models lie, and how close a choice was.

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

/// The gap between the two most likely tokens, in nat.
pub(crate) fn top2_gap(mut row: Vec<f32>) -> f32 {
    row.sort_unstable_by(f32::total_cmp);
    row[row.len() - 1] - row[row.len() - 2]
}

//! What the fuzz targets share: using an opened checkpoint to the full.
//!
//! A parser that accepts damaged bytes must have made something of them that works, so every
//! accepted input is exercised. Invariant: nothing here fails on what a parser accepted.

use forerun::device::blocks::dequantize_row;
use forerun::model::{Checkpoint, FileBytes, TensorName};

/// Reads every tensor, the text settings and the tables of a checkpoint.
pub fn exercise(checkpoint: &Checkpoint) {
    let architecture = checkpoint.architecture();
    assert_eq!(architecture.rope_frequencies().0.len(), architecture.head_dim / 2);
    for name in TensorName::all(architecture).into_iter().chain([TensorName::Head]) {
        let view = checkpoint.tensor(name).expect("opening found every tensor");
        assert_eq!((view.rows, view.cols), name.shape(architecture));
        let row_bytes = view.kind.row_bytes(view.cols).expect("opening checked the shape");
        let mut row = vec![0.0; view.cols];
        dequantize_row(view.kind, &view.bytes[view.bytes.len() - row_bytes..], &mut row);
    }
    let _ = checkpoint.tokenizer_source();
    let _ = (checkpoint.chat_template(), checkpoint.special_text(), checkpoint.eos_ids());
    let _ = (checkpoint.tensors(), checkpoint.metadata_summary(), checkpoint.file_bytes());
}

/// Opens a folder of `files` and exercises it.
pub fn open_folder(files: &[(&str, &[u8])]) {
    let files =
        files.iter().map(|&(name, bytes)| (name.to_owned(), FileBytes::from(bytes.to_vec())));
    if let Ok(checkpoint) = Checkpoint::from_files("fuzz", files) {
        exercise(&checkpoint);
    }
}

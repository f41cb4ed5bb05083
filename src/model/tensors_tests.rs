//! Claims about `tensors.rs`.

use super::*;

#[test]
fn undoing_the_interleaving_inverts_the_converter() {
    // The converter views a head's rows as (half, j) and stores them as (j, half).
    let (heads, head_dim, row_bytes) = (3, 8, 2);
    let original: Vec<u8> = (0..heads * head_dim * row_bytes).map(|i| i as u8).collect();
    let mut stored = Vec::new();
    for head in original.chunks(head_dim * row_bytes) {
        let (low, high) = head.split_at(head.len() / 2);
        for (a, b) in low.chunks(row_bytes).zip(high.chunks(row_bytes)) {
            stored.extend_from_slice(a);
            stored.extend_from_slice(b);
        }
    }
    assert_ne!(stored, original);
    assert_eq!(undo_interleaving(&stored, row_bytes, head_dim), original);
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let stored = |name: &str, file, bytes| StoredTensor {
        name: name.to_owned(),
        kind: Ok(BlockType::F32),
        shape: vec![],
        file,
        bytes,
    };
    let files = ["a".to_owned(), "b".to_owned()];
    check_overlaps(&[stored("x", 0, 0..8), stored("y", 1, 4..8)], &files).unwrap();
    check_overlaps(&[stored("x", 0, 8..16), stored("y", 0, 0..8)], &files).unwrap();
    let error = check_overlaps(&[stored("x", 0, 0..9), stored("y", 0, 8..16)], &files);
    assert_eq!(
        error.unwrap_err().to_string(),
        "a: tensor y: expected data of its own from offset 9, got offset 8, inside tensor x"
    );
}

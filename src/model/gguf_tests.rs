//! Claims about `gguf.rs`.

use super::*;

/// Builds headers byte by byte, so that tests can lie in any field.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn header(version: u32, tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn tensor(self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let start = self.text(name).u32(sizes.len() as u32);
        sizes.iter().fold(start, |w, &size| w.u64(size)).u32(kind).u64(offset)
    }

    /// Pads to the default alignment and appends `data` bytes.
    fn data(mut self, data: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + data, 0);
        self.0
    }

    fn error(self) -> String {
        error(&self.0)
    }
}

fn error(bytes: &[u8]) -> String {
    match Gguf::parse(Blame("m.gguf"), bytes) {
        Ok(_) => panic!("parsed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_of_another_kind_or_version_says_what_it_is() {
    assert_eq!(
        error(b""),
        "m.gguf: magic: expected 4 bytes at offset 0, got the end of the file after 0 bytes"
    );
    assert!(error(b"PK\x03\x04....").contains(r#"magic: expected "GGUF", got PK\x03\x04"#));
    assert!(Writer::header(1, 0, 0).error().contains("GGUF version 1 is not supported"));
    let big_endian = Writer::header(3u32.swap_bytes(), 0, 0).error();
    assert!(big_endian.contains("3 in big-endian byte order"), "{big_endian}");
}

#[test]
fn forged_counts_fail_before_anything_is_sized_by_them() {
    let max = u64::MAX;
    assert!(Writer::header(3, max, 0).error().contains("number of tensors: expected at most"));
    assert!(Writer::header(3, 0, max).error().contains("number of metadata entries: expected"));
    // A count that is allowed, but not there.
    assert!(Writer::header(3, 60_000, 0).error().contains("name of tensor 0"));
    assert!(Writer::header(3, 0, 60_000).error().contains("key of metadata entry 0"));
    let key = Writer::header(3, 0, 1).u64(max).error();
    assert!(key.contains("key of metadata entry 0: expected 18446744073709551615 bytes"), "{key}");
    for (kind, count) in [(4, max), (4, 1 << 62), (8, max), (8, 1 << 40), (0, 1 << 40)] {
        let array = Writer::header(3, 0, 1).text("k").u32(9).u32(kind).u64(count).error();
        assert!(array.starts_with("m.gguf: k: expected"), "{array}");
    }
}

#[test]
fn malformed_metadata_names_its_key() {
    let entry = |kind| Writer::header(3, 0, 1).text("some.key").u32(kind);
    assert!(entry(13).error().contains("some.key: expected a value type from 0 to 12, got 13"));
    assert!(entry(9).u32(9).u64(0).error().contains("some.key an array of array (type 9)"));
    let mut not_bool = entry(7);
    not_bool.0.push(2);
    assert!(not_bool.error().contains("some.key: expected bool 0 or 1, got 2"));
    let mut not_utf8 = entry(8).u64(2);
    not_utf8.0.extend([0xff, 0xfe]);
    assert!(not_utf8.error().contains("some.key: expected UTF-8 text"));
    let twice = Writer::header(3, 0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1);
    assert!(twice.error().contains("k: expected one entry of this name"));
    let alignment = Writer::header(3, 0, 1).text("general.alignment").u32(4).u32(3);
    assert!(alignment.error().contains("general.alignment: expected a power of two"));
}

#[test]
fn a_tensor_outside_the_file_is_refused_by_name() {
    let one = |sizes: &[u64], kind, offset, data| {
        Writer::header(3, 1, 0).tensor("t", sizes, kind, offset).data(data)
    };
    assert!(Gguf::parse(Blame("m"), &one(&[64, 2], 8, 0, 136)).is_ok());
    assert!(error(&one(&[64, 2], 8, 0, 135)).contains("tensor t: expected 136 bytes at offset 0"));
    assert!(error(&one(&[64, 2], 8, 32, 136)).contains("tensor t: expected 136 bytes at"));
    assert!(error(&one(&[64, 2], 8, 5, 999)).contains("an offset that is a multiple of 32"));
    assert!(error(&one(&[1], 0, u64::MAX - 31, 99)).contains("tensor t: expected 4 bytes at"));
    assert!(error(&one(&[33, 2], 8, 0, 999)).contains("rows of whole Q8_0 blocks of 32"));
    assert!(error(&one(&[u64::MAX, 9], 0, 0, 9)).contains("tensor t"));
    assert!(error(&one(&[1 << 40, 1 << 40], 0, 0, 9)).contains("tensor t: expected rows"));
    assert!(error(&one(&[], 0, 0, 9)).contains("1 to 4 dimensions, got 0"));
    assert!(error(&one(&[1; 5], 0, 0, 9)).contains("1 to 4 dimensions, got 5"));
}

#[test]
fn a_value_of_the_wrong_type_is_an_error_and_a_missing_one_is_none() {
    let bytes = Writer::header(3, 0, 2).text("n").u32(5).u32(u32::MAX).text("s").u32(8).text("x");
    let gguf = Gguf::parse(Blame("m"), &bytes.0).unwrap();
    let message = |result: Result<Option<u32>, LoadError>| result.unwrap_err().to_string();
    assert_eq!(
        message(gguf.u32("n")),
        "m: n: expected an unsigned 32-bit integer, got signed integer -1"
    );
    assert!(message(gguf.u32("s")).contains("got string \"x\""));
    assert!(gguf.text("n").is_err() && gguf.bool("n").is_err() && gguf.texts("n").is_err());
    assert_eq!(gguf.f64("n").unwrap(), Some(-1.0));
    assert_eq!(gguf.text("s").unwrap(), Some("x"));
    assert_eq!(gguf.u32("absent").unwrap(), None);
}

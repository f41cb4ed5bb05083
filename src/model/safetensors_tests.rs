//! Claims about `safetensors.rs`.

use super::*;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn error(bytes: &[u8]) -> String {
    read_header(Blame("w"), bytes, 0).unwrap_err().to_string()
}

/// A generator for mutations; xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn mutated_headers_are_judged_as_by_the_safetensors_crate() {
    let header = concat!(
        r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""y":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"#,
        r#""z":{"dtype":"F16","shape":[],"data_offsets":[32,34]}}"#
    );
    let valid = file(header, 34);
    let bytes = b"0123456789[]{},:\"- xyzBF.e";
    let mut random = Random(42);
    let (mut accepted, mut rejected) = (0, 0);
    for _ in 0..20_000 {
        let mut mutated = valid.clone();
        for _ in 0..1 + random.below(2) {
            let at = 8 + random.below(header.len());
            mutated[at] = bytes[random.below(bytes.len())];
        }
        let ours = read_header(Blame("w"), &mutated, 0);
        let theirs = ::safetensors::SafeTensors::deserialize(&mutated);
        match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => {
                accepted += 1;
                assert_eq!(ours.len(), theirs.len());
                for tensor in ours {
                    let view = theirs.tensor(&tensor.name).unwrap();
                    assert_eq!(view.shape(), tensor.shape);
                    assert_eq!(view.data().as_ptr(), mutated[tensor.bytes.start..].as_ptr());
                    assert_eq!(view.data().len(), tensor.bytes.len());
                }
            }
            (Err(_), Err(_)) => rejected += 1,
            // Two differences are meant: names must be unique, and a type we do not know is only
            // an error for a tensor that is needed (nor do we read the free-form metadata).
            (Err(ours), Ok(_)) => assert!(ours.to_string().contains("two tensors named")),
            (Ok(tensors), Err(theirs)) => {
                let text = String::from_utf8_lossy(&mutated[8..8 + header.len()]).into_owned();
                let unknown = tensors.iter().any(|tensor| tensor.kind.is_err());
                let metadata = !text.starts_with(&header[..header.find(",\"x\"").unwrap()]);
                assert!(unknown || metadata, "{theirs}: {text}");
            }
        }
    }
    assert!(accepted > 100 && rejected > 100, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn a_header_longer_than_the_file_is_refused_before_it_is_read() {
    assert!(error(b"short").contains("expected 8 bytes of length, got a file of 5 bytes"));
    let mut forged = file("{}", 0);
    for length in [3, 1 << 40, u64::MAX] {
        forged[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(error(&forged).contains("expected a length of at most 2"), "{}", error(&forged));
    }
}

#[test]
fn wrong_tensors_are_named_with_what_was_expected() {
    let x = |body: &str, data| error(&file(&format!(r#"{{"x":{body}}}"#), data));
    let message = x(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,9]}"#, 9);
    assert_eq!(message, "w: tensor x: expected F32 data of shape [2], got 9 bytes");
    let message = x(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 7);
    assert_eq!(message, "w: tensor x: expected data offsets within 7 bytes of data, got 0 to 8");
    let message = x(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#, 12);
    assert!(message.contains("tensor x: expected data from offset 0"), "{message}");
    let message = x(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 9);
    assert!(message.contains("length of the file: expected"), "{message}");
    let message = x(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}"#, 8);
    assert!(message.contains("tensor x: invalid value: integer `-1`"), "{message}");
    let shape = ["4294967296"; 3].join(",");
    let message = x(&format!(r#"{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,8]}}"#), 8);
    assert!(message.contains("tensor x: expected F32 data of shape"), "{message}");
    let many = ["1"; 9].join(",");
    let message = x(&format!(r#"{{"dtype":"F32","shape":[{many}],"data_offsets":[0,4]}}"#), 4);
    assert!(message.contains("more than 8 dimensions"), "{message}");
}

#[test]
fn an_index_may_only_name_files_of_its_own_folder() {
    for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "c:x.safetensors"] {
        let index = format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#);
        let error = Index::parse(Blame("i"), index.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("weight_map: expected names of .safetensors files"), "{error}");
    }
    let error = Index::parse(Blame("i"), b"{\"weight_map\":{}}").unwrap_err().to_string();
    assert!(error.contains("expected 1 to 4096 files, got 0"), "{error}");
}

#[test]
fn a_tensor_that_is_not_in_the_shard_the_index_names_is_an_error() {
    let index = br#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#;
    let index = Index::parse(Blame("i"), index).unwrap();
    let stored = |name: &str, file| StoredTensor {
        name: name.to_owned(),
        kind: Ok(BlockType::F32),
        shape: vec![],
        file,
        bytes: 0..0,
    };
    index.check(Blame("i"), &[stored("x", 0), stored("y", 1)]).unwrap();
    let error = index.check(Blame("i"), &[stored("x", 0), stored("y", 0)]).unwrap_err();
    assert!(error.to_string().contains("tensor y: expected data in b.safetensors"), "{error}");
}

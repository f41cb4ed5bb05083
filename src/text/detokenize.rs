//! Bytes of tokens to text, without ever cutting a character.
//!
//! A token may end inside a UTF-8 character; the tail waits here until the rest arrives.
//! Invariant: whatever the chunking, the pieces put together equal
//! `String::from_utf8_lossy` of all bytes. Read next: [`super::Tokenizer::token_bytes`].

/// Incremental UTF-8 decoder: at most three bytes wait inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A decoder at the start of a text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns every character that is now complete. Bytes that can no longer
    /// become a character come out as U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        while done < self.pending.len() {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.pending.len();
                }
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    text.push_str(&String::from_utf8_lossy(valid));
                    done += error.valid_up_to();
                    // `None` means the end of input came inside a character: wait for the rest.
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
        text
    }

    /// Ends the text: an unfinished character comes out as U+FFFD. The decoder is empty after.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    /// Bytes of an unfinished character that wait for their rest.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_split_emoji_waits_for_its_last_byte() {
        let mut decoder = Detokenizer::new();
        assert_eq!(decoder.push(&[b'a', 0xf0, 0x9f]), "a");
        assert_eq!(decoder.pending_bytes(), 2);
        assert_eq!(decoder.push(&[0x98]), "");
        assert_eq!(decoder.push(&[0x80, b'b']), "😀b");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn an_unfinished_character_is_flushed_as_one_replacement() {
        let mut decoder = Detokenizer::new();
        assert_eq!(decoder.push(&[0xe2, 0x82]), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.push(b"x"), "x");
    }

    proptest! {
        #[test]
        fn chunking_never_changes_the_text(
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..6),
                    "\\PC{0,3}".prop_map(String::into_bytes),
                ],
                0..12,
            ),
            cut in 1_usize..4,
        ) {
            let all: Vec<u8> = chunks.concat();
            let mut decoder = Detokenizer::new();
            let mut whole: String = chunks.iter().map(|chunk| decoder.push(chunk)).collect();
            whole.push_str(&decoder.finish());
            prop_assert_eq!(&whole, &String::from_utf8_lossy(&all));
            let mut other: String = all.chunks(cut).map(|chunk| decoder.push(chunk)).collect();
            other.push_str(&decoder.finish());
            prop_assert_eq!(&whole, &other);
        }
    }
}

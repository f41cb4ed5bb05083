//! Cuts PTX text into tokens that remember their line.
//!
//! A name keeps its `%`, `$` and digits; a modifier or directive is one token with its dot
//! (`.L1::no_allocate`). Numbers are decoded here: integers to their two's complement bits, `0f`
//! and `0d` literals to theirs. Comments and white space vanish.
//! Read next: `parser`.

use super::error::ParseError;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind<'a> {
    /// A name: opcode, register, label, symbol.
    Name(&'a str),
    /// A modifier or directive, without its dot.
    Dot(&'a str),
    /// An integer.
    Integer(u64),
    /// `0f3F800000`.
    Single(u32),
    /// `0d3FF0000000000000` or a decimal fraction; the text serves `.version`.
    Double(u64, &'a str),
    /// A string, without quotes, escapes as written.
    Text(&'a str),
    /// One character of punctuation; `<<` and the like do not occur in what is accepted.
    Mark(char),
}

/// A token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Token<'a> {
    /// What it is.
    pub(crate) kind: Kind<'a>,
    /// Its line, from 1.
    pub(crate) line: u32,
}

/// All tokens of `text`.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut out = Vec::with_capacity(text.len() / 5);
    while let Some(token) = lexer.next()? {
        out.push(token);
    }
    Ok(out)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

fn starts_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: &str) -> ParseError {
        ParseError::at(self.text, self.line, message)
    }

    /// Skips bytes while `test` holds and returns them with `lead` bytes before.
    fn span(&mut self, lead: usize, test: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        self.at += lead;
        while self.at < self.text.len() && test(self.peek(0)) {
            self.at += 1;
        }
        // The spans are of ASCII bytes, so the cuts are at character boundaries.
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                (b'/', b'*') => {
                    let rest = &self.text[self.at..];
                    let end = rest.find("*/").ok_or_else(|| self.error("comment never ends"))?;
                    self.line += rest[..end].matches('\n').count() as u32;
                    self.at += end + 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, ParseError> {
        self.skip_blank()?;
        if self.at >= self.text.len() {
            return Ok(None);
        }
        let line = self.line;
        let byte = self.peek(0);
        let kind = if starts_name(byte) {
            Kind::Name(self.span(1, continues_name))
        } else if byte == b'.' && (continues_name(self.peek(1))) {
            Kind::Dot(self.dotted())
        } else if byte.is_ascii_digit() {
            self.number()?
        } else if byte == b'"' {
            self.string()?
        } else if byte.is_ascii_punctuation() {
            self.at += 1;
            Kind::Mark(char::from(byte))
        } else {
            return Err(self.error("a character that is not PTX"));
        };
        Ok(Some(Token { kind, line }))
    }

    /// A modifier: words joined by `::`.
    fn dotted(&mut self) -> &'a str {
        let start = self.at + 1;
        self.span(1, continues_name);
        while self.peek(0) == b':' && self.peek(1) == b':' && continues_name(self.peek(2)) {
            self.span(2, continues_name);
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn string(&mut self) -> Result<Kind<'a>, ParseError> {
        let rest = &self.text[self.at + 1..];
        let mut escaped = false;
        for (index, character) in rest.char_indices() {
            match character {
                '\n' => break,
                '"' if !escaped => {
                    self.at += index + 2;
                    return Ok(Kind::Text(&rest[..index]));
                }
                _ => escaped = character == '\\' && !escaped,
            }
        }
        Err(self.error("string never ends"))
    }

    fn number(&mut self) -> Result<Kind<'a>, ParseError> {
        let start = self.at;
        let word = self.span(0, |b| b.is_ascii_alphanumeric());
        if let Some(digits) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
            return self.float_bits(digits, 8).map(|bits| Kind::Single(bits as u32));
        }
        if let Some(digits) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
            return self.float_bits(digits, 16).map(|bits| Kind::Double(bits, word));
        }
        let hexadecimal = word.starts_with("0x") || word.starts_with("0X");
        let exponent = !hexadecimal && word.contains(['e', 'E']);
        if (self.peek(0) == b'.' && self.peek(1).is_ascii_digit()) || exponent {
            return self.decimal(start);
        }
        let digits = word.trim_end_matches(['U', 'u', 'L', 'l']);
        let value = match digits.as_bytes() {
            [b'0', b'x' | b'X', ..] => u64::from_str_radix(&digits[2..], 16),
            [b'0', b'b' | b'B', ..] => u64::from_str_radix(&digits[2..], 2),
            [b'0', _, ..] => u64::from_str_radix(digits, 8),
            _ => digits.parse(),
        };
        value.map(Kind::Integer).map_err(|_| self.error("not an integer of 64 bits"))
    }

    fn float_bits(&self, digits: &str, count: usize) -> Result<u64, ParseError> {
        if digits.len() != count {
            return Err(self.error("a float literal has the wrong number of hexadecimal digits"));
        }
        u64::from_str_radix(digits, 16).map_err(|_| self.error("not a float literal"))
    }

    fn decimal(&mut self, start: usize) -> Result<Kind<'a>, ParseError> {
        if self.peek(0) == b'.' {
            self.span(1, |b| b.is_ascii_alphanumeric());
        }
        let so_far = self.text.get(start..self.at).unwrap_or_default();
        if so_far.ends_with(['e', 'E']) && matches!(self.peek(0), b'+' | b'-') {
            self.span(1, |b| b.is_ascii_digit());
        }
        let word = self.text.get(start..self.at).unwrap_or_default();
        let value: f64 = word.parse().map_err(|_| self.error("not a decimal number"))?;
        Ok(Kind::Double(value.to_bits(), word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        tokens(text).unwrap().into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn names_keep_their_sigils_and_modifiers_their_colons() {
        assert_eq!(
            kinds("@!%p1 ld.global.L1::no_allocate $L__BB0_1"),
            [
                Kind::Mark('@'),
                Kind::Mark('!'),
                Kind::Name("%p1"),
                Kind::Name("ld"),
                Kind::Dot("global"),
                Kind::Dot("L1::no_allocate"),
                Kind::Name("$L__BB0_1"),
            ]
        );
    }

    #[test]
    fn numbers_of_every_base_are_decoded() {
        assert_eq!(
            kinds("10 0x1F 0b101 017 5U 0f3F800000 0d4000000000000000 1.5 2e3 9.5"),
            [
                Kind::Integer(10),
                Kind::Integer(31),
                Kind::Integer(5),
                Kind::Integer(15),
                Kind::Integer(5),
                Kind::Single(0x3F80_0000),
                Kind::Double(2.0f64.to_bits(), "0d4000000000000000"),
                Kind::Double(1.5f64.to_bits(), "1.5"),
                Kind::Double(2000f64.to_bits(), "2e3"),
                Kind::Double(9.5f64.to_bits(), "9.5"),
            ]
        );
    }

    #[test]
    fn comments_vanish_and_lines_count_on() {
        let all = tokens("a // b\n/* c\nd */ e \"x \\\" y\"").unwrap();
        assert_eq!(all[1], Token { kind: Kind::Name("e"), line: 3 });
        assert_eq!(all[2].kind, Kind::Text("x \\\" y"));
    }

    #[test]
    fn bad_characters_and_open_ends_are_errors_with_their_line() {
        for text in
            ["\n\u{e9}", "\n/* open", "\n\"open", "\n0f12", "\n0x", "\n99999999999999999999"]
        {
            assert_eq!(tokens(text).unwrap_err().line, 2, "{text:?}");
        }
    }
}

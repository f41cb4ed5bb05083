//! A place in the token stream, and the small steps everything else is made of.

use crate::ptx::error::ParseError;
use crate::ptx::lexer::{Kind, Token};

/// What parsing a piece yields; the message gets its line further out.
pub(super) type Parsed<T> = Result<T, String>;

/// A place in the token stream.
pub(super) struct Cursor<'a> {
    /// The whole text, for error messages.
    pub(super) text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, tokens: Vec<Token<'a>>) -> Self {
        Self { text, tokens, at: 0 }
    }

    /// The next token's kind, `None` at the end.
    pub(super) fn peek(&self) -> Option<Kind<'a>> {
        self.peek_ahead(0)
    }

    /// The kind of a token further on.
    pub(super) fn peek_ahead(&self, ahead: usize) -> Option<Kind<'a>> {
        self.tokens.get(self.at + ahead).map(|t| t.kind)
    }

    /// Line of the next token, or of the last one at the end.
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or_else(|| self.tokens.last()).map_or(1, |t| t.line)
    }

    /// An error at the next token.
    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::at(self.text, self.line(), message)
    }

    pub(super) fn skip(&mut self) {
        self.at += 1;
    }

    pub(super) fn next(&mut self) -> Parsed<Kind<'a>> {
        let kind = self.peek().ok_or("the text ends in the middle of something")?;
        self.at += 1;
        Ok(kind)
    }

    /// Takes the mark if it is next.
    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Kind::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Parsed<()> {
        if self.eat(mark) {
            return Ok(());
        }
        Err(match self.peek() {
            Some(found) => format!("expected `{mark}`, found {}", show(found)),
            None => format!("expected `{mark}`, found the end of the text"),
        })
    }

    /// Takes the dotted word if it is next.
    pub(super) fn eat_dot(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Kind::Dot(word));
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self) -> Parsed<&'a str> {
        match self.next()? {
            Kind::Name(name) => Ok(name),
            other => Err(format!("expected a name, found {}", show(other))),
        }
    }

    /// A non-negative integer.
    pub(super) fn integer(&mut self) -> Parsed<u64> {
        match self.next()? {
            Kind::Integer(value) => Ok(value),
            other => Err(format!("expected an integer, found {}", show(other))),
        }
    }

    /// An integer that fits 32 bits.
    pub(super) fn small(&mut self) -> Parsed<u32> {
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| format!("{value} does not fit 32 bits"))
    }

    /// An integer with an optional sign, in two's complement.
    pub(super) fn signed(&mut self) -> Parsed<i64> {
        let negative = self.eat('-');
        let value = self.integer()? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    /// The rest of a sum: `+4`, `-4`, `+-4`, any number of times.
    pub(super) fn addends(&mut self) -> Parsed<i64> {
        let mut sum = 0i64;
        loop {
            let more = self.eat('+') || self.peek() == Some(Kind::Mark('-'));
            if !more {
                return Ok(sum);
            }
            sum = sum.wrapping_add(self.signed()?);
        }
    }

    /// Skips every token of the current line.
    pub(super) fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    /// Skips a braced block, nested ones with it.
    pub(super) fn skip_block(&mut self) -> Parsed<()> {
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Kind::Mark('{') => depth += 1,
                Kind::Mark('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A token as a message shows it.
pub(super) fn show(kind: Kind<'_>) -> String {
    match kind {
        Kind::Name(name) => format!("`{name}`"),
        Kind::Dot(word) => format!("`.{word}`"),
        Kind::Integer(value) => format!("`{value}`"),
        Kind::Single(bits) => format!("`0f{bits:08X}`"),
        Kind::Double(_, text) => format!("`{text}`"),
        Kind::Text(text) => format!("\"{text}\""),
        Kind::Mark(mark) => format!("`{mark}`"),
    }
}

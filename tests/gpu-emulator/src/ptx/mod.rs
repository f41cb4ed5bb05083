//! PTX: text to typed programs.
//!
//! [`parse`] is the way in; [`ir`] is the program as it is executed. Nothing is guessed: an
//! instruction, modifier or directive that is not known is a [`ParseError`] naming its line.
//! Read next: [`ir`], then `parser`, then `compact`.

mod accesses;
mod compact;
mod error;
pub mod ir;
mod lexer;
pub mod loops;
mod parser;

pub use error::ParseError;
pub use parser::{parse, parse_as_written};

//! Variables: their declaration, their initialisers, and parameter lists.

use super::cursor::{Cursor, Parsed, show};
use super::modifiers::type_named;
use super::names::Name;
use crate::ptx::ir::{Param, Relocation, Symbol, Type};
use crate::ptx::lexer::Kind;

/// A declared variable, before its space decides what becomes of it.
#[derive(Debug)]
pub(super) struct Declared<'a> {
    pub(super) name: &'a str,
    pub(super) ty: Type,
    pub(super) align: u32,
    /// Bytes; `None` for `name[]`.
    pub(super) size: Option<u64>,
}

/// Bytes a single variable may have.
const SIZE_LIMIT: u64 = 1 << 40;

/// `.align 8 .b8 name[24]`, after the space; also `.ptr .global .align 16` and `.v4`.
pub(super) fn declared<'a>(cursor: &mut Cursor<'a>) -> Parsed<Declared<'a>> {
    let (mut align, mut ty, mut elements) = (None, None, 1u64);
    while let Some(Kind::Dot(word)) = cursor.peek() {
        cursor.skip();
        match word {
            "align" => align = Some(alignment(cursor)?),
            "ptr" => pointer_attributes(cursor)?,
            "v2" => elements = 2,
            "v4" => elements = 4,
            "attribute" => parenthesised(cursor)?,
            _ => match type_named(word) {
                Some(named) if ty.is_none() => ty = Some(named),
                _ => return Err(format!("`.{word}` is not known in a declaration")),
            },
        }
    }
    let ty = ty.ok_or("the declaration has no type")?;
    let name = cursor.name()?;
    let mut size = Some(u64::from(ty.bytes()) * elements);
    let align = align.unwrap_or(ty.bytes() * elements as u32);
    while cursor.eat('[') {
        if cursor.eat(']') {
            size = None;
            continue;
        }
        let count = cursor.integer()?;
        cursor.expect(']')?;
        size = match size {
            None => None,
            Some(bytes) => Some(
                bytes.checked_mul(count).filter(|s| *s <= SIZE_LIMIT).ok_or("array too large")?,
            ),
        };
    }
    Ok(Declared { name, ty, align, size })
}

fn alignment(cursor: &mut Cursor<'_>) -> Parsed<u32> {
    let align = cursor.small()?;
    if align.is_power_of_two() && align <= 1 << 16 {
        Ok(align)
    } else {
        Err(format!("{align} is no alignment"))
    }
}

/// What a kernel's pointer parameter promises about its target; nothing here depends on it.
fn pointer_attributes(cursor: &mut Cursor<'_>) -> Parsed<()> {
    let _space = ["global", "const", "shared", "local"].iter().any(|word| cursor.eat_dot(word));
    if cursor.eat_dot("align") {
        alignment(cursor)?;
    }
    Ok(())
}

/// Skips `( ... )`.
pub(super) fn parenthesised(cursor: &mut Cursor<'_>) -> Parsed<()> {
    cursor.expect('(')?;
    while !cursor.eat(')') {
        cursor.next()?;
    }
    Ok(())
}

/// `( .param .b32 a, .param .align 8 .b8 b[24] )`, placed from `offset` on.
pub(super) fn params<'a>(
    cursor: &mut Cursor<'a>,
    offset: &mut u32,
) -> Parsed<Vec<(&'a str, Param)>> {
    cursor.expect('(')?;
    let mut out = Vec::new();
    if cursor.eat(')') {
        return Ok(out);
    }
    loop {
        if cursor.eat_dot("reg") {
            return Err("register parameters (`.reg`) are not supported".into());
        }
        if !cursor.eat_dot("param") {
            return Err("expected `.param`".into());
        }
        let declared = declared(cursor)?;
        let size = declared.size.and_then(|s| u32::try_from(s).ok());
        let size = size.filter(|s| *s <= 1 << 20).ok_or("a parameter needs a size below 1 MiB")?;
        let at = offset.next_multiple_of(declared.align.max(1));
        *offset = at.checked_add(size).filter(|end| *end <= 1 << 24).ok_or("too many bytes")?;
        let param =
            Param { name: declared.name.to_owned(), offset: at, size, align: declared.align };
        out.push((declared.name, param));
        if cursor.eat(')') {
            return Ok(out);
        }
        cursor.expect(',')?;
    }
}

/// An initialiser in progress.
#[derive(Debug, Default)]
pub(super) struct Initialiser {
    pub(super) bytes: Vec<u8>,
    pub(super) relocations: Vec<Relocation>,
}

impl Initialiser {
    /// What follows `=`; `find` resolves symbols.
    pub(super) fn parse<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        ty: Type,
        find: &impl Fn(&str) -> Option<Name<'a>>,
    ) -> Parsed<()> {
        if !cursor.eat('{') {
            return self.value(cursor, ty, find);
        }
        while !cursor.eat('}') {
            self.parse(cursor, ty, find)?;
            if !cursor.eat(',') {
                cursor.expect('}')?;
                break;
            }
        }
        Ok(())
    }

    fn value<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        ty: Type,
        find: &impl Fn(&str) -> Option<Name<'a>>,
    ) -> Parsed<()> {
        let bytes = ty.bytes() as usize;
        let negative = cursor.eat('-');
        let bits = match cursor.next()? {
            Kind::Integer(value) if ty == Type::F32 => (value as f32).to_bits().into(),
            Kind::Integer(value) if ty == Type::F64 => (value as f64).to_bits(),
            Kind::Integer(value) if negative => value.wrapping_neg(),
            Kind::Integer(value) => value,
            Kind::Single(bits) if ty.bits() == 64 => f64::from(f32::from_bits(bits)).to_bits(),
            Kind::Single(bits) => bits.into(),
            Kind::Double(bits, _) if ty.bits() == 32 => {
                (f64::from_bits(bits) as f32).to_bits().into()
            }
            Kind::Double(bits, _) => bits,
            Kind::Name(name) if !negative => return self.symbol(cursor, name, ty, find),
            other => return Err(format!("{} cannot initialise", show(other))),
        };
        let sign = if negative && ty.is_float() { 1 << (ty.bits() - 1) } else { 0 };
        self.bytes.extend_from_slice(&(bits ^ sign).to_le_bytes()[..bytes.min(8)]);
        Ok(())
    }

    /// `name`, `name+8`, `generic(name)+8`.
    fn symbol<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        name: &'a str,
        ty: Type,
        find: &impl Fn(&str) -> Option<Name<'a>>,
    ) -> Parsed<()> {
        let mut target = name;
        if name == "generic" && cursor.eat('(') {
            target = cursor.name()?;
            cursor.expect(')')?;
        }
        let addend = cursor.addends()?;
        let symbol = match find(target) {
            Some(Name::Variable(index)) => Symbol::Variable(index),
            Some(Name::Function(index)) => Symbol::Function(index),
            _ => return Err(format!("`{target}` has no address to initialise with")),
        };
        let bytes = ty.bytes() as u8;
        if !matches!(bytes, 4 | 8) {
            return Err("an address needs an element of 32 or 64 bits".into());
        }
        let offset = self.bytes.len() as u64;
        self.relocations.push(Relocation { offset, bytes, symbol, addend });
        self.bytes.extend(std::iter::repeat_n(0, bytes.into()));
        Ok(())
    }
}

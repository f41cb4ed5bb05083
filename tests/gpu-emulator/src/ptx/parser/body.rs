//! Function bodies: scopes, labels, declarations, and the walk over instructions.

use super::cursor::{Cursor, Parsed, show};
use super::declarations::{declared, params};
use super::modifiers::{Modifiers, type_named};
use super::names::{Name, Names, Pending};
use super::{Shared, Tables, instructions, operands, pragma, shared_variables};
use crate::ptx::compact::compact;
use crate::ptx::error::ParseError;
use crate::ptx::ir::{Guard, Instruction, Op, Type};
use crate::ptx::lexer::Kind;
use operands::Raw;

/// What a body amounts to.
pub(super) struct ParsedBody {
    pub(super) planes: u32,
    pub(super) predicates: u32,
    pub(super) call_bytes: u32,
    pub(super) local_bytes: u32,
    pub(super) body: Vec<Instruction>,
}

/// A body being parsed.
pub(super) struct Body<'p, 'a> {
    pub(super) tables: &'p mut Tables<'a>,
    pub(super) names: Names<'a>,
    body: Vec<Instruction>,
    local_bytes: u32,
    guard: Option<Guard>,
    line: u32,
    source: Option<(u32, u32)>,
}

/// An instruction as written.
pub(super) struct Statement<'a> {
    pub(super) opcode: &'a str,
    pub(super) modifiers: Modifiers<'a>,
    pub(super) operands: Vec<Raw<'a>>,
}

/// Parses a body from its `{` to its `}`; `places` are the names and offsets of the parameters.
pub(super) fn parse<'a>(
    cursor: &mut Cursor<'a>,
    tables: &mut Tables<'a>,
    places: &[(&'a str, u32)],
) -> Result<ParsedBody, ParseError> {
    let mut body = Body {
        tables,
        names: Names::new(),
        body: Vec::new(),
        local_bytes: 0,
        guard: None,
        line: cursor.line(),
        source: None,
    };
    let mut opened = cursor.expect('{');
    for (name, offset) in places {
        opened = opened.and_then(|()| body.names.declare(name, Name::Param(*offset)));
    }
    opened.map_err(|message| ParseError::at(cursor.text, body.line, message))?;
    loop {
        body.line = cursor.line();
        match body.statement(cursor) {
            Ok(true) => {}
            Ok(false) => break,
            Err(message) => return Err(ParseError::at(cursor.text, body.line, message)),
        }
    }
    let (mut planes, mut predicates) = (body.names.planes, body.names.predicates);
    if !body.tables.as_written {
        [planes, predicates] = compact(&mut body.body, &body.names.units, predicates);
    }
    Ok(ParsedBody {
        planes,
        predicates,
        call_bytes: body.names.most_call_bytes,
        local_bytes: body.local_bytes,
        body: body.body,
    })
}

impl<'a> Body<'_, 'a> {
    /// Appends an instruction under the current guard.
    pub(super) fn emit(&mut self, op: Op) {
        let (guard, line, source) = (self.guard, self.line, self.source);
        self.body.push(Instruction { guard, op, line, source });
    }

    /// A branch of the next instruction to be emitted waits for its label.
    pub(super) fn wait_for(&mut self, label: &'a str, line: Option<u32>, slot: usize) {
        let (line, instruction) = (line.unwrap_or(self.line), self.body.len());
        self.names.wait_for(Pending { label, line, instruction, slot });
    }

    /// One statement; `false` after the function's own closing brace.
    fn statement(&mut self, cursor: &mut Cursor<'a>) -> Parsed<bool> {
        match cursor.peek() {
            Some(Kind::Mark('{')) => {
                cursor.skip();
                if self.names.depth() > 64 {
                    return Err("scopes are nested too deep".into());
                }
                self.names.open();
            }
            Some(Kind::Mark('}')) => {
                cursor.skip();
                let last = self.names.depth() == 1;
                self.close()?;
                return Ok(!last);
            }
            Some(Kind::Mark(';')) => cursor.skip(),
            Some(Kind::Mark('@')) => self.guarded(cursor)?,
            Some(Kind::Dot(word)) => self.directive(cursor, word)?,
            Some(Kind::Name(name)) if cursor.peek_ahead(1) == Some(Kind::Mark(':')) => {
                self.label(cursor, name)?;
            }
            Some(Kind::Name(_)) => self.instruction(cursor)?,
            Some(other) => return Err(format!("expected a statement, found {}", show(other))),
            None => return Err("the text ends inside a function".into()),
        }
        Ok(true)
    }

    /// Closes a scope and points the branches inside at their labels.
    fn close(&mut self) -> Parsed<()> {
        let placed = self.names.close().map_err(|lost| {
            self.line = lost.line;
            format!("label `{}` is not placed", lost.label)
        })?;
        for (pending, target) in placed {
            match &mut self.body[pending.instruction].op {
                Op::Bra { target: slot, .. } => *slot = target,
                Op::BrxIdx { targets, .. } => targets[pending.slot] = target,
                _ => unreachable!("only branches wait for labels"),
            }
        }
        Ok(())
    }

    fn directive(&mut self, cursor: &mut Cursor<'a>, word: &str) -> Parsed<()> {
        cursor.skip();
        match word {
            "reg" => self.registers(cursor),
            "loc" => {
                let file = cursor.small()?;
                self.source = Some((file, cursor.small()?));
                cursor.skip_line();
                Ok(())
            }
            "pragma" => pragma(cursor),
            "param" => self.call_params(cursor),
            "local" => self.locals(cursor),
            "shared" => {
                let mut found = Vec::new();
                shared_variables(cursor, &mut |name, shared| {
                    found.push((name, shared));
                    Ok(())
                })?;
                found.into_iter().try_for_each(|(name, shared)| self.shared(name, shared))
            }
            _ => Err(format!("directive `.{word}` is not known in a function")),
        }
    }

    fn shared(&mut self, name: &'a str, shared: Shared) -> Parsed<()> {
        let index = self.tables.shared.len() as u32;
        self.tables.shared.push(shared);
        self.names.declare(name, Name::Shared(index))
    }

    /// `.reg .b32 a, %r<9>;`
    fn registers(&mut self, cursor: &mut Cursor<'a>) -> Parsed<()> {
        let ty = match cursor.next()? {
            Kind::Dot(word) => type_named(word),
            _ => None,
        };
        let bits = match ty {
            None => return Err("registers need a type that is known".into()),
            Some(Type::Pred) => None,
            Some(ty) => Some(ty.bits() as u8),
        };
        loop {
            let name = cursor.name()?;
            if cursor.eat('<') {
                let count = cursor.small()?;
                cursor.expect('>')?;
                self.names.registers(name, bits, count)?;
            } else {
                self.names.register(name, bits)?;
            }
            if !cursor.eat(',') {
                return cursor.expect(';');
            }
        }
    }

    /// `.param .b32 param0;` before a call.
    fn call_params(&mut self, cursor: &mut Cursor<'a>) -> Parsed<()> {
        loop {
            let declared = declared(cursor)?;
            let size = declared.size.and_then(|s| u32::try_from(s).ok());
            let size = size.filter(|s| *s <= 1 << 20).ok_or("a parameter needs a size")?;
            self.names.call_param(declared.name, size, declared.align)?;
            if !cursor.eat(',') {
                return cursor.expect(';');
            }
        }
    }

    /// `.local .align 16 .b8 depot[64];`
    fn locals(&mut self, cursor: &mut Cursor<'a>) -> Parsed<()> {
        loop {
            let declared = declared(cursor)?;
            let size = declared.size.and_then(|s| u32::try_from(s).ok());
            let size = size.filter(|s| *s <= 1 << 24).ok_or("a local variable needs a size")?;
            let offset = self.local_bytes.next_multiple_of(declared.align.max(1));
            self.local_bytes = offset
                .checked_add(size)
                .filter(|b| *b <= 1 << 28)
                .ok_or("too much local memory")?;
            self.names.declare(declared.name, Name::Local(offset))?;
            if !cursor.eat(',') {
                return cursor.expect(';');
            }
        }
    }

    /// `name:`, which may also name a branch table or a prototype.
    fn label(&mut self, cursor: &mut Cursor<'a>, name: &'a str) -> Parsed<()> {
        cursor.skip();
        cursor.skip();
        if cursor.eat_dot("branchtargets") {
            let mut targets = Vec::new();
            loop {
                let line = cursor.line();
                targets.push((cursor.name()?, line));
                if !cursor.eat(',') {
                    break;
                }
            }
            cursor.expect(';')?;
            return self.names.declare(name, Name::Targets(targets));
        }
        if cursor.eat_dot("callprototype") {
            return self.prototype(cursor, name);
        }
        let target = self.body.len() as u32;
        self.names.label(name, target)
    }

    /// `(.param .b32 _) _ (.param .b32 _);`
    fn prototype(&mut self, cursor: &mut Cursor<'a>, name: &'a str) -> Parsed<()> {
        let mut returns = Vec::new();
        if cursor.peek() == Some(Kind::Mark('(')) {
            returns = params(cursor, &mut 0)?;
        }
        cursor.name()?;
        let (mut bytes, mut inputs) = (0, Vec::new());
        if cursor.peek() == Some(Kind::Mark('(')) {
            inputs = params(cursor, &mut bytes)?;
        }
        super::place_after(&mut returns, &mut bytes);
        let _noreturn = cursor.eat_dot("noreturn");
        cursor.expect(';')?;
        let bare = |list: Vec<(_, _)>| list.into_iter().map(|(_, param)| param).collect();
        self.names.declare(name, Name::Prototype(bare(inputs), bare(returns)))
    }

    /// `@p` or `@!p` and its instruction.
    fn guarded(&mut self, cursor: &mut Cursor<'a>) -> Parsed<()> {
        cursor.skip();
        let negated = cursor.eat('!');
        let predicate = self.predicate_named(cursor.name()?)?;
        self.guard = Some(Guard { predicate, negated });
        self.instruction(cursor)?;
        self.guard = None;
        Ok(())
    }

    fn instruction(&mut self, cursor: &mut Cursor<'a>) -> Parsed<()> {
        self.line = cursor.line();
        let opcode = cursor.name()?;
        let mut words = Vec::new();
        while let Some(Kind::Dot(word)) = cursor.peek() {
            cursor.skip();
            words.push(word);
        }
        let operands = operands::list(cursor)?;
        let mut statement = Statement { opcode, modifiers: Modifiers::new(words), operands };
        let op = instructions::parse(self, &mut statement)?;
        statement.modifiers.finish()?;
        self.emit(op);
        Ok(())
    }
}

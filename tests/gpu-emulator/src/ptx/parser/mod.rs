//! The parser: module-scope statements, and the way into function bodies.
//!
//! It resolves while it reads: registers to planes, symbols to typed references, labels to
//! instruction indices. Only shared variables wait for the end (`layout`), when it is known which
//! kernel touches which. The invariant: a module comes out only if every token was understood.
//! Read next: `body`, then `instructions`.

mod body;
mod cursor;
mod declarations;
mod instructions;
mod layout;
mod modifiers;
mod names;
mod operands;

use super::error::ParseError;
use super::ir::{Function, Kind as FunctionKind, Limits, Module, Param, Space, Variable};
use super::lexer::{self, Kind};
use cursor::{Cursor, Parsed, show};
use declarations::{Initialiser, declared};
use names::Name;
use std::collections::HashMap;

/// A shared variable, of the module or of a function.
#[derive(Debug, Clone)]
struct Shared {
    name: String,
    size: u32,
    align: u32,
    dynamic: bool,
}

/// What is known of the module so far.
#[derive(Default)]
struct Tables<'a> {
    module: Module,
    names: HashMap<&'a str, Name<'a>>,
    shared: Vec<Shared>,
    /// Whether registers keep the planes of their declarations.
    as_written: bool,
}

/// Parses a module; registers that are never alive together share planes.
///
/// # Errors
/// On the first thing that is not understood, with its line.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    parse_module(text, false)
}

/// Parses a module, every register in planes of its own in order of declaration.
///
/// # Errors
/// As [`parse`].
pub fn parse_as_written(text: &str) -> Result<Module, ParseError> {
    parse_module(text, true)
}

fn parse_module(text: &str, as_written: bool) -> Result<Module, ParseError> {
    let mut cursor = Cursor::new(text, lexer::tokens(text)?);
    let mut tables = Tables { as_written, ..Tables::default() };
    while cursor.peek().is_some() {
        let line = cursor.line();
        if let Err(error) = statement(&mut cursor, &mut tables) {
            return Err(error.into_error(text, line));
        }
    }
    if tables.module.version == (0, 0) {
        return Err(ParseError::at(text, 1, "the text has no `.version`"));
    }
    layout::place_shared(&mut tables.module, &tables.shared)
        .map_err(|(line, message)| ParseError::at(text, line, message))?;
    Ok(tables.module)
}

/// A message, with a line if it is not that of the statement.
enum Failure {
    Here(String),
    At(ParseError),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Here(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::Here(message.to_owned())
    }
}

impl From<ParseError> for Failure {
    fn from(error: ParseError) -> Self {
        Self::At(error)
    }
}

impl Failure {
    fn into_error(self, text: &str, line: u32) -> ParseError {
        match self {
            Self::Here(message) => ParseError::at(text, line, message),
            Self::At(error) => error,
        }
    }
}

/// One statement at module scope.
fn statement<'a>(cursor: &mut Cursor<'a>, tables: &mut Tables<'a>) -> Result<(), Failure> {
    let (mut external, mut word) = (false, directive(cursor)?);
    while matches!(word, "visible" | "extern" | "weak" | "common" | "internal") {
        external |= word == "extern";
        word = directive(cursor)?;
    }
    match word {
        "version" => tables.module.version = version(cursor)?,
        "target" => tables.module.target = target(cursor)?,
        "address_size" => {
            if cursor.integer()? != 64 {
                return Err("only 64-bit addresses are supported".into());
            }
        }
        "file" => {
            let (index, name) = file(cursor)?;
            tables.module.files.insert(index, name);
        }
        "section" => {
            directive(cursor)?;
            cursor.skip_block()?;
        }
        "pragma" => pragma(cursor)?,
        "global" => variable(cursor, tables, Space::Global, external)?,
        "const" => variable(cursor, tables, Space::Const, external)?,
        "shared" => shared_variables(cursor, &mut |name, shared| {
            let index = tables.shared.len() as u32;
            tables.shared.push(shared);
            tables.names.insert(name, Name::Shared(index));
            Ok(())
        })?,
        "entry" => function(cursor, tables, FunctionKind::Entry)?,
        "func" if external => function(cursor, tables, FunctionKind::Extern)?,
        "func" => function(cursor, tables, FunctionKind::Device)?,
        _ => return Err(format!("directive `.{word}` is not known at module scope").into()),
    }
    Ok(())
}

fn directive<'a>(cursor: &mut Cursor<'a>) -> Parsed<&'a str> {
    match cursor.next()? {
        Kind::Dot(word) => Ok(word),
        other => Err(format!("expected a directive, found {}", show(other))),
    }
}

fn version(cursor: &mut Cursor<'_>) -> Parsed<(u32, u32)> {
    let Kind::Double(_, text) = cursor.next()? else {
        return Err("expected a version like `8.7`".into());
    };
    text.split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| format!("`{text}` is not a version"))
}

/// The architecture, and options that mean nothing here.
fn target(cursor: &mut Cursor<'_>) -> Parsed<String> {
    let name = cursor.name()?.to_owned();
    while cursor.eat(',') {
        let option = cursor.name()?;
        if !matches!(option, "debug" | "texmode_independent" | "texmode_unified") {
            return Err(format!("target option `{option}` is not known"));
        }
    }
    Ok(name)
}

/// `N "name"`, perhaps with a time and a size.
fn file(cursor: &mut Cursor<'_>) -> Parsed<(u32, String)> {
    let index = cursor.small()?;
    let Kind::Text(name) = cursor.next()? else {
        return Err("expected a file name in quotes".into());
    };
    while cursor.eat(',') {
        cursor.integer()?;
    }
    Ok((index, name.to_owned()))
}

fn pragma(cursor: &mut Cursor<'_>) -> Parsed<()> {
    loop {
        let Kind::Text(_) = cursor.next()? else {
            return Err("expected a pragma in quotes".into());
        };
        if !cursor.eat(',') {
            return cursor.expect(';');
        }
    }
}

/// A `.global` or `.const` variable list.
fn variable<'a>(
    cursor: &mut Cursor<'a>,
    tables: &mut Tables<'a>,
    space: Space,
    external: bool,
) -> Parsed<()> {
    loop {
        let declared = declared(cursor)?;
        let mut initialiser = Initialiser::default();
        if cursor.eat('=') {
            initialiser.parse(cursor, declared.ty, &|name| tables.names.get(name).cloned())?;
        }
        let given = initialiser.bytes.len() as u64;
        let size = match declared.size {
            Some(size) if given > size => {
                return Err(format!("{given} bytes of initialiser for {size} bytes"));
            }
            Some(size) => size,
            None if given > 0 || external => given,
            None => return Err("an array without a size".into()),
        };
        let index = tables.module.variables.len() as u32;
        tables.module.variables.push(Variable {
            name: declared.name.to_owned(),
            space,
            align: declared.align,
            size,
            init: initialiser.bytes,
            relocations: initialiser.relocations,
            external,
        });
        tables.names.insert(declared.name, Name::Variable(index));
        if !cursor.eat(',') {
            return cursor.expect(';');
        }
    }
}

/// A `.shared` variable list; `add` takes each.
fn shared_variables<'a>(
    cursor: &mut Cursor<'a>,
    add: &mut dyn FnMut(&'a str, Shared) -> Parsed<()>,
) -> Parsed<()> {
    loop {
        let declared = declared(cursor)?;
        let size = match declared.size {
            Some(size) => u32::try_from(size)
                .ok()
                .filter(|s| *s <= 1 << 24)
                .ok_or_else(|| format!("{size} bytes of shared memory"))?,
            None => 0,
        };
        let shared = Shared {
            name: declared.name.to_owned(),
            size,
            align: declared.align,
            dynamic: declared.size.is_none(),
        };
        add(declared.name, shared)?;
        if !cursor.eat(',') {
            return cursor.expect(';');
        }
    }
}

/// A kernel, a device function, or the declaration of one.
fn function<'a>(
    cursor: &mut Cursor<'a>,
    tables: &mut Tables<'a>,
    kind: FunctionKind,
) -> Result<(), Failure> {
    let line = cursor.line();
    if cursor.eat_dot("attribute") {
        declarations::parenthesised(cursor)?;
    }
    // Returns follow the inputs in memory but precede them in the text.
    let mut returns = Vec::new();
    if cursor.peek() == Some(Kind::Mark('(')) {
        returns = declarations::params(cursor, &mut 0)?;
    }
    let name = cursor.name()?;
    let (mut bytes, mut inputs) = (0, Vec::new());
    if cursor.peek() == Some(Kind::Mark('(')) {
        inputs = declarations::params(cursor, &mut bytes)?;
    }
    place_after(&mut returns, &mut bytes);
    let limits = limits(cursor)?;
    let bare = |list: &[(&'a str, Param)]| list.iter().map(|(_, p)| p.clone()).collect();
    let declaration = Function {
        name: name.to_owned(),
        kind: FunctionKind::Extern,
        params: bare(&inputs),
        returns: bare(&returns),
        param_bytes: bytes,
        call_bytes: 0,
        planes: 0,
        predicates: 0,
        shared: Vec::new(),
        static_shared_bytes: 0,
        dynamic_shared_offset: 0,
        local_bytes: 0,
        limits,
        body: Vec::new(),
        line,
    };
    let index = declare_function(tables, name, declaration)?;
    if cursor.eat(';') {
        return Ok(());
    }
    if kind == FunctionKind::Extern || tables.module.functions[index].kind != FunctionKind::Extern {
        return Err(format!("function `{name}` has a body it must not have").into());
    }
    let named: Vec<_> = inputs.iter().chain(&returns).map(|(n, p)| (*n, p.offset)).collect();
    let parsed = body::parse(cursor, tables, &named)?;
    let function = &mut tables.module.functions[index];
    function.kind = kind;
    function.limits = limits;
    function.line = line;
    function.planes = parsed.planes;
    function.predicates = parsed.predicates;
    function.call_bytes = parsed.call_bytes;
    function.local_bytes = parsed.local_bytes;
    function.body = parsed.body;
    Ok(())
}

/// Moves return parameters behind the inputs.
fn place_after(returns: &mut [(&str, Param)], bytes: &mut u32) {
    for (_, param) in returns {
        param.offset = bytes.next_multiple_of(param.align.max(1));
        *bytes = param.offset + param.size;
    }
}

/// The index of the function, which may have been declared before with the same parameters.
fn declare_function<'a>(
    tables: &mut Tables<'a>,
    name: &'a str,
    function: Function,
) -> Parsed<usize> {
    if let Some(Name::Function(index)) = tables.names.get(name) {
        let index = *index as usize;
        let before = &tables.module.functions[index];
        let places = |list: &[Param]| list.iter().map(|p| (p.offset, p.size)).collect::<Vec<_>>();
        if places(&before.params) != places(&function.params)
            || places(&before.returns) != places(&function.returns)
        {
            return Err(format!("`{name}` was declared with other parameters"));
        }
        tables.module.functions[index].params = function.params;
        tables.module.functions[index].returns = function.returns;
        return Ok(index);
    }
    let index = tables.module.functions.len();
    tables.module.functions.push(function);
    tables.names.insert(name, Name::Function(index as u32));
    Ok(index)
}

/// Performance-tuning directives between a function's name and its body.
fn limits(cursor: &mut Cursor<'_>) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    while let Some(Kind::Dot(word)) = cursor.peek() {
        let unknown = cursor.error(format!("directive `.{word}` is not known on a function"));
        cursor.skip();
        match word {
            "maxntid" => limits.max_threads = Some(triple(cursor)?),
            "reqntid" => limits.required_threads = Some(triple(cursor)?),
            "minnctapersm" => limits.min_ctas_per_sm = Some(cursor.small()?),
            "maxnreg" => limits.max_registers = Some(cursor.small()?),
            "reqnctapercluster" => limits.required_cluster = Some(triple(cursor)?),
            "maxclusterrank" => drop(cursor.small()?),
            "explicitcluster" | "noreturn" | "unique" => {}
            "attribute" => declarations::parenthesised(cursor)?,
            "pragma" => pragma(cursor)?,
            _ => return Err(unknown.into()),
        }
    }
    Ok(limits)
}

/// One to three numbers; missing ones are 1.
fn triple(cursor: &mut Cursor<'_>) -> Parsed<[u32; 3]> {
    let mut out = [1; 3];
    out[0] = cursor.small()?;
    for slot in &mut out[1..] {
        if cursor.eat(',') {
            *slot = cursor.small()?;
        }
    }
    Ok(out)
}

//! Operands: their syntax, and what they resolve to once the instruction says what it expects.

use super::body::Body;
use super::cursor::{Cursor, Parsed, show};
use super::names::Name;
use crate::ptx::ir::{
    Address, Base, Op, Operand, PredicateOperand, Register, Space, SpecialRegister, Symbol, Type,
};
use crate::ptx::lexer::Kind;

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw<'a> {
    /// A register, symbol, label, or the sink `_`; with a component: `%tid.x`.
    Name(&'a str, Option<&'a str>),
    /// `symbol+8`.
    Offset(&'a str, i64),
    Integer(u64),
    Single(u32),
    Double(u64),
    /// `{a, b}`.
    Vector(Vec<Raw<'a>>),
    /// `[base+offset]`; an absolute address has no base.
    Address(Option<&'a str>, i64),
    /// `!p`.
    Not(&'a str),
    /// `d|p`.
    Pair(&'a str, &'a str),
    /// `(a, b)`.
    List(Vec<Raw<'a>>),
}

/// Operands up to and with the semicolon.
pub(super) fn list<'a>(cursor: &mut Cursor<'a>) -> Parsed<Vec<Raw<'a>>> {
    let mut out = Vec::new();
    if cursor.eat(';') {
        return Ok(out);
    }
    loop {
        out.push(raw(cursor, 0)?);
        if cursor.eat(';') {
            return Ok(out);
        }
        cursor.expect(',')?;
    }
}

/// Operands inside brackets, up to and with the closing one.
fn until<'a>(cursor: &mut Cursor<'a>, close: char, depth: u32) -> Parsed<Vec<Raw<'a>>> {
    let mut out = Vec::new();
    if cursor.eat(close) {
        return Ok(out);
    }
    loop {
        out.push(raw(cursor, depth + 1)?);
        if cursor.eat(close) {
            return Ok(out);
        }
        cursor.expect(',')?;
    }
}

fn raw<'a>(cursor: &mut Cursor<'a>, depth: u32) -> Parsed<Raw<'a>> {
    if depth > 2 {
        return Err("operands are nested too deep".into());
    }
    Ok(match cursor.next()? {
        Kind::Mark('{') => Raw::Vector(until(cursor, '}', depth)?),
        Kind::Mark('(') => Raw::List(until(cursor, ')', depth)?),
        Kind::Mark('[') => address(cursor)?,
        Kind::Mark('!') => Raw::Not(cursor.name()?),
        Kind::Mark('-') => match cursor.next()? {
            Kind::Integer(value) => Raw::Integer(value.wrapping_neg()),
            Kind::Single(bits) => Raw::Single(bits ^ 1 << 31),
            Kind::Double(bits, _) => Raw::Double(bits ^ 1 << 63),
            other => return Err(format!("expected a number after `-`, found {}", show(other))),
        },
        Kind::Integer(value) => Raw::Integer(value),
        Kind::Single(bits) => Raw::Single(bits),
        Kind::Double(bits, _) => Raw::Double(bits),
        Kind::Name(name) => named(cursor, name)?,
        other => return Err(format!("expected an operand, found {}", show(other))),
    })
}

fn named<'a>(cursor: &mut Cursor<'a>, name: &'a str) -> Parsed<Raw<'a>> {
    match cursor.peek() {
        Some(Kind::Dot(part)) => {
            cursor.skip();
            Ok(Raw::Name(name, Some(part)))
        }
        Some(Kind::Mark('|')) => {
            cursor.skip();
            Ok(Raw::Pair(name, cursor.name()?))
        }
        Some(Kind::Mark('+' | '-')) => Ok(Raw::Offset(name, cursor.addends()?)),
        _ => Ok(Raw::Name(name, None)),
    }
}

/// What follows `[`.
fn address<'a>(cursor: &mut Cursor<'a>) -> Parsed<Raw<'a>> {
    let (base, offset) = match cursor.peek() {
        Some(Kind::Name(name)) => {
            cursor.skip();
            (Some(name), 0)
        }
        _ => (None, cursor.signed()?),
    };
    let offset = offset.wrapping_add(cursor.addends()?);
    cursor.expect(']')?;
    Ok(Raw::Address(base, offset))
}

/// Reads an operand list as exactly so many.
pub(super) fn exactly<'r, 'a, const N: usize>(list: &'r [Raw<'a>]) -> Parsed<[&'r Raw<'a>; N]> {
    if list.len() != N {
        return Err(format!("{N} operands expected, {} given", list.len()));
    }
    Ok(std::array::from_fn(|i| &list[i]))
}

fn describe(raw: &Raw<'_>) -> String {
    match raw {
        Raw::Name(name, None) | Raw::Not(name) | Raw::Offset(name, _) => format!("`{name}`"),
        Raw::Name(name, Some(part)) => format!("`{name}.{part}`"),
        Raw::Integer(value) => format!("`{}`", *value as i64),
        Raw::Single(bits) => format!("`0f{bits:08X}`"),
        Raw::Double(bits) => format!("`0d{bits:016X}`"),
        Raw::Vector(_) => "a vector".into(),
        Raw::Address(..) => "an address".into(),
        Raw::Pair(a, b) => format!("`{a}|{b}`"),
        Raw::List(_) => "a list".into(),
    }
}

impl<'a> Body<'_, 'a> {
    /// What a name means here.
    pub(super) fn find(&self, name: &str) -> Option<Name<'a>> {
        self.names.find(name).or_else(|| self.tables.names.get(name).cloned())
    }

    /// A register of any width.
    pub(super) fn register(&self, raw: &Raw<'a>) -> Parsed<Register> {
        match raw {
            Raw::Name(name, None) => match self.find(name) {
                Some(Name::Register(register)) => Ok(register),
                Some(_) => Err(format!("`{name}` is not a data register")),
                None => Err(format!("`{name}` is not declared")),
            },
            other => Err(format!("expected a register, found {}", describe(other))),
        }
    }

    /// A register of any width, or `_`.
    pub(super) fn register_or_sink(&self, raw: &Raw<'a>) -> Parsed<Option<Register>> {
        match raw {
            Raw::Name("_", None) => Ok(None),
            other => self.register(other).map(Some),
        }
    }

    /// The plane of a destination of exactly so many bits.
    pub(super) fn dst(&self, raw: &Raw<'a>, bits: u32) -> Parsed<u32> {
        let register = self.register(raw)?;
        self.check_width(raw, register, bits)?;
        Ok(register.plane)
    }

    fn check_width(&self, raw: &Raw<'a>, register: Register, bits: u32) -> Parsed<()> {
        if u32::from(register.bits) == bits {
            return Ok(());
        }
        let name = describe(raw);
        Err(format!("{name} has {} bits where the instruction has {bits}", register.bits))
    }

    /// The index of a destination predicate.
    pub(super) fn predicate_dst(&self, raw: &Raw<'a>) -> Parsed<u32> {
        match raw {
            Raw::Name(name, None) => self.predicate_named(name),
            other => Err(format!("expected a predicate, found {}", describe(other))),
        }
    }

    pub(super) fn predicate_named(&self, name: &str) -> Parsed<u32> {
        match self.find(name) {
            Some(Name::Predicate(predicate)) => Ok(predicate),
            Some(_) => Err(format!("`{name}` is not a predicate register")),
            None => Err(format!("`{name}` is not declared")),
        }
    }

    /// A source predicate.
    pub(super) fn predicate(&self, raw: &Raw<'a>) -> Parsed<PredicateOperand> {
        let (name, negated) = match raw {
            Raw::Name(name, None) => (name, false),
            Raw::Not(name) => (name, true),
            Raw::Integer(value) => return Ok(PredicateOperand::Constant(*value != 0)),
            other => return Err(format!("expected a predicate, found {}", describe(other))),
        };
        Ok(PredicateOperand::Register { predicate: self.predicate_named(name)?, negated })
    }

    /// A source of exactly the type's width.
    pub(super) fn source(&mut self, raw: &Raw<'a>, ty: Type) -> Parsed<Operand> {
        self.source_within(raw, ty, ty.bits())
    }

    /// A source whose register may be wider than the type, as `st` and `cvt` allow.
    pub(super) fn wide_source(&mut self, raw: &Raw<'a>, ty: Type) -> Parsed<Operand> {
        self.source_within(raw, ty, 64.max(ty.bits()))
    }

    fn source_within(&mut self, raw: &Raw<'a>, ty: Type, most: u32) -> Parsed<Operand> {
        match raw {
            Raw::Name(name, part) if is_special(name) && self.names.find(name).is_none() => {
                self.special_source(name, *part, ty)
            }
            Raw::Name("WARP_SZ", None) => Ok(Operand::Immediate(32)),
            Raw::Name(..) => {
                let register = self.register(raw)?;
                let bits = u32::from(register.bits);
                if bits < ty.bits() || bits > most {
                    self.check_width(raw, register, ty.bits())?;
                }
                Ok(Operand::Plane(register.plane))
            }
            other => immediate(other, ty).map(Operand::Immediate),
        }
    }

    /// Reads a special register into a temporary of the type's width.
    fn special_source(&mut self, name: &str, part: Option<&str>, ty: Type) -> Parsed<Operand> {
        let special = special(name, part)?;
        let bits = ty.bits().clamp(16, 64) as u8;
        let dst = Register { plane: self.names.temporary(bits)?, bits };
        self.emit(Op::ReadSpecial { dst, special });
        Ok(Operand::Plane(dst.plane))
    }

    /// Elements of a vector, or the one operand.
    pub(super) fn elements<'r>(&self, raw: &'r Raw<'a>) -> &'r [Raw<'a>] {
        match raw {
            Raw::Vector(list) => list,
            other => std::slice::from_ref(other),
        }
    }

    /// `[...]`, with the space the symbol itself names: only parameters have one that matters.
    pub(super) fn address(&self, raw: &Raw<'a>) -> Parsed<(Address, Option<Space>)> {
        let Raw::Address(base, offset) = raw else {
            return Err(format!("expected an address, found {}", describe(raw)));
        };
        let Some(name) = base else {
            return Ok((Address { base: Base::Absolute, offset: *offset }, None));
        };
        let found = self.find(name).ok_or_else(|| format!("`{name}` is not declared"))?;
        let at = |start: u32| offset.wrapping_add(i64::from(start));
        let (base, offset, space) = match found {
            Name::Register(Register { plane, bits: 64 }) => {
                (Base::Register64(plane), *offset, None)
            }
            Name::Register(Register { plane, bits: 32 }) => {
                (Base::Register32(plane), *offset, None)
            }
            Name::Param(start) => (Base::Absolute, at(start), Some(Space::Param)),
            Name::CallParam(start, _) => (Base::Absolute, at(start), Some(Space::CallParam)),
            other => {
                let (symbol, start, space) = symbol(&other)
                    .ok_or_else(|| format!("`{name}` cannot be the base of an address"))?;
                let space = match other {
                    Name::Variable(index) => self.tables.module.variables[index as usize].space,
                    _ => space,
                };
                (Base::Symbol(symbol), at(start), Some(space))
            }
        };
        Ok((Address { base, offset }, space))
    }

    /// An address that must be in the space the instruction names (or have none of its own).
    pub(super) fn address_in(&self, raw: &Raw<'a>, space: Space) -> Parsed<Address> {
        match self.address(raw)? {
            (address, None) => Ok(address),
            (address, Some(own)) if own == space => Ok(address),
            (_, Some(own)) => Err(format!("the symbol is in {own:?} memory, not {space:?}")),
        }
    }
}

/// Symbols that have an address, with their offset and space.
pub(super) fn symbol(name: &Name<'_>) -> Option<(Symbol, u32, Space)> {
    Some(match name {
        Name::Shared(index) => (Symbol::PendingShared(*index), 0, Space::Shared),
        Name::Local(offset) => (Symbol::LocalFrame, *offset, Space::Local),
        Name::Param(offset) => (Symbol::ParamFrame, *offset, Space::Param),
        Name::Variable(index) => (Symbol::Variable(*index), 0, Space::Global),
        Name::Function(index) => (Symbol::Function(*index), 0, Space::Global),
        _ => return None,
    })
}

/// The bits of a constant in the type of the instruction.
fn immediate(raw: &Raw<'_>, ty: Type) -> Parsed<u64> {
    let bits = ty.bits();
    Ok(match raw {
        Raw::Integer(_) if matches!(ty, Type::F32 | Type::F64) => {
            return Err(format!("the integer {} where a float is expected", describe(raw)));
        }
        Raw::Integer(value) if bits < 64 => value & ((1 << bits) - 1),
        Raw::Integer(value) => *value,
        Raw::Single(single) if bits == 32 => u64::from(*single),
        Raw::Single(single) if bits == 64 => f64::from(f32::from_bits(*single)).to_bits(),
        Raw::Double(double) if bits == 64 => *double,
        Raw::Double(double) if bits == 32 => u64::from((f64::from_bits(*double) as f32).to_bits()),
        other => return Err(format!("{} cannot be a source of {ty:?}", describe(other))),
    })
}

/// Whether a name is one of the predefined `%` names (user registers are looked up first).
fn is_special(name: &str) -> bool {
    name.starts_with('%') && special_named(name, Some(0)).is_some()
        || name.starts_with('%') && special_named(name, None).is_some()
}

/// The special register of that name and component.
pub(super) fn special(name: &str, part: Option<&str>) -> Parsed<SpecialRegister> {
    let axis = match part {
        None => None,
        Some("x") => Some(0),
        Some("y") => Some(1),
        Some("z") => Some(2),
        Some(other) => return Err(format!("`{name}` has no component `.{other}`")),
    };
    special_named(name, axis).ok_or_else(|| {
        format!(
            "special register `{name}{}` is not known",
            part.map_or(String::new(), |p| format!(".{p}"))
        )
    })
}

fn special_named(name: &str, axis: Option<u8>) -> Option<SpecialRegister> {
    use SpecialRegister as S;
    if let Some(axis) = axis {
        return Some(match name {
            "%tid" => S::Tid(axis),
            "%ntid" => S::Ntid(axis),
            "%ctaid" => S::Ctaid(axis),
            "%nctaid" => S::Nctaid(axis),
            "%cluster_ctaid" => S::ClusterCtaid(axis),
            "%cluster_nctaid" => S::ClusterNctaid(axis),
            "%clusterid" => S::ClusterId(axis),
            "%nclusterid" => S::Nclusterid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => S::Laneid,
        "%warpid" => S::Warpid,
        "%nwarpid" => S::Nwarpid,
        "%smid" => S::Smid,
        "%nsmid" => S::Nsmid,
        "%gridid" => S::Gridid,
        "%lanemask_eq" => S::LanemaskEq,
        "%lanemask_le" => S::LanemaskLe,
        "%lanemask_lt" => S::LanemaskLt,
        "%lanemask_ge" => S::LanemaskGe,
        "%lanemask_gt" => S::LanemaskGt,
        "%clock" | "%clock_lo" => S::Clock,
        "%clock_hi" => S::ClockHi,
        "%clock64" => S::Clock64,
        "%globaltimer" => S::Globaltimer,
        "%globaltimer_lo" => S::GlobaltimerLo,
        "%globaltimer_hi" => S::GlobaltimerHi,
        "%dynamic_smem_size" => S::DynamicSmemSize,
        "%total_smem_size" => S::TotalSmemSize,
        "%cluster_ctarank" => S::ClusterCtarank,
        "%cluster_nctarank" => S::ClusterNctarank,
        "%is_explicit_cluster" => S::IsExplicitCluster,
        _ => {
            let index: u8 = name.strip_prefix("%envreg")?.parse().ok()?;
            if index > 31 {
                return None;
            }
            S::Envreg(index)
        }
    })
}

//! Loads, stores, atomics, prefetches and fences.

use super::super::body::{Body, Statement};
use super::super::cursor::Parsed;
use super::super::operands::{Raw, exactly};
use super::only;
use crate::ptx::ir::{
    Address, Atom, AtomOp, Cache, CacheOp, Eviction, Op, Operand, Register, Scope, Semantics,
    Space, Type,
};

pub(super) fn parse<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    match s.opcode {
        "ld" | "ldu" => load(body, s),
        "st" => store(body, s),
        "atom" | "red" => atom(body, s),
        "prefetch" | "prefetchu" => {
            let space = space(s);
            let levels = s.modifiers.take_where(|w| w.starts_with("L1") || w.starts_with("L2"));
            if levels.len() != 1 {
                return Err("a prefetch names one cache level".into());
            }
            let [address] = exactly(&s.operands)?;
            Ok(Op::Prefetch { space, address: body.address_in(address, space)? })
        }
        "createpolicy" => {
            // The policy changes no value, so its parts are not told apart.
            s.modifiers.take_where(|w| w.starts_with("L2") || matches!(w, "fractional" | "range"));
            s.modifiers.take("global");
            only(s.modifiers.ty()?, &[Type::B64])?;
            let dst = s.operands.first().ok_or("`createpolicy` needs a destination")?;
            Ok(Op::CreatePolicy { dst: body.dst(dst, 64)? })
        }
        "membar" => {
            let scope =
                s.modifiers.one_of(&[("cta", Scope::Cta), ("gl", Scope::Gpu), ("sys", Scope::Sys)]);
            let scope = scope.ok_or("`membar` without a level")?;
            Ok(Op::Fence { semantics: Semantics::Sc, scope })
        }
        _ => fence(s),
    }
}

fn fence(s: &mut Statement<'_>) -> Parsed<Op> {
    if s.modifiers.take("proxy") {
        let kinds = s
            .modifiers
            .take_where(|w| w == "alias" || w.starts_with("async") || w.starts_with("tensormap"));
        if kinds.len() != 1 || kinds[0].starts_with("tensormap") {
            return Err("this proxy fence is not supported".into());
        }
        s.modifiers.one_of(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())]);
        return Ok(Op::FenceProxy);
    }
    let restricted = s.modifiers.take_where(|w| w.starts_with("sync_restrict"));
    if s.modifiers.take("mbarrier_init") {
        s.modifiers.require("release")?;
        s.modifiers.require("cluster")?;
        return Ok(Op::FenceProxy);
    }
    let semantics = s.modifiers.one_of(&[
        ("sc", Semantics::Sc),
        ("acq_rel", Semantics::AcqRel),
        ("acquire", Semantics::Acquire),
        ("release", Semantics::Release),
    ]);
    let scope = s.modifiers.scope().ok_or("`fence` without a scope")?;
    if !restricted.is_empty() && scope != Scope::Cluster {
        return Err("`.sync_restrict` is of cluster scope".into());
    }
    Ok(Op::Fence { semantics: semantics.unwrap_or(Semantics::AcqRel), scope })
}

/// The state space an access names; generic when it names none.
pub(super) fn space(s: &mut Statement<'_>) -> Space {
    let named = s.modifiers.one_of(&[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param", Space::Param),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
    ]);
    named.unwrap_or(Space::Generic)
}

/// Ordering and scope.
fn ordering(s: &mut Statement<'_>, default: Semantics) -> Parsed<(Semantics, Scope)> {
    let named = s.modifiers.one_of(&[
        ("weak", Semantics::Weak),
        ("volatile", Semantics::Volatile),
        ("relaxed", Semantics::Relaxed),
        ("acquire", Semantics::Acquire),
        ("release", Semantics::Release),
        ("acq_rel", Semantics::AcqRel),
        ("mmio", Semantics::Mmio),
    ]);
    if named == Some(Semantics::Mmio) {
        s.modifiers.require("relaxed")?;
    }
    let scope = s.modifiers.scope();
    let semantics = named.unwrap_or(default);
    let scoped = !matches!(semantics, Semantics::Weak | Semantics::Volatile);
    if scoped && named.is_some() && scope.is_none() {
        return Err("an ordered access needs a scope".into());
    }
    if !scoped && scope.is_some() {
        return Err("a weak or volatile access has no scope".into());
    }
    Ok((semantics, scope.unwrap_or(Scope::Gpu)))
}

/// Caching hints.
pub(super) fn cache(s: &mut Statement<'_>) -> Cache {
    let op = s.modifiers.one_of(&[
        ("ca", CacheOp::Ca),
        ("cg", CacheOp::Cg),
        ("cs", CacheOp::Cs),
        ("lu", CacheOp::Lu),
        ("cv", CacheOp::Cv),
        ("wb", CacheOp::Wb),
        ("wt", CacheOp::Wt),
    ]);
    let l1 = s.modifiers.one_of(&[
        ("L1::evict_normal", Eviction::Normal),
        ("L1::evict_unchanged", Eviction::Unchanged),
        ("L1::evict_first", Eviction::First),
        ("L1::evict_last", Eviction::Last),
        ("L1::no_allocate", Eviction::NoAllocate),
    ]);
    let l2 = s.modifiers.one_of(&[
        ("L2::evict_normal", Eviction::Normal),
        ("L2::evict_first", Eviction::First),
        ("L2::evict_last", Eviction::Last),
    ]);
    let prefetch = s.modifiers.one_of(&[("L2::64B", 64), ("L2::128B", 128), ("L2::256B", 256)]);
    Cache {
        op: op.unwrap_or_default(),
        l1: l1.unwrap_or_default(),
        l2: l2.unwrap_or_default(),
        prefetch_bytes: prefetch.unwrap_or(0),
        non_coherent: s.modifiers.take("nc"),
        uniform: s.opcode == "ldu",
        policy: s.modifiers.take("L2::cache_hint"),
    }
}

fn vector_length(s: &mut Statement<'_>) -> usize {
    s.modifiers.one_of(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1)
}

/// Splits off the cache-policy operand, which must be a 64-bit register.
pub(super) fn without_policy<'r, 'a>(
    body: &Body<'_, 'a>,
    operands: &'r [Raw<'a>],
    cache: &Cache,
) -> Parsed<&'r [Raw<'a>]> {
    if !cache.policy {
        return Ok(operands);
    }
    let (policy, rest) = operands.split_last().ok_or("the cache policy is missing")?;
    body.dst(policy, 64)?;
    Ok(rest)
}

/// The address and where it is: `ld.param` of a call's variable is in the caller's own space.
fn place<'a>(body: &Body<'_, 'a>, raw: &Raw<'a>, space: Space) -> Parsed<(Space, Address)> {
    let (address, own) = body.address(raw)?;
    match (space, own) {
        (space, None) => Ok((space, address)),
        (Space::Param, Some(own @ (Space::Param | Space::CallParam))) => Ok((own, address)),
        (space, Some(own)) if own == space => Ok((space, address)),
        // A generic access through a symbol means the symbol's own memory.
        (Space::Generic, Some(own)) => Ok((own, address)),
        (space, Some(own)) => Err(format!("the symbol is in {own:?} memory, not {space:?}")),
    }
}

fn load<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let space = space(s);
    let (semantics, scope) = ordering(s, Semantics::Weak)?;
    let cache = cache(s);
    let length = vector_length(s);
    let ty = s.modifiers.ty()?;
    check_element(ty, length)?;
    if cache.non_coherent && space != Space::Global {
        return Err("`.nc` is of global memory".into());
    }
    let [dst, address] = exactly(without_policy(body, &s.operands, &cache)?)?;
    let dsts = registers(body, dst, ty, length)?;
    let (space, address) = place(body, address, space)?;
    Ok(Op::Load { space, ty, dsts, address, cache, semantics, scope })
}

/// Destination registers, at least as wide as the elements.
fn registers<'a>(
    body: &Body<'_, 'a>,
    raw: &Raw<'a>,
    ty: Type,
    length: usize,
) -> Parsed<Vec<Option<Register>>> {
    let elements = body.elements(raw);
    if elements.len() != length {
        return Err(format!("{length} registers expected, {} given", elements.len()));
    }
    let mut out = Vec::with_capacity(length);
    for element in elements {
        let register = body.register_or_sink(element)?;
        if register.is_some_and(|r| u32::from(r.bits) < ty.bits()) {
            return Err(format!("a destination is narrower than {ty:?}"));
        }
        out.push(register);
    }
    Ok(out)
}

fn check_element(ty: Type, length: usize) -> Parsed<()> {
    let known = matches!(ty.bits(), 8 | 16 | 32 | 64 | 128)
        && !matches!(ty, Type::Tf32 | Type::F32x2 | Type::E4m3 | Type::E5m2 | Type::U16x2)
        && !matches!(ty, Type::E4m3x2 | Type::E5m2x2 | Type::S16x2);
    let bits = ty.bits() as usize * length;
    if known && (bits <= 128 || (length == 8 && bits <= 256) || (length == 4 && bits == 256)) {
        return Ok(());
    }
    Err(format!("there is no access of {length} times {ty:?}"))
}

fn store<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let space = space(s);
    let (semantics, scope) = ordering(s, Semantics::Weak)?;
    let cache = cache(s);
    let length = vector_length(s);
    let ty = s.modifiers.ty()?;
    check_element(ty, length)?;
    if space == Space::Const {
        return Err("constant memory cannot be stored to".into());
    }
    let [address, src] = exactly(without_policy(body, &s.operands, &cache)?)?;
    let elements = body.elements(src);
    if elements.len() != length {
        return Err(format!("{length} values expected, {} given", elements.len()));
    }
    let mut srcs = Vec::with_capacity(length);
    for element in elements {
        srcs.push(body.wide_source(element, ty)?);
    }
    let (space, address) = place(body, address, space)?;
    Ok(Op::Store { space, ty, srcs, address, cache, semantics, scope })
}

fn atom<'a>(body: &mut Body<'_, 'a>, s: &mut Statement<'a>) -> Parsed<Op> {
    let space = space(s);
    let (semantics, scope) = ordering(s, Semantics::Relaxed)?;
    let op = s.modifiers.one_of(&[
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("exch", AtomOp::Exch),
        ("cas", AtomOp::Cas),
    ]);
    let op = op.ok_or("the atomic operation is missing")?;
    let noftz = s.modifiers.take("noftz");
    let cache = cache(s);
    let length = vector_length(s);
    let ty = s.modifiers.ty()?;
    check_atom(op, ty, length, noftz)?;
    let operands = without_policy(body, &s.operands, &cache)?;
    let (dst, rest) = if s.opcode == "atom" {
        let (dst, rest) = operands.split_first().ok_or("operands are missing")?;
        (registers(body, dst, ty, length)?, rest)
    } else {
        (Vec::new(), operands)
    };
    let [address, a] = exactly(rest.get(..2).unwrap_or(rest))?;
    let b = match (op, &rest[2..]) {
        (AtomOp::Cas, [b]) if s.opcode == "atom" => Some(body.source(b, ty)?),
        (AtomOp::Cas, _) => return Err("`cas` needs a destination and two values".into()),
        (_, []) => None,
        _ => return Err("too many operands".into()),
    };
    let address = body.address_in(address, space)?;
    let mut values: Vec<Operand> = Vec::with_capacity(length);
    let elements = body.elements(a);
    if elements.len() != length {
        return Err(format!("{length} values expected, {} given", elements.len()));
    }
    for element in elements {
        values.push(body.source(element, ty)?);
    }
    let atom = Atom { space, op, ty, dsts: dst, address, a: values, b, semantics, scope };
    Ok(Op::Atom(Box::new(atom)))
}

/// Which operation is known of which type.
fn check_atom(op: AtomOp, ty: Type, length: usize, noftz: bool) -> Parsed<()> {
    use AtomOp::{Add, And, Cas, Dec, Exch, Inc, Max, Min, Or, Xor};
    let halves = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
    let known = match op {
        Add => {
            halves
                || matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64)
                || matches!(ty, Type::F32 | Type::F64)
        }
        Min | Max => {
            matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64) || (halves && length > 1)
        }
        Inc | Dec => ty == Type::U32,
        And | Or | Xor => matches!(ty, Type::B32 | Type::B64),
        Exch => matches!(ty, Type::B32 | Type::B64),
        Cas => matches!(ty, Type::B16 | Type::B32 | Type::B64),
    };
    let vector = length == 1 || (matches!(op, Add | Min | Max) && (halves || ty == Type::F32));
    let right_noftz = noftz == halves;
    if known && vector && right_noftz {
        return Ok(());
    }
    Err(format!("there is no atomic {op:?} of {length} times {ty:?}"))
}

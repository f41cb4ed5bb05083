//! The typed program: what the parser produces and what the warps execute, with nothing between.
//!
//! A function owns `planes` 32-bit register planes and `predicates` predicate registers. A 16- or
//! 32-bit PTX register is one plane (a 16-bit one keeps its upper half zero), a 64-bit register two
//! consecutive planes, low first. Special registers are read only by [`Op::ReadSpecial`], symbols
//! only by [`Op::AddressOf`] and [`Address`]; every other operand is a plane or an immediate.
//! The invariant: nothing the hot loop reads is a string, and every index is in range.
//! Read next: `parser`, which builds this, and `exec`, which runs it.

use std::collections::BTreeMap;

/// One PTX module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Module {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// `.target`, with its suffix: `sm_80`, `sm_90a`.
    pub target: String,
    /// `.file` table.
    pub files: BTreeMap<u32, String>,
    /// `.global` and `.const` variables; shared ones are placed per function.
    pub variables: Vec<Variable>,
    /// Entries, device functions and declarations.
    pub functions: Vec<Function>,
}

impl Module {
    /// Index of the function of that name; a definition wins over a declaration.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        let named = |defined: bool| {
            self.functions
                .iter()
                .position(|f| f.name == name && (f.kind != Kind::Extern) == defined)
        };
        named(true).or_else(|| named(false))
    }
}

/// A module-scope variable in global or constant memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// [`Space::Global`] or [`Space::Const`].
    pub space: Space,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes.
    pub size: u64,
    /// Initial bytes; shorter than `size` means zeros follow.
    pub init: Vec<u8>,
    /// Addresses to be written over `init` once symbols are placed.
    pub relocations: Vec<Relocation>,
    /// Whether it is only declared here (`.extern`).
    pub external: bool,
}

/// An address stored inside an initialiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relocation {
    /// Byte offset in the variable.
    pub offset: u64,
    /// Width in bytes: 4 or 8.
    pub bytes: u8,
    /// [`Symbol::Variable`] or [`Symbol::Function`].
    pub symbol: Symbol,
    /// Added to the address.
    pub addend: i64,
}

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A kernel.
    Entry,
    /// A device function with a body.
    Device,
    /// A declaration without a body; calls of it are for the executor (`vprintf`, `__assertfail`).
    Extern,
}

/// A kernel or device function.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Entry, device function or declaration.
    pub kind: Kind,
    /// Input parameters, at their offsets in the parameter space of the function.
    pub params: Vec<Param>,
    /// Return parameters; they follow the inputs in the same space.
    pub returns: Vec<Param>,
    /// Bytes of that space.
    pub param_bytes: u32,
    /// Bytes of the per-thread space of the `.param` variables it passes to calls.
    pub call_bytes: u32,
    /// 32-bit register planes.
    pub planes: u32,
    /// Predicate registers.
    pub predicates: u32,
    /// Shared variables it may touch, itself or through calls. Dynamic ones have size 0.
    pub shared: Vec<SharedVariable>,
    /// Bytes of static shared memory.
    pub static_shared_bytes: u32,
    /// Where dynamic shared memory begins (only meaningful for an entry).
    pub dynamic_shared_offset: u32,
    /// Bytes of its own local variables a thread, callees not counted.
    pub local_bytes: u32,
    /// Launch limits.
    pub limits: Limits,
    /// The instructions; running past the end is a return.
    pub body: Vec<Instruction>,
    /// PTX line of the declaration.
    pub line: u32,
}

/// A parameter and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Byte offset in the parameter space.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A shared variable and its place in the CTA's shared memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedVariable {
    /// Its name.
    pub name: String,
    /// Byte offset.
    pub offset: u32,
    /// Bytes; 0 for a dynamic (`.extern .shared x[]`) one.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// Whether it names the dynamic part.
    pub dynamic: bool,
}

/// Performance-tuning directives that limit a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `.maxntid`: the product bounds the block.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the block must be exactly this.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_ctas_per_sm: Option<u32>,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
    /// `.reqnctapercluster`.
    pub required_cluster: Option<[u32; 3]>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// `@p` or `@!p`.
    pub guard: Option<Guard>,
    /// What it does.
    pub op: Op,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// `.loc`: file index and line of the source.
    pub source: Option<(u32, u32)>,
}

/// A guard predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// Index of the predicate register.
    pub predicate: u32,
    /// `@!p`.
    pub negated: bool,
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Decided by the address at run time.
    Generic,
    /// Global memory.
    Global,
    /// Shared memory of the CTA.
    Shared,
    /// Thread-local memory.
    Local,
    /// Constant memory.
    Const,
    /// The function's own parameters: of the launch for an entry, of the thread for a function.
    Param,
    /// `.param` variables declared in the body to pass to calls; one copy a thread.
    CallParam,
}

/// Fundamental and packed types.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    F32x2,
    U16x2,
    S16x2,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    Pred,
}

impl Type {
    /// Width in bits; a predicate has 1.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 | Self::E4m3 | Self::E5m2 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::E4m3x2 | Self::E5m2x2 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::Tf32 => 32,
            Self::F16x2 | Self::Bf16x2 | Self::U16x2 | Self::S16x2 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 | Self::F32x2 => 64,
            Self::B128 => 128,
        }
    }

    /// Width in bytes of one element in memory.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// A signed integer type.
    #[must_use]
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// A floating-point type, packed or not.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::F16
                | Self::F16x2
                | Self::Bf16
                | Self::Bf16x2
                | Self::Tf32
                | Self::F32
                | Self::F64
                | Self::F32x2
                | Self::E4m3
                | Self::E5m2
                | Self::E4m3x2
                | Self::E5m2x2
        )
    }
}

/// A register with its declared width: loads and conversions extend to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// First plane.
    pub plane: u32,
    /// Declared width in bits: 8, 16, 32, 64 or 128 (one plane up to 32, then 2 and 4).
    pub bits: u8,
}

impl Register {
    /// Planes it occupies.
    #[must_use]
    pub const fn planes(self) -> u32 {
        match self.bits {
            64 => 2,
            128 => 4,
            _ => 1,
        }
    }
}

/// A source operand. Its width is that of the instruction's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// First plane of a register.
    Plane(u32),
    /// Bits of an immediate, already in the instruction's type (floats as their bits).
    Immediate(u64),
}

/// A source predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredicateOperand {
    /// `p` or `!p`.
    Register {
        /// Index of the predicate register.
        predicate: u32,
        /// `!p`.
        negated: bool,
    },
    /// A constant.
    Constant(bool),
}

/// What an address is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing: the offset is the address.
    Absolute,
    /// A 32-bit register.
    Register32(u32),
    /// A 64-bit register: its low plane.
    Register64(u32),
    /// A symbol whose address is known only at load or at call.
    Symbol(Symbol),
}

/// A symbol. Static shared variables never appear: they are folded into offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbol {
    /// Index in [`Module::variables`].
    Variable(u32),
    /// Index in [`Module::functions`].
    Function(u32),
    /// The start of the launch's dynamic shared memory
    /// (only inside device functions; entries have it folded).
    DynamicShared,
    /// The local frame of the running function.
    LocalFrame,
    /// The parameter space of the running function.
    ParamFrame,
    /// Used while parsing: index in the parser's shared variables.
    PendingShared(u32),
}

/// A memory address: base plus constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// What it is relative to.
    pub base: Base,
    /// Bytes added.
    pub offset: i64,
}

/// Rounding of a floating-point result or of a conversion to an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nearest, ties to even (`.rn`, `.rni`).
    Nearest,
    /// Toward zero (`.rz`, `.rzi`).
    Zero,
    /// Toward negative infinity (`.rm`, `.rmi`).
    Down,
    /// Toward positive infinity (`.rp`, `.rpi`).
    Up,
    /// Nearest, ties away from zero (`.rna`).
    NearestAway,
    /// Stochastic (`.rs`); parsed only to be refused.
    Stochastic,
}

/// Two-operand integer operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOp {
    Add,
    Sub,
    /// `.sat`, 32-bit signed only.
    AddSaturating,
    SubSaturating,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    MinRelu,
    MaxRelu,
    And,
    Or,
    Xor,
    /// 24-bit multiply, low and high.
    Mul24Lo,
    Mul24Hi,
}

/// One-operand integer operations; `Popc`, `Clz`, `Bfind` and `BfindShift` write 32 bits.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntUnaryOp {
    Neg,
    Abs,
    Not,
    Cnot,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
}

/// Types of integer arithmetic; bit types are unsigned here.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntType {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    U16x2,
    S16x2,
}

/// Which part of a product `mad` keeps.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadOp {
    Lo,
    Hi,
    /// `c` and the result are twice as wide as `ty`.
    Wide,
    /// `.hi.sat.s32`.
    HiSaturating,
    Lo24,
    Hi24,
}

/// Instructions that read or write the carry flag.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi,
}

/// Types of floating-point arithmetic.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F32x2,
    F64,
}

/// Two-operand floating-point operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    /// `div.approx`, `div.full`.
    DivApprox,
    Min,
    Max,
    Copysign,
}

/// One-operand floating-point operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatUnaryOp {
    Neg,
    Abs,
    Rcp,
    RcpApprox,
    Sqrt,
    SqrtApprox,
    RsqrtApprox,
    Ex2Approx,
    Lg2Approx,
    SinApprox,
    CosApprox,
    TanhApprox,
}

/// Modifiers of floating-point arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatMode {
    /// Rounding.
    pub rounding: Rounding,
    /// Subnormal inputs and results become signed zeros (f32, f16).
    pub ftz: bool,
    /// Clamp to [0, 1], NaN to +0.
    pub sat: bool,
    /// Negative results become +0 and NaN canonical (`.relu`).
    pub relu: bool,
    /// `min`/`max` return NaN if either operand is (`.NaN`).
    pub nan: bool,
    /// The sign of a `min`/`max` is the xor of both signs (`.xorsign.abs`).
    pub xorsign_abs: bool,
}

impl Default for FloatMode {
    fn default() -> Self {
        Self {
            rounding: Rounding::Nearest,
            ftz: false,
            sat: false,
            relu: false,
            nan: false,
            xorsign_abs: false,
        }
    }
}

/// Comparisons; the `U` ones also hold when an operand is NaN.
#[allow(missing_docs)] // PTX names; Lo, Ls, Hi, Hs are Lt, Le, Gt, Ge of unsigned types
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Neither operand is NaN.
    Num,
    /// Either operand is NaN.
    Nan,
}

/// Boolean operations on predicates.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

/// `testp` questions.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestpOp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// `prmt` modes.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrmtMode {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// A conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convert {
    /// Type of the result.
    pub to: Type,
    /// Type of the source.
    pub from: Type,
    /// Rounding; `None` where PTX asks for none (exact or integer to integer).
    pub rounding: Option<Rounding>,
    /// Whether the rounding is to an integer (`.rni`, `.rzi`, `.rmi`, `.rpi`).
    pub to_integer: bool,
    /// Flush subnormal f32 inputs and results.
    pub ftz: bool,
    /// Clamp: integers to the range of `to`, floats to [0, 1].
    pub sat: bool,
    /// Clamp to the largest finite value instead of infinity.
    pub satfinite: bool,
    /// Negative results become +0.
    pub relu: bool,
}

/// Memory-ordering semantics of an access.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    Weak,
    Volatile,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    Sc,
    Mmio,
}

/// Scope of an access or fence.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Cta,
    Cluster,
    Gpu,
    Sys,
}

/// First-level caching operator.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheOp {
    #[default]
    Default,
    Ca,
    Cg,
    Cs,
    Lu,
    Cv,
    Wb,
    Wt,
}

/// L1 eviction priority.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Eviction {
    #[default]
    Normal,
    Unchanged,
    First,
    Last,
    NoAllocate,
}

/// Caching hints; they change no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cache {
    /// `.ca`, `.cg`, ...
    pub op: CacheOp,
    /// `.L1::...`.
    pub l1: Eviction,
    /// `.L2::...` eviction priority.
    pub l2: Eviction,
    /// `.L2::64B`, `128B`, `256B`: bytes, 0 when absent.
    pub prefetch_bytes: u16,
    /// `.nc`: the non-coherent path; the data must be read-only for the kernel's life.
    pub non_coherent: bool,
    /// `ldu`.
    pub uniform: bool,
    /// Whether a cache-policy operand was given.
    pub policy: bool,
}

/// `shfl` modes.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `vote.sync` modes.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    /// Writes a 32-bit plane; the others write a predicate.
    Ballot,
}

/// `redux.sync` operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// `bar.red` operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarrierReduction {
    /// Writes a 32-bit plane.
    Popc,
    /// Writes a predicate.
    And,
    /// Writes a predicate.
    Or,
}

/// What a CTA barrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarrierKind {
    /// Arrive and wait.
    Sync,
    /// Arrive only.
    Arrive,
    /// Arrive, wait and reduce a predicate; `dst` is a plane for `Popc`, else a predicate.
    Reduce {
        /// The operation.
        op: BarrierReduction,
        /// Plane or predicate index.
        dst: u32,
        /// Each thread's predicate.
        source: PredicateOperand,
    },
}

/// Atomic operations.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// A matrix multiply-accumulate of one warp.
#[derive(Debug, Clone, PartialEq)]
pub struct Mma {
    /// Rows of A and D.
    pub m: u32,
    /// Columns of B and D.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
    /// Whether A is stored by rows; all shapes but m8n8k4 have `row.col`.
    pub a_row: bool,
    /// Whether B is stored by rows.
    pub b_row: bool,
    /// Element types of D, A, B and C. For integer A and B: `U8`, `S8`.
    pub types: [Type; 4],
    /// Integer saturation (`.satfinite`).
    pub satfinite: bool,
    /// First planes of D's registers.
    pub d: Vec<u32>,
    /// A's registers.
    pub a: Vec<Operand>,
    /// B's registers.
    pub b: Vec<Operand>,
    /// C's registers.
    pub c: Vec<Operand>,
}

/// An atomic access; without `dst` a reduction (`red`).
#[derive(Debug, Clone, PartialEq)]
pub struct Atom {
    /// Global, shared or generic.
    pub space: Space,
    /// The operation.
    pub op: AtomOp,
    /// Element type.
    pub ty: Type,
    /// Old values, one register an element (one unless a vector form); empty for `red`.
    pub dsts: Vec<Option<Register>>,
    /// Where.
    pub address: Address,
    /// Operands, one an element.
    pub a: Vec<Operand>,
    /// The new value of a `cas`.
    pub b: Option<Operand>,
    /// Ordering.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
}

/// A non-bulk asynchronous copy from global to shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpAsync {
    /// Shared address.
    pub dst: Address,
    /// Global address.
    pub src: Address,
    /// Bytes written: 4, 8 or 16.
    pub bytes: u32,
    /// Bytes read (32-bit operand); the rest is zeros.
    pub source_bytes: Option<Operand>,
    /// When true nothing is read and zeros are written.
    pub ignore_source: Option<PredicateOperand>,
    /// `.ca` or `.cg` and hints.
    pub cache: Cache,
}

/// Operations on an mbarrier object (64 bits of shared memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mbarrier {
    /// `init`: expected arrivals in `count`.
    Init {
        /// Of the object.
        address: Address,
        /// 32-bit operand.
        count: Operand,
    },
    /// `inval`.
    Invalidate {
        /// Of the object.
        address: Address,
    },
    /// `arrive` and its forms.
    Arrive {
        /// The phase before arriving (64-bit), unless `_` or absent.
        state: Option<Register>,
        /// Of the object.
        address: Address,
        /// Arrivals, 1 when absent (32-bit operand).
        count: Option<Operand>,
        /// `.expect_tx`: bytes added to the pending transactions first.
        expect_bytes: Option<Operand>,
        /// `arrive_drop`.
        drop: bool,
        /// `.noComplete`.
        no_complete: bool,
    },
    /// `expect_tx`.
    ExpectTx {
        /// Of the object.
        address: Address,
        /// 32-bit operand.
        bytes: Operand,
    },
    /// `complete_tx`.
    CompleteTx {
        /// Of the object.
        address: Address,
        /// 32-bit operand.
        bytes: Operand,
    },
    /// `test_wait` and `try_wait`.
    Wait {
        /// Predicate written: whether the phase completed.
        dst: u32,
        /// Of the object.
        address: Address,
        /// A 64-bit state, or a 32-bit phase parity if `parity`.
        phase: Operand,
        /// `.parity`.
        parity: bool,
        /// `try_wait` may suspend the thread; `test_wait` may not.
        suspends: bool,
    },
    /// `pending_count`.
    PendingCount {
        /// Plane of the 32-bit result.
        dst: u32,
        /// 64-bit state.
        state: Operand,
    },
    /// `cp.async.mbarrier.arrive`: arrive once this thread's copies so far have landed.
    ArriveAfterCopies {
        /// Of the object.
        address: Address,
        /// `.noinc`.
        no_increment: bool,
    },
}

/// What a call copies between the caller's `.param` variables and the callee's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamCopy {
    /// Byte offset in the caller's [`Space::CallParam`].
    pub caller_offset: u32,
    /// Byte offset in the callee's [`Space::Param`].
    pub callee_offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// Who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee {
    /// Index in [`Module::functions`].
    Function(u32),
    /// A 64-bit register holding the value `AddressOf` gave for [`Symbol::Function`].
    Indirect(u32),
}

/// Special registers.
#[allow(missing_docs)] // PTX names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialRegister {
    /// Axis 0, 1 or 2.
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    /// 64 bits.
    Gridid,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    Clock,
    ClockHi,
    /// 64 bits.
    Clock64,
    /// 64 bits.
    Globaltimer,
    GlobaltimerLo,
    GlobaltimerHi,
    DynamicSmemSize,
    TotalSmemSize,
    ReservedSmem,
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterId(u8),
    Nclusterid(u8),
    ClusterCtarank,
    ClusterNctarank,
    /// A predicate in PTX; here it reads as 0 or 1.
    IsExplicitCluster,
    Envreg(u8),
}

/// What an instruction does. Fields named `dst` are first planes unless they say otherwise;
/// `a`, `b`, `c` are sources in PTX order.
#[allow(missing_docs)] // the fields are the operands of the PTX instruction of that name
#[derive(Debug, Clone, PartialEq)]
#[rustfmt::skip] // one line an instruction
pub enum Op {
    // --- moves -----------------------------------------------------------------------------
    /// `bits` is 16, 32, 64 or 128.
    Mov { bits: u8, dst: u32, a: Operand },
    MovPredicate { dst: u32, a: PredicateOperand },
    ReadSpecial { dst: Register, special: SpecialRegister },
    /// The address of a symbol in its own space (not generic), plus `offset`.
    AddressOf { dst: Register, base: Base, offset: i64 },
    /// `mov.b32 d, {a, b}`: elements of `part_bits` bits, lowest first.
    Pack { dst: Register, part_bits: u8, parts: Vec<Operand> },
    /// `mov.b32 {a, b}, d`; a sink `_` is `None`.
    Unpack { dsts: Vec<Option<Register>>, part_bits: u8, a: Operand },
    /// `to`: from generic to `space`; else from `space` to generic. `bits` is 32 or 64.
    Cvta { to: bool, space: Space, bits: u8, dst: u32, a: Operand },
    /// Writes predicate `dst`.
    Isspacep { space: Space, dst: u32, a: Operand },

    // --- integers --------------------------------------------------------------------------
    Int { op: IntOp, ty: IntType, dst: u32, a: Operand, b: Operand },
    IntUnary { op: IntUnaryOp, ty: IntType, dst: u32, a: Operand },
    /// Product twice as wide as `ty`.
    MulWide { ty: IntType, dst: u32, a: Operand, b: Operand },
    Mad { op: MadOp, ty: IntType, dst: u32, a: Operand, b: Operand, c: Operand },
    Sad { ty: IntType, dst: u32, a: Operand, b: Operand, c: Operand },
    /// `c` only for the mad forms.
    Carry {
        op: CarryOp,
        ty: IntType,
        carry_in: bool,
        carry_out: bool,
        dst: u32,
        a: Operand,
        b: Operand,
        c: Option<Operand>,
    },
    /// `b` is a 32-bit amount, clamped to the width.
    Shl { ty: IntType, dst: u32, a: Operand, b: Operand },
    Shr { ty: IntType, dst: u32, a: Operand, b: Operand },
    /// `shf`: `a` low word, `b` high word, `c` amount.
    Shf { left: bool, wrap: bool, dst: u32, a: Operand, b: Operand, c: Operand },
    Lop3 { lut: u8, dst: u32, a: Operand, b: Operand, c: Operand },
    Prmt { mode: PrmtMode, dst: u32, a: Operand, b: Operand, c: Operand },
    /// `b` position, `c` length.
    Bfe { ty: IntType, dst: u32, a: Operand, b: Operand, c: Operand },
    /// Inserts `a` into `b` at position `c` with length `d`.
    Bfi { ty: IntType, dst: u32, a: Operand, b: Operand, c: Operand, d: Operand },
    /// `bmsk`: a mask of `b` bits from position `a`.
    Bmsk { wrap: bool, dst: u32, a: Operand, b: Operand },
    Szext { wrap: bool, signed: bool, dst: u32, a: Operand, b: Operand },
    Dp4a { a_signed: bool, b_signed: bool, dst: u32, a: Operand, b: Operand, c: Operand },
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
        dst: u32,
        a: Operand,
        b: Operand,
        c: Operand,
    },

    // --- floats ----------------------------------------------------------------------------
    Float { op: FloatOp, ty: FloatType, mode: FloatMode, dst: u32, a: Operand, b: Operand },
    FloatUnary { op: FloatUnaryOp, ty: FloatType, mode: FloatMode, dst: u32, a: Operand },
    Fma { ty: FloatType, mode: FloatMode, dst: u32, a: Operand, b: Operand, c: Operand },
    /// Three-input `min`/`max` of f32 (sm_100); `op` is `Min` or `Max`.
    Float3 { op: FloatOp, mode: FloatMode, dst: u32, a: Operand, b: Operand, c: Operand },
    /// Writes predicate `dst`.
    Testp { op: TestpOp, ty: FloatType, dst: u32, a: Operand },
    /// `dst` has its declared width; `b` is the second source of a packing conversion
    /// (`cvt.rn.bf16x2.f32 d, a, b`: `a` goes to the upper half).
    Cvt { convert: Convert, dst: Register, a: Operand, b: Option<Operand> },

    /// `cvt.pack`: `a` and `b` saturated to `to`, `a` above `b`, above the low bits of `c`.
    CvtPack { to: Type, dst: u32, a: Operand, b: Operand, c: Option<Operand> },

    // --- predicates ------------------------------------------------------------------------
    /// Writes predicate `dst` (unless sunk), and `dst2` with the negated comparison. For packed
    /// f16x2/bf16x2 types `dst` is the lower and `dst2` the upper half's comparison.
    Setp {
        cmp: Compare,
        ty: Type,
        ftz: bool,
        combine: Option<(BoolOp, PredicateOperand)>,
        dst: Option<u32>,
        dst2: Option<u32>,
        a: Operand,
        b: Operand,
    },
    /// Writes all ones or 1.0 of `to`.
    Set {
        cmp: Compare,
        to: Type,
        ty: Type,
        ftz: bool,
        combine: Option<(BoolOp, PredicateOperand)>,
        dst: u32,
        a: Operand,
        b: Operand,
    },
    /// `bits` is 16, 32 or 64.
    Selp { bits: u8, dst: u32, a: Operand, b: Operand, c: PredicateOperand },
    /// `c >= 0 ? a : b`; `c` is s32 or f32.
    Slct { bits: u8, float: bool, ftz: bool, dst: u32, a: Operand, b: Operand, c: Operand },
    PredicateLogic { op: BoolOp, dst: u32, a: PredicateOperand, b: PredicateOperand },
    PredicateNot { dst: u32, a: PredicateOperand },

    // --- memory ----------------------------------------------------------------------------
    /// One to eight elements of `ty`, each extended to its register; `_` is `None`.
    Load {
        space: Space,
        ty: Type,
        dsts: Vec<Option<Register>>,
        address: Address,
        cache: Cache,
        semantics: Semantics,
        scope: Scope,
    },
    Store {
        space: Space,
        ty: Type,
        srcs: Vec<Operand>,
        address: Address,
        cache: Cache,
        semantics: Semantics,
        scope: Scope,
    },
    Atom(Box<Atom>),
    Prefetch { space: Space, address: Address },
    /// Writes an opaque 64-bit policy.
    CreatePolicy { dst: u32 },
    Fence { semantics: Semantics, scope: Scope },
    /// `fence.proxy.*` and `fence.mbarrier_init`: orders nothing the executor reorders.
    FenceProxy,
    CpAsync(Box<CpAsync>),
    CpAsyncCommit,
    /// Waits until at most `pending` groups are open; `None` is `wait_all`.
    CpAsyncWait { pending: Option<u32> },
    Mbarrier(Box<Mbarrier>),

    // --- control ---------------------------------------------------------------------------
    Bra { target: u32, uniform: bool },
    BrxIdx { index: Operand, targets: Vec<u32>, uniform: bool },
    Call { callee: Callee, args: Vec<ParamCopy>, returns: Vec<ParamCopy>, uniform: bool },
    Ret { uniform: bool },
    Exit,
    Trap,
    Brkpt,
    Nanosleep { a: Operand },
    /// `griddepcontrol.wait`, or `.launch_dependents`.
    GridDepControl { launch: bool },

    // --- warp ------------------------------------------------------------------------------
    /// `predicate` is written with whether the source lane was in range.
    Shfl {
        mode: ShflMode,
        dst: u32,
        predicate: Option<u32>,
        a: Operand,
        b: Operand,
        c: Operand,
        mask: Operand,
    },
    /// `dst` is a plane for `Ballot`, else a predicate.
    Vote { mode: VoteMode, dst: u32, a: PredicateOperand, mask: Operand },
    /// `bits` is 32 or 64; `predicate` only with `all`.
    Match { all: bool, bits: u8, dst: u32, predicate: Option<u32>, a: Operand, mask: Operand },
    /// `ty` is U32, S32 (or B32 for logic), or F32 with the modifiers in `mode`.
    Redux { op: ReduxOp, ty: Type, mode: FloatMode, dst: u32, a: Operand, mask: Operand },
    ActiveMask { dst: u32 },
    Elect { dst: Option<u32>, predicate: u32, mask: Operand },
    BarWarp { mask: Operand },

    // --- CTA and cluster -------------------------------------------------------------------
    /// `aligned`: all threads of a warp must execute it together (`bar`, `barrier...aligned`).
    Barrier { kind: BarrierKind, id: Operand, threads: Option<Operand>, aligned: bool },
    ClusterArrive { semantics: Semantics },
    ClusterWait,

    // --- matrices --------------------------------------------------------------------------
    Mma(Box<Mma>),
    /// 8x8 matrices of 16-bit elements, one register each.
    LdMatrix { transpose: bool, dsts: Vec<u32>, address: Address },
    StMatrix { transpose: bool, srcs: Vec<Operand>, address: Address },
    MovMatrix { dst: u32, a: Operand },
}

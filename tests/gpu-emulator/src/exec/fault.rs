//! From a broken rule to a [`Fault`] that says which kernel, line, CTA and thread broke it.

use super::grid::Grid;
use crate::launch::{Fault, FaultKind};
use crate::memory::Violation;
use crate::memory::shared::LaneViolation;
use crate::ptx::ir::Instruction;

/// A broken rule as the instruction's own code sees it: it knows lanes, not CTAs.
#[derive(Debug, Clone)]
pub(crate) struct Wrong {
    pub(crate) kind: FaultKind,
    /// The lane that did it, when it was one.
    pub(crate) lane: Option<usize>,
    pub(crate) address: Option<u64>,
    pub(crate) detail: String,
}

/// What instructions return.
pub(crate) type Outcome<T = ()> = Result<T, Box<Wrong>>;

impl Wrong {
    /// A rule broken by the warp as a whole.
    pub(crate) fn warp(kind: FaultKind, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: None, address: None, detail: detail.into() })
    }

    /// A rule broken by one lane.
    pub(crate) fn lane(kind: FaultKind, lane: usize, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: Some(lane), address: None, detail: detail.into() })
    }

    /// Something the interpreter does not know.
    pub(crate) fn unsupported(detail: impl Into<String>) -> Box<Self> {
        Self::warp(FaultKind::Unsupported, detail)
    }

    /// A violation by one lane.
    pub(crate) fn access(lane: usize, violation: Violation) -> Box<Self> {
        let Violation { kind, address, detail } = violation;
        Box::new(Self { kind, lane: Some(lane), address: Some(address), detail })
    }
}

impl From<LaneViolation> for Box<Wrong> {
    fn from(v: LaneViolation) -> Self {
        Wrong::access(v.lane, v.violation)
    }
}

/// Where in the grid something happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) grid: &'a Grid<'a>,
    pub(crate) cta: [u32; 3],
    pub(crate) warp: usize,
    pub(crate) function: usize,
    pub(crate) instruction: Option<&'a Instruction>,
}

impl Site<'_> {
    /// The fault, in one paragraph.
    pub(crate) fn fault(&self, wrong: &Wrong) -> Fault {
        let launch = self.grid.launch;
        let mut message = format!("kernel '{}'", launch.entry().name);
        if self.function != launch.function {
            let name = &self.grid.module.functions[self.function].name;
            message += &format!(", in function '{name}'");
        }
        if let Some(instruction) = self.instruction {
            message += &format!(", PTX line {}", instruction.line);
            if let Some((file, line)) = instruction.source {
                let unknown = format!("file {file}");
                let file = self.grid.module.files.get(&file).unwrap_or(&unknown);
                message += &format!(" ({file}:{line})");
            }
        }
        let [x, y, z] = self.cta;
        message += &format!(", CTA ({x}, {y}, {z})");
        match wrong.lane {
            Some(lane) => {
                let thread = (self.warp * 32 + lane) as u32;
                let [bx, by, _] = launch.block;
                let (tx, ty, tz) = (thread % bx, thread / bx % by, thread / bx / by);
                message +=
                    &format!(", thread ({tx}, {ty}, {tz}) (warp {}, lane {lane})", self.warp);
            }
            None => message += &format!(", warp {}", self.warp),
        }
        if let Some(address) = wrong.address {
            message += &format!(", address {address:#x}");
        }
        message += &format!(": {} (launch {})", wrong.detail, launch.serial);
        Fault { kind: wrong.kind, message }
    }
}

//! What the assembler made of the kernels: the machine code of each cubin, by `nvdisasm`.
//!
//! Bytes in flight are read off a loop around `HMMA`: going round it, a load is under way from
//! where it is issued to the first instruction that reads what it brings. The most at such a first
//! read is what a warp that waits for memory has asked for.

use crate::kernels::{Image, ImageKind, built};
use std::collections::BTreeMap;
use std::env::{self, consts::EXE_SUFFIX};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to get the disassembler.
pub(crate) const FIX: &str = "run `pip install nvidia-cuda-nvdisasm`, or name one by NVDISASM";

/// How a loop's weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub(crate) enum Format {
    Bf16,
    Q8_0,
    Q4_K,
    Q6_K,
}

impl Format {
    /// As block types are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q6_K => "Q6_K",
        }
    }
}

/// One kernel's machine code.
#[derive(Debug, Clone, Default)]
pub(crate) struct Code {
    /// Loads of 16 bytes a lane from global memory.
    pub(crate) wide_loads: usize,
    /// Other loads from global memory.
    pub(crate) narrow_loads: usize,
    /// Asynchronous copies to shared memory.
    pub(crate) copies: usize,
    /// Loads from and stores to local memory.
    pub(crate) local: usize,
    /// `HMMA`.
    pub(crate) mmas: usize,
    /// Bytes a thread has in flight in the loop over weights of each format.
    pub(crate) in_flight_bytes: BTreeMap<Format, u32>,
    /// Whether the kernel behind it may begin before this one has multiplied.
    pub(crate) lets_begin_early: bool,
}

/// What ptxas and the machine code say of one kernel on one architecture.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub(crate) registers: u32,
    pub(crate) spilled_bytes: u32,
    pub(crate) stack_bytes: u32,
    pub(crate) static_shared_bytes: u32,
    /// None where there is no disassembler.
    pub(crate) code: Option<Code>,
}

/// Kernels by architecture and name.
pub(crate) type Compilation = BTreeMap<&'static str, BTreeMap<String, Compiled>>;

/// Looks at every cubin of the program, and disassembles it where there is a disassembler.
///
/// # Errors
/// What the disassembler said.
pub(crate) fn compilation() -> Result<Compilation, String> {
    let disassembler = find();
    let mut all = Compilation::new();
    let files = built().map_or(&[][..], |built| built.files);
    let images = files.iter().flat_map(|file| file.images);
    for image in images.filter(|image| image.kind() == ImageKind::Cubin) {
        let text = disassembler.as_deref().map(|path| disassemble(path, image)).transpose()?;
        let mut codes = text.as_deref().map(functions).unwrap_or_default();
        for usage in image.usage() {
            let compiled = Compiled {
                registers: usage.registers,
                spilled_bytes: usage.spilled_bytes,
                stack_bytes: usage.stack_bytes,
                static_shared_bytes: usage.static_shared_bytes,
                code: codes.remove(&usage.entry),
            };
            all.entry(image.arch()).or_default().insert(usage.entry, compiled);
        }
    }
    Ok(all)
}

/// The disassembler by `NVDISASM`, beside nvcc, in `PATH`, or of an installed Python package.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(path) = env::var_os("NVDISASM").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let inside = |folder: PathBuf| {
        Some(folder.join(format!("nvdisasm{EXE_SUFFIX}"))).filter(|path| path.is_file())
    };
    let nvcc = env::var_os("NVCC").map(PathBuf::from);
    let beside = nvcc.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let homes = homes.map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(homes).chain(env::split_paths(&path));
    folders.into_iter().find_map(inside).or_else(|| {
        let question = "import nvidia; print(*nvidia.__path__, sep='\\n')";
        let output = Command::new("python3").args(["-c", question]).output().ok()?;
        let folders = String::from_utf8(output.stdout).ok()?;
        let toolkits =
            folders.lines().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        toolkits.flatten().find_map(|toolkit| inside(toolkit.path().join("bin")))
    })
}

fn disassemble(disassembler: &Path, image: &Image) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", disassembler.display());
    let folder = tempfile::tempdir().map_err(failed)?;
    let cubin = folder.path().join("kernels.cubin");
    std::fs::write(&cubin, image.load()).map_err(failed)?;
    let output = Command::new(disassembler).arg("-c").arg(&cubin).output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{} -c, {}: {said}", disassembler.display(), image.arch()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line of a function.
enum Line<'a> {
    Label(&'a str),
    /// Without its guard.
    Instruction(&'a str),
}

/// Every function of a disassembly.
pub(crate) fn functions(text: &str) -> BTreeMap<String, Code> {
    let mut all = BTreeMap::new();
    for part in text.split("\n.text.").skip(1) {
        let (name, body) = part.split_once(":\n").unwrap_or((part, ""));
        let body = body.split("\n\t.section").next().unwrap_or(body);
        let lines: Vec<Line<'_>> = body.lines().filter_map(line).collect();
        all.insert(name.to_owned(), code(&lines));
    }
    all
}

fn line(text: &str) -> Option<Line<'_>> {
    if let Some(label) = text.strip_prefix('.') {
        return label.strip_suffix(':').map(Line::Label);
    }
    let (_, rest) = text.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let rest = rest.trim().split(" ;").next()?.trim();
    let rest = match rest.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ')?.1.trim_start(),
        None => rest,
    };
    (!rest.is_empty()).then_some(Line::Instruction(rest))
}

fn opcode(instruction: &str) -> &str {
    instruction.split_whitespace().next().unwrap_or_default()
}

fn code(lines: &[Line<'_>]) -> Code {
    let instructions = || {
        lines.iter().filter_map(|line| match line {
            Line::Instruction(text) => Some(*text),
            Line::Label(_) => None,
        })
    };
    let count = |is: fn(&str) -> bool| instructions().filter(|text| is(opcode(text))).count();
    let position = |name: &str| instructions().position(|text| opcode(text).starts_with(name));
    let wide_loads = count(|op| op.starts_with("LDG") && op.contains(".128"));
    let mut in_flight_bytes = BTreeMap::new();
    for range in mma_loops(lines) {
        let body: Vec<&str> = lines[range]
            .iter()
            .filter_map(|line| match line {
                Line::Instruction(text) => Some(*text),
                Line::Label(_) => None,
            })
            .collect();
        let bytes = in_flight(&body);
        if bytes > 0 {
            in_flight_bytes.insert(format_of(&body), bytes);
        }
    }
    Code {
        wide_loads,
        narrow_loads: count(|op| op.starts_with("LDG.")) - wide_loads,
        copies: count(|op| op.starts_with("LDGSTS")),
        local: count(|op| op.starts_with("LDL") || op.starts_with("STL")),
        mmas: count(|op| op.starts_with("HMMA")),
        in_flight_bytes,
        lets_begin_early: match (position("PREEXIT"), position("HMMA")) {
            (Some(lets), Some(multiplies)) => lets < multiplies,
            (lets, _) => lets.is_some(),
        },
    }
}

/// The innermost loops with an `HMMA`: from the label a branch goes back to, to that branch.
fn mma_loops(lines: &[Line<'_>]) -> Vec<Range<usize>> {
    let mut labels = BTreeMap::new();
    let mut loops: Vec<Range<usize>> = vec![];
    for (at, line) in lines.iter().enumerate() {
        match line {
            Line::Label(name) => {
                labels.insert(*name, at);
            }
            Line::Instruction(text) if opcode(text).starts_with("BRA") => {
                let target = text.split("`(.").nth(1).and_then(|rest| rest.split(')').next());
                if let Some(begin) = target.and_then(|target| labels.get(target)) {
                    loops.push(*begin..at + 1);
                }
            }
            Line::Instruction(_) => {}
        }
    }
    let multiplies = |range: &Range<usize>| {
        lines[range.clone()]
            .iter()
            .any(|line| matches!(line, Line::Instruction(text) if opcode(text).starts_with("HMMA")))
    };
    loops.retain(multiplies);
    let inside =
        |a: &Range<usize>, b: &Range<usize>| a != b && b.start <= a.start && a.end <= b.end;
    let innermost = |range: &&Range<usize>| !loops.iter().any(|other| inside(other, range));
    loops.iter().filter(innermost).cloned().collect()
}

/// Which weights a loop expands, by the constants it does so with.
fn format_of(body: &[&str]) -> Format {
    let has = |what: &str| body.iter().any(|text| text.contains(what));
    if has("-160, -160") {
        Format::Q6_K
    } else if has("-128, -128") {
        Format::Q4_K
    } else if has("PRMT") {
        Format::Q8_0
    } else {
        Format::Bf16
    }
}

/// See the module. The second round starts with what the first left under way.
pub(crate) fn in_flight(body: &[&str]) -> u32 {
    let mut under_way: Vec<Range<u32>> = vec![];
    let mut most = 0;
    for text in body.iter().chain(body) {
        let op = opcode(text);
        let operands = text[op.len()..].split(',').map(str::trim);
        let has_result = !op.starts_with("ST") && !op.starts_with("BRA");
        let sources: Vec<Range<u32>> = operands
            .skip(usize::from(has_result))
            .enumerate()
            .flat_map(|(i, operand)| registers(operand).map(move |first| (i, first)))
            .map(|(i, first)| match (op.starts_with("HMMA"), i) {
                (true, 0) => first..first + 4,
                (true, 1) => first..first + 2,
                _ => first..first + 1,
            })
            .collect();
        let is_read = |load: &Range<u32>| {
            sources.iter().any(|source| source.start < load.end && load.start < source.end)
        };
        if under_way.iter().any(is_read) {
            most = most.max(under_way.iter().map(|load| 4 * load.len() as u32).sum());
            under_way.retain(|load| !is_read(load));
        }
        if op.starts_with("LDG.") {
            let first = registers(text[op.len()..].split(',').next().unwrap_or_default()).next();
            let words = if op.contains(".128") {
                4
            } else if op.contains(".64") {
                2
            } else {
                1
            };
            under_way.extend(first.map(|first| first..first + words));
        }
    }
    most
}

/// Numbers of the registers an operand names.
fn registers(operand: &str) -> impl Iterator<Item = u32> + '_ {
    operand.match_indices('R').filter_map(move |(at, _)| {
        let starts = at == 0 || !operand.as_bytes()[at - 1].is_ascii_alphanumeric();
        let digits = operand[at + 1..].split(|c: char| !c.is_ascii_digit()).next()?;
        if starts { digits.parse().ok() } else { None }
    })
}

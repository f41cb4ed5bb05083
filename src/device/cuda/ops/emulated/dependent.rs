//! Kernels that begin before those before them have ended: what they may do until they wait.
//!
//! The software GPU holds every launch of these tests to the rules on compute_90; here they are
//! broken on purpose, in the PTX.

use super::weights::{NONE, SMS, Weights, batch, preparation, prepared, split};
use super::{Gpu, kernels, ptx, text};
use crate::device::cuda::launch::Launch;
use crate::device::cuda::layout::{Address, HeadOut, ResultsView, SampleOut};
use crate::device::cuda::ops::embed::{EmbedParams, embed};
use crate::device::cuda::ops::feed::{FED_TOKEN, Fed, feed};
use crate::device::cuda::ops::gate_up::{GateUpParams, gate_up};
use crate::device::cuda::ops::project::{ProjectParams, project};
use crate::device::cuda::samples::Random;
use crate::device::{BlockType, Drawn, FedRow};
use gpu_emulator::launch::{Counters, Fault, FaultKind};
use half::bf16;

const WAIT: &str = "griddepcontrol.wait";
const COLUMNS: usize = 256;
/// Each of eight warps has a unit of these columns, so that all of them copy activations; that is
/// done in pieces of 8 bytes if there is a multiple of 4 elements.
const FEATURES: usize = 1024;
const UNEVEN_FEATURES: usize = 1022;

fn same(ptx: &str) -> String {
    ptx.to_owned()
}

/// A kernel file without its waits.
fn without_waits(ptx: &str) -> String {
    ptx.lines().filter(|line| !line.contains(WAIT)).collect::<Vec<_>>().join("\n")
}

/// A kernel file where each wait stands behind the first line after it that holds `load`.
fn waits_behind(ptx: &str, load: &str) -> String {
    let mut lines = vec![];
    let mut held = None;
    for line in ptx.lines() {
        if line.contains(WAIT) {
            held = Some(line);
            continue;
        }
        lines.push(line);
        if line.contains(load) {
            lines.extend(held.take());
        }
    }
    assert!(held.is_none(), "no {load} behind a wait");
    lines.join("\n")
}

/// A GPU with two files for compute_90, the second one changed.
fn gpu(first: &str, second: &str, change: impl Fn(&str) -> String) -> Gpu {
    let texts = [text(first, "compute_90"), change(&text(second, "compute_90"))];
    Gpu::with(texts.iter().map(|text| ptx::parse(text).unwrap()), "compute_90", 1)
}

/// Runs gate and up, then the projection of what they leave, of a pass with room for a row.
fn project_behind_gate_up(
    rows: i32,
    features: usize,
    kind: BlockType,
    change: impl Fn(&str) -> String,
) -> Result<Counters, Fault> {
    let gpu = gpu("gate_up", "project", change);
    let mut random = Random(1);
    let pairs = Weights::pairs(&gpu, [kind; 2], features, COLUMNS, &mut random).matrix;
    let down = Weights::random(&gpu, kind, 16, features, &mut random);
    let batch = batch(&gpu, [rows, 0, 0, 0, 0, 0, 0, 0]);
    let norm = random.floats(COLUMNS);
    let rows = prepared(&gpu, &random.bf16s(COLUMNS), &norm);
    let residual = gpu.upload(&random.bf16s(16), "residual");
    let act = gpu.unwritten(features * 2, "act");
    let (eps, of_gate, split) = (1e-6, features as i32, split(&gpu, SMS));
    let next = preparation(&gpu, 1, &[1.0; 16]);
    let params = GateUpParams { batch, pairs, rows, act, split, eps, features: of_gate };
    gpu.run(&gate_up(1, SMS, &params));
    let (weights, bias) = (down.matrix, NONE);
    let params = ProjectParams { batch, weights, bias, x: act, hidden: residual, next, split };
    gpu.try_run(&project(1, SMS, &params))
}

#[test]
fn every_kernel_for_9_0_waits_and_lets_the_next_one_begin_and_no_older_one_does() {
    for file in kernels::built().unwrap().files {
        let (new, old) = (text(file.subject, "compute_90"), text(file.subject, "compute_80"));
        let entries: Vec<&str> = new.split(".entry ").skip(1).collect();
        assert_eq!(entries.len(), file.entries.len());
        for entry in entries {
            let name = entry.split('(').next().unwrap();
            assert!(entry.contains(WAIT), "{name} does not wait");
            assert!(entry.contains("griddepcontrol.launch_dependents"), "{name} lets none begin");
        }
        assert!(!old.contains("griddepcontrol"), "{}", file.subject);
    }
}

#[test]
fn the_first_weights_are_under_way_before_the_kernel_before_has_ended() {
    // A warp's four steps: of bf16 two loads each; of Q8_0 one, and one for their scales.
    for (kind, loads) in [(BlockType::BF16, 8), (BlockType::Q8_0, 5)] {
        let counters = project_behind_gate_up(1, FEATURES, kind, same).unwrap();
        let counts = 8;
        assert_eq!(counters.dependency_waits, 8, "{kind}");
        assert!(counters.early_load_requests >= counts + 8 * loads, "{kind}: {counters:?}");
    }
}

#[test]
fn a_kernel_that_does_not_wait_is_a_fault() {
    let fault = project_behind_gate_up(1, FEATURES, BlockType::BF16, without_waits).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
    for part in ["'forerun_project_n8'", "loads", "'act'", "kernels/common/", "PTX line"] {
        assert!(fault.message.contains(part), "no {part} in {fault}");
    }
}

#[test]
fn a_kernel_that_waits_behind_its_first_load_of_anothers_work_is_a_fault() {
    let late = |ptx: &str| waits_behind(ptx, "cp.async.ca");
    let fault = project_behind_gate_up(1, FEATURES, BlockType::BF16, late).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
    assert!(fault.message.contains("loads") && fault.message.contains("'act'"), "{fault}");
}

#[test]
fn activations_loaded_as_constants_are_a_fault() {
    let kind = BlockType::BF16;
    project_behind_gate_up(1, UNEVEN_FEATURES, kind, same).unwrap();
    let constant = |ptx: &str| ptx.replace("ld.global.u16", "ld.global.nc.u16");
    let fault = project_behind_gate_up(1, UNEVEN_FEATURES, kind, constant).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
    assert!(fault.message.contains("ld.global.nc") && fault.message.contains("'act'"), "{fault}");
}

#[test]
fn a_cta_without_work_that_exits_without_waiting_is_a_fault() {
    project_behind_gate_up(0, FEATURES, BlockType::BF16, same).unwrap();
    let fault = project_behind_gate_up(0, FEATURES, BlockType::BF16, without_waits).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
    assert!(fault.message.contains("exits"), "{fault}");
}

/// A pass of three rows, of which the first is fed from a head and the last from a sample.
struct FedPass {
    gpu: Gpu,
    table: Weights,
    hidden: Address,
    launches: [Launch; 2],
}

impl FedPass {
    fn new(change: impl Fn(&str) -> String) -> Self {
        let gpu = gpu("feed", "embed", change);
        let table = Weights::random(&gpu, BlockType::BF16, 37, 32, &mut Random(1));
        let mut batch = batch(&gpu, [3, 0, 0, 0, 0, 2, 0, 0]);
        batch.tokens = gpu.upload(&[FED_TOKEN, 7, FED_TOKEN], "tokens");
        let rows = [(0, Drawn::Head(1)), (2, Drawn::Sample(0))];
        let rows = rows.map(|(row, drawn)| Fed::from(&FedRow { row, drawn }));
        let lists = [gpu.upload(&rows, "fed rows"), gpu.unwritten(3 * 4, "fed tokens")];
        let heads = [0, 36].map(|id| HeadOut { id, ..HeadOut::default() });
        let samples = [SampleOut { id: 99, ..SampleOut::default() }];
        let before = ResultsView {
            heads: gpu.upload(&heads, "heads"),
            samples: gpu.upload(&samples, "samples"),
            ..ResultsView::default()
        };
        let hidden = gpu.unwritten(3 * 32 * 2, "hidden");
        let next = preparation(&gpu, 3, &[1.0; 32]);
        let params = EmbedParams { batch, table: table.matrix, fed: lists[1], hidden, next };
        let launches = [feed(2, batch, lists, &before, 37), embed(3, &params)];
        Self { gpu, table, hidden, launches }
    }

    fn run(&self) -> Result<Counters, Fault> {
        self.gpu.run(&self.launches[0]);
        self.gpu.try_run(&self.launches[1])
    }
}

#[test]
fn a_fed_row_is_the_embedding_of_what_was_drawn_for_it() {
    let pass = FedPass::new(same);
    pass.run().unwrap();
    let got: Vec<bf16> = pass.gpu.read(pass.hidden, 3 * 32);
    // No id is beyond the vocabulary.
    for (row, id) in [36, 7, 36].into_iter().enumerate() {
        let want = &pass.table.values[id * 32..][..32];
        let got: Vec<f64> = got[row * 32..][..32].iter().map(|v| v.to_f64()).collect();
        assert_eq!(got, want, "row {row}");
    }
}

#[test]
fn a_fed_token_that_is_read_before_the_wait_is_a_fault() {
    // The tokens of the batch come before the wait, the fed one is the first load behind it.
    let pass = FedPass::new(|ptx| waits_behind(ptx, "ld.global.u32"));
    let fault = pass.run().unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
    assert!(fault.message.contains("'fed tokens'"), "{fault}");
}

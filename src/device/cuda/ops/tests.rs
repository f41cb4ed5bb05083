//! Grids and shared memory of the launches, against sizes worked out by hand.

use super::super::layout::{Address, Batch, ResultsView};
use super::super::pack::Packing;
use super::matrix::Matrix;
use super::*;
use crate::device::BlockType;

fn matrix(rows: usize, cols: usize) -> Matrix {
    Matrix::new(Address(1 << 20), &Packing::new(rows, cols, BlockType::BF16))
}

fn project_params() -> project::ProjectParams {
    project::ProjectParams {
        batch: Batch::default(),
        weights: matrix(900, 128),
        bias: Address(0),
        x: Address(256),
        hidden: Address(512),
        next: matrix::Preparation { norm: Address(768), rows: ROWS },
        split: SPLIT,
    }
}

const ROWS: matrix::PreparedRows =
    matrix::PreparedRows { scaled: Address(256), squares: Address(1 << 16) };
const SPLIT: matrix::SplitSums =
    matrix::SplitSums { sums: Address(1 << 17), arrivals: Address(1 << 18) };
/// SMs.
const SMS: usize = 16;

#[test]
fn a_projection_has_a_cta_for_every_panel_of_few_tokens_and_every_four_or_eight_of_many() {
    // 900 rows are 57 panels.
    for (rows, kernel, grid, shared) in [
        (1, "forerun_project_n8", [1, 57, 1], 40_992),
        (8, "forerun_project_n8", [1, 57, 1], 40_992),
        (9, "forerun_project_n16", [1, 57, 1], 77_888),
        (17, "forerun_project_n32", [1, 15, 1], 50_304),
        (64, "forerun_project_n64", [1, 8, 2], 99_072),
        (65, "forerun_project_n64", [2, 8, 1], 99_072),
        (300, "forerun_project_n64", [5, 8, 1], 99_072),
    ] {
        let launch = project::project(rows, SMS, &project_params());
        assert_eq!((launch.kernel, launch.grid), (kernel, grid), "{rows} rows");
        assert_eq!((launch.threads, launch.shared_bytes), (256, shared), "{rows} rows");
    }
}

#[test]
fn queries_keys_and_values_do_not_share_ctas() {
    let input = qkv::QkvInput {
        batch: Batch::default(),
        q: matrix(6 * 32, 192),
        k: matrix(2 * 32, 192),
        v: matrix(40, 192),
        q_bias: Address(0),
        k_bias: Address(0),
        v_bias: Address(0),
        rows: ROWS,
        split: SPLIT,
        eps: 1e-6,
        reserved: 0,
    };
    // 12, 4 and 3 panels; of many tokens four to a CTA.
    assert_eq!(qkv::qkv_sums(2, SMS, &input, Address(1024)).grid, [1, 19, 1]);
    assert_eq!(qkv::qkv_sums(20, SMS, &input, Address(1024)).grid, [1, 5, 1]);
    assert_eq!(qkv::sums_bytes(3, 6, 2, 32), 3 * 10 * 32 * 4);
}

#[test]
fn gate_and_up_have_the_ctas_of_one_matrix_that_run_at_the_same_time() {
    let params = gate_up::GateUpParams {
        batch: Batch::default(),
        pairs: matrix(768, 192),
        rows: ROWS,
        act: Address(1024),
        split: SPLIT,
        eps: 1e-6,
        features: 384,
    };
    // 48 panels; of many tokens four or eight to a CTA, and these split K. Not more than run at the
    // same time: three of 8 tokens an SM, two of 16 or 32, one of 64.
    for (rows, sms, grid) in [
        (1, 16, [1, 48, 1]),
        (9, 24, [1, 48, 1]),
        (17, 16, [1, 12, 1]),
        (64, 16, [1, 6, 2]),
        (1, 10, [1, 24, 1]),
        (9, 10, [1, 16, 1]),
        (100, 10, [2, 3, 1]),
    ] {
        assert_eq!(gate_up::gate_up(rows, sms, &params).grid, grid, "{rows} rows, {sms} SMs");
    }
}

#[test]
fn a_head_leaves_one_summary_for_every_256_logits() {
    let params = head::HeadParams {
        batch: Batch::default(),
        weights: matrix(600, 192),
        rows: ROWS,
        logits: Address(0),
        summaries: Address(1024),
        targets: Address(2048),
        eps: 1e-6,
        reserved: 0,
    };
    let [first, _] = head::head((10, 256), &params, ResultsView::default());
    assert_eq!(first.grid, [1, 1, 1], "where nobody looks further");
    let [main, finish] = head::head((10, 600), &params, ResultsView::default());
    assert_eq!((main.kernel, main.grid), ("forerun_head_n16", [1, 3, 1]));
    assert_eq!((finish.kernel, finish.grid), ("forerun_head_finish", [10, 1, 1]));
    assert_eq!(head::summaries_bytes(10, 600), 10 * 3 * 16);
}

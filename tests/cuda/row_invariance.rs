//! A row has the same bits whatever shares its pass, however its prompt was cut, and in whatever
//! order warps, CTAs and streams happen to run.

use crate::device::{device, seed};
use crate::emulator::kernels;
use crate::harness::{Model, Spec};
use crate::probes::{assert_same_rows, company, in_chunks};
use crate::wanted_rows;
use forerun::device::BlockType;

#[test]
fn a_row_alone_in_company_and_in_any_chunks_has_the_same_bits() {
    if !kernels() {
        return;
    }
    for kind in [BlockType::Q4_K, BlockType::Q6_K, BlockType::Q8_0, BlockType::BF16] {
        let mut spec = Spec::new(2, [6, 2, 64, 16], kind, 2);
        spec.head_norm = kind == BlockType::BF16;
        let device = device();
        let model = Model::new(&device, spec);
        let whole = in_chunks(&device, &model, 300, &[300], &[]);
        for chunks in [&[100][..], &[65, 64, 17, 16, 3, 2, 1, 100, 32], &[200, 1, 1, 1, 97]] {
            let cut = in_chunks(&device, &model, 300, chunks, &[]);
            assert_same_rows(&whole, &cut, &format!("{kind} in chunks of {chunks:?}"));
        }
        let seven = in_chunks(&device, &model, 300, &[290, 1], &company());
        assert_same_rows(&whole, &seven, &format!("{kind} in a batch of 7"));
    }
}

#[test]
fn no_order_of_warps_or_ctas_changes_a_bit() {
    if !kernels() {
        return;
    }
    let spec = Spec::new(1, [4, 4, 32, 16], BlockType::Q4_K, 2);
    let run = |s: u64| {
        seed(s);
        let device = device();
        let model = Model::new(&device, spec);
        in_chunks(&device, &model, 90, &[65, 1, 7], &company())
    };
    let first = run(1);
    for s in [2, 3] {
        assert_same_rows(&first, &run(s), &format!("seed {s}"));
    }
}

#[test]
fn wanted_rows_have_the_same_bits_where_the_last_layer_leaves_the_others_out() {
    if kernels() {
        wanted_rows::have_their_bits_alone(device);
    }
}

//! A row has the same bits whatever shares its pass, however its prompt was cut, and whoever
//! computes it.

use crate::harness::{Model, Spec};
use crate::probes::{assert_same_rows, company, in_chunks};
use crate::{cpu, levels};
use forerun::device::{BlockType, KvType};

#[test]
fn a_row_alone_in_company_and_in_any_chunks_has_the_same_bits() {
    for kind in [BlockType::Q4_K, BlockType::F32] {
        let spec = Spec::new(2, [6, 2, 64, 16], kind, 2);
        for simd in levels() {
            for threads in [1, 2] {
                let device = cpu(simd, threads, KvType::Bf16);
                let model = Model::new(&device, spec);
                let what = |how: &str| format!("{how}, {kind}, {}, {threads} threads", simd.name());
                let whole = in_chunks(&device, &model, 300, &[300], &[]);
                for (how, chunks) in
                    [("100 at a time", &[100][..]), ("uneven chunks", &[7, 1, 64, 33])]
                {
                    let cut = in_chunks(&device, &model, 300, chunks, &[]);
                    assert_same_rows(&whole, &cut, &what(how));
                }
                let alone = in_chunks(&device, &model, 300, &[200, 1], &[]);
                assert_same_rows(&whole, &alone, &what("one by one"));
                let seven = in_chunks(&device, &model, 300, &[290, 1], &company());
                assert_same_rows(&whole, &seven, &what("in a batch of 7"));
            }
        }
    }
}

#[test]
fn every_block_type_is_row_invariant_through_the_whole_chain() {
    for kind in BlockType::ALL {
        let mut spec = Spec::new(1, [4, 4, 32, 16], kind, 2);
        spec.head_norm = true;
        for simd in levels() {
            let device = cpu(simd, 2, KvType::Bf16);
            let model = Model::new(&device, spec);
            let whole = in_chunks(&device, &model, 40, &[40], &[]);
            let alone = in_chunks(&device, &model, 40, &[1], &[]);
            assert_same_rows(&whole, &alone, &format!("one by one, {kind}, {}", simd.name()));
            let mixed = in_chunks(&device, &model, 40, &[9, 2, 1], &company());
            assert_same_rows(&whole, &mixed, &format!("in company, {kind}, {}", simd.name()));
        }
    }
}

#[test]
fn rows_beyond_one_attention_split_have_the_same_bits_for_every_head_shape() {
    for [h, g, d, p] in [[7, 1, 64, 16], [6, 2, 80, 64], [12, 2, 32, 16], [2, 2, 128, 64]] {
        let mut spec = Spec::new(1, [h, g, d, p], BlockType::Q8_0, 4);
        spec.positions = 1300;
        for simd in levels() {
            let mut reference = None;
            for threads in [1, 2] {
                let device = cpu(simd, threads, KvType::F32);
                let model = Model::new(&device, spec);
                let what = format!("{:?}, {}, {threads} threads", [h, g, d, p], simd.name());
                let whole = in_chunks(&device, &model, 1100, &[400], &[]);
                let cut = in_chunks(&device, &model, 1100, &[399, 311, 333, 50, 1], &[]);
                assert_same_rows(&whole, &cut, &what);
                let first = reference.get_or_insert_with(|| whole.clone());
                assert_same_rows(first, &whole, &what);
            }
        }
    }
}

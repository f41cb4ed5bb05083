//! Page copies and the search for non-finite rows.

use super::Gpu;
use crate::device::cuda::ops::copy::{
    ALL_FINITE, CopyEntry, launch_copy_rows, launch_first_non_finite,
};
use crate::device::{PageCopy, Shape};
use crate::ids::PageId;
use half::bf16;

#[test]
fn copies_move_the_first_rows_of_every_plane_and_nothing_else() {
    for (kv_heads, head_dim, layers) in [(1, 8, 1), (2, 32, 3), (3, 80, 2), (8, 128, 40)] {
        let (page_tokens, pages) = (16, 6);
        let shape = Shape {
            hidden: 1,
            heads: kv_heads,
            kv_heads,
            head_dim,
            ffn: 1,
            vocab: 1,
            rms_eps: 1e-6,
            layers,
            page_tokens,
            page_bytes: layers * 2 * kv_heads * page_tokens * head_dim * 2 + 32,
        };
        let page_elements = shape.page_bytes / 2;
        let pool: Vec<u16> =
            (0..pages * page_elements).map(|i| (i * 31 + i / 977) as u16).collect();
        let copies = [(0, 4, 16), (5, 1, 7), (3, 2, 1)].map(|(from, to, tokens)| PageCopy {
            from: PageId(from),
            to: PageId(to),
            tokens,
        });
        let mut expected = pool.clone();
        for copy in &copies {
            for plane in 0..layers * 2 * kv_heads {
                let begin = plane * page_tokens * head_dim;
                let from = copy.from.index() * page_elements + begin;
                let to = copy.to.index() * page_elements + begin;
                let count = copy.tokens * head_dim;
                expected[to..to + count].copy_from_slice(&pool[from..from + count]);
            }
        }
        let gpu = Gpu::new(&["copy"], "compute_80", 0);
        let list = copies.each_ref().map(CopyEntry::from);
        let at = gpu.upload(&pool, "pool");
        let (count, list) = (gpu.upload(&[3], "count"), gpu.upload(&list, "copies"));
        gpu.run(&launch_copy_rows(&shape, count, list, at, 8));
        assert_eq!(gpu.read::<u16>(at, pool.len()), expected, "{kv_heads} heads of {head_dim}");
    }
}

#[test]
fn the_first_row_with_a_nan_or_an_infinity_is_found() {
    let (rows, width) = (37, 301);
    let cases: [&[(usize, f32)]; 5] = [
        &[],
        &[(0, f32::NAN)],
        &[(36 * 301 + 300, f32::INFINITY)],
        &[(20 * 301, f32::NEG_INFINITY), (11 * 301 + 299, f32::NAN), (30 * 301, f32::NAN)],
        &[(5 * 301 + 5, f32::MAX), (6 * 301, f32::MIN_POSITIVE)],
    ];
    for bad in cases {
        let mut values = vec![1.0_f32; rows * width];
        bad.iter().for_each(|(at, value)| values[*at] = *value);
        let first = bad.iter().filter(|(_, v)| !v.is_finite()).map(|(at, _)| at / width).min();
        let expected = first.map_or(ALL_FINITE, |row| row as i32);
        let gpu = Gpu::new(&["non_finite"], "compute_80", 0);
        let wide = gpu.upload(&values, "f32");
        // The largest f32 would round to infinity.
        let narrow = values.iter().map(|v| bf16::from_f32(if v.is_finite() { 1.0 } else { *v }));
        let narrow = gpu.upload(&narrow.collect::<Vec<_>>(), "bf16");
        for (buffer, is_f32) in [(wide, true), (narrow, false)] {
            let found = gpu.upload(&[ALL_FINITE], "first");
            gpu.run(&launch_first_non_finite(buffer, found, rows, width, is_f32));
            assert_eq!(gpu.read::<i32>(found, 1), [expected], "{bad:?}, f32 {is_f32}");
        }
    }
}

//! Parameter structs and sizes equal their CUDA counterparts.

use super::Gpu;
use crate::device::cuda::ops;
use crate::device::cuda::ops::matrix::{TokenTile, Width};

#[test]
fn parameter_structs_have_the_layout_the_kernels_were_compiled_with() {
    for (subject, name, layout) in ops::layouts() {
        assert_eq!(Gpu::new(&[subject], "compute_80", 0).constant(name), layout, "{name}");
    }
}

#[test]
fn the_matrix_kernels_have_the_shared_memory_they_were_compiled_for() {
    let tiles = |width| TokenTile::ALL.map(|tile| tile.shared_bytes(width)).to_vec();
    for (subject, expected) in [
        ("project", tiles(Width::Narrow)),
        ("qkv", tiles(Width::Narrow)),
        ("qkv_sums", tiles(Width::Narrow)),
        ("gate_up", tiles(Width::Narrow)),
        ("head", tiles(Width::Wide)),
        ("labels", vec![TokenTile::N8.shared_bytes(Width::Narrow)]),
    ] {
        let gpu = Gpu::new(&[subject], "compute_80", 0);
        assert_eq!(gpu.constant(&format!("forerun_{subject}_shared_bytes")), expected, "{subject}");
    }
}

//! Parameter structs equal their CUDA counterparts.

use super::Gpu;
use crate::device::cuda::ops::accept::AcceptBuffers;
use crate::device::cuda::ops::attention::{AttentionCombineParams, AttentionParams};
use crate::device::cuda::ops::copy::{CopyRowsParams, FirstNonFiniteParams};
use crate::device::cuda::ops::sample::SampleParams;

#[test]
fn parameter_structs_have_the_layout_the_kernels_were_compiled_with() {
    for (subject, name, layout) in [
        ("attention", "forerun_attention_layout", AttentionParams::layout()),
        ("attention_combine", "forerun_attention_combine_layout", AttentionCombineParams::layout()),
        ("sample", "forerun_sample_layout", SampleParams::layout()),
        ("accept", "forerun_accept_layout", AcceptBuffers::layout()),
        ("copy", "forerun_copy_rows_layout", CopyRowsParams::layout()),
        ("non_finite", "forerun_first_non_finite_layout", FirstNonFiniteParams::layout()),
    ] {
        assert_eq!(Gpu::new(&[subject], "compute_80", 0).constant(name), layout, "{name}");
    }
}

//! One file an operation: the Rust mirror of its kernel's parameters, and pure functions from sizes
//! and addresses to [`super::launch::Launch`] values.

#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for token-level speculation, which has no policy")
)]
pub(crate) mod accept;
pub(crate) mod attention;
pub(crate) mod copy;
pub(crate) mod embed;
pub(crate) mod feed;
pub(crate) mod gate_up;
pub(crate) mod head;
pub(crate) mod keep;
pub(crate) mod labels;
pub(crate) mod matrix;
pub(crate) mod project;
pub(crate) mod qkv;
pub(crate) mod rope_append;
pub(crate) mod sample;

/// Every parameter struct: the file of its kernel, the array that file exports, and what this side
/// has: its size and the offsets of its fields.
pub(super) fn layouts() -> [(&'static str, &'static str, &'static [u32]); 17] {
    [
        ("accept", "forerun_accept_layout", accept::AcceptBuffers::layout()),
        ("attention", "forerun_attention_layout", attention::AttentionParams::layout()),
        ("copy", "forerun_copy_rows_layout", copy::CopyRowsParams::layout()),
        ("embed", "forerun_embed_layout", embed::EmbedParams::layout()),
        ("feed", "forerun_feed_layout", feed::FeedParams::layout()),
        ("non_finite", "forerun_first_non_finite_layout", copy::FirstNonFiniteParams::layout()),
        ("gate_up", "forerun_gate_up_layout", gate_up::GateUpParams::layout()),
        ("head", "forerun_head_layout", head::HeadParams::layout()),
        ("head", "forerun_head_finish_layout", head::HeadFinishParams::layout()),
        ("keep", "forerun_keep_layout", keep::KeepParams::layout()),
        ("labels", "forerun_labels_layout", labels::LabelsParams::layout()),
        ("project", "forerun_project_layout", project::ProjectParams::layout()),
        ("qkv", "forerun_qkv_layout", qkv::QkvParams::layout()),
        ("qkv", "forerun_qkv_input_layout", qkv::QkvInput::layout()),
        ("qkv_sums", "forerun_qkv_sums_layout", qkv::QkvSumsParams::layout()),
        ("rope_append", "forerun_rope_append_layout", rope_append::RopeAppendParams::layout()),
        ("sample", "forerun_sample_layout", sample::SampleParams::layout()),
    ]
}

#[cfg(test)]
#[cfg(forerun_kernels)]
mod emulated;
#[cfg(test)]
mod tests;

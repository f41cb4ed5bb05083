//! Launches of `kernels/qkv.cu`, which does everything before attention, and of
//! `kernels/qkv_sums.cu`, which leaves per-head norms and rotation to [`super::rope_append`].

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::{Matrix, PreparedRows, SplitSums, Tiled, Width, launch_tiled, layout_of};
use crate::device::Shape;
use bytemuck::{Pod, Zeroable};

/// What both kernels multiply; `QkvInput` of `qkv.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QkvInput {
    pub(crate) batch: Batch,
    /// `[H D, C]`.
    pub(crate) q: Matrix,
    /// `[G D, C]`.
    pub(crate) k: Matrix,
    /// `[G D, C]`.
    pub(crate) v: Matrix,
    /// f32 `[H D]`, or address 0.
    pub(crate) q_bias: Address,
    /// f32 `[G D]`, or address 0.
    pub(crate) k_bias: Address,
    /// f32 `[G D]`, or address 0.
    pub(crate) v_bias: Address,
    /// `[T, C]`.
    pub(crate) rows: PreparedRows,
    pub(crate) split: SplitSums,
    pub(crate) eps: f32,
    pub(crate) reserved: i32,
}

layout_of!(
    QkvInput: batch, q, k, v, q_bias, k_bias, v_bias, rows, split, eps, reserved
);

impl QkvInput {
    /// CTAs along y where a CTA has `panels` panels: none has panels of two matrices.
    fn groups(&self, panels: usize) -> usize {
        [&self.q, &self.k, &self.v].iter().map(|m| m.panels().div_ceil(panels)).sum()
    }

    fn assert_one_width(&self) {
        let columns = self.q.columns();
        assert!([&self.k, &self.v].iter().all(|m| m.columns() == columns), "columns of q, k, v");
    }
}

/// What `kernels/qkv.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QkvParams {
    input: QkvInput,
    rope: Address,
    q: Address,
    pool: Address,
    page_bytes: u64,
    layer_offset: u64,
    head_dim: i32,
    page_tokens: i32,
}

layout_of!(
    QkvParams: input, rope, q, pool, page_bytes, layer_offset, head_dim, page_tokens
);

impl KernelParams for QkvParams {
    const KERNEL: &'static str = "forerun_qkv";
}

impl Tiled for QkvParams {
    const ENTRIES: [&'static str; 4] =
        ["forerun_qkv_n8", "forerun_qkv_n16", "forerun_qkv_n32", "forerun_qkv_n64"];
    const WIDTH: Width = Width::Narrow;
}

/// Where queries, keys and values go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkvOutput {
    /// f32 `[positions][cos: D/2, sin: D/2]`.
    pub(crate) rope: Address,
    /// bf16 `[T, H, D]`.
    pub(crate) q: Address,
    /// The first page.
    pub(crate) pool: Address,
}

/// The one launch for a pass of at most `rows` rows on a GPU of `sms` SMs. The rows of q and k are
/// packed in [`RowOrder::Rotary`](super::super::pack::RowOrder).
///
/// # Panics
/// If the matrices have different columns, or not the shape's rows.
pub(crate) fn qkv(
    rows: usize,
    sms: usize,
    shape: &Shape,
    layer: usize,
    input: &QkvInput,
    output: &QkvOutput,
) -> Launch {
    input.assert_one_width();
    let head_dim = shape.head_dim;
    for (matrix, heads) in
        [(&input.q, shape.heads), (&input.k, shape.kv_heads), (&input.v, shape.kv_heads)]
    {
        assert_eq!(matrix.rows(), heads * head_dim, "rows of q, k, v");
    }
    let params = QkvParams {
        input: *input,
        rope: output.rope,
        q: output.q,
        pool: output.pool,
        page_bytes: shape.page_bytes as u64,
        layer_offset: shape.plane(layer, 0, 0) as u64,
        head_dim: head_dim as i32,
        page_tokens: shape.page_tokens as i32,
    };
    launch_tiled(rows, |panels| input.groups(panels), sms, &params)
}

/// What `kernels/qkv_sums.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QkvSumsParams {
    input: QkvInput,
    y: Address,
}

layout_of!(QkvSumsParams: input, y);

impl KernelParams for QkvSumsParams {
    const KERNEL: &'static str = "forerun_qkv_sums";
}

impl Tiled for QkvSumsParams {
    const ENTRIES: [&'static str; 4] = [
        "forerun_qkv_sums_n8",
        "forerun_qkv_sums_n16",
        "forerun_qkv_sums_n32",
        "forerun_qkv_sums_n64",
    ];
    const WIDTH: Width = Width::Narrow;
}

/// Bytes of scratch for the sums of a pass of at most `rows` rows.
pub(crate) fn sums_bytes(rows: usize, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    rows * (heads + 2 * kv_heads) * head_dim * 4
}

/// The launch for a pass of at most `rows` rows, on a GPU of `sms` SMs, that leaves the sums, f32
/// `[T, (H + 2 G) D]`, in `y` for `rope_append`. Rows of all three matrices are in the order of the
/// file.
///
/// # Panics
/// If the matrices have different columns.
pub(crate) fn qkv_sums(rows: usize, sms: usize, input: &QkvInput, y: Address) -> Launch {
    input.assert_one_width();
    launch_tiled(rows, |panels| input.groups(panels), sms, &QkvSumsParams { input: *input, y })
}

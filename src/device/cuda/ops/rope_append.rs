//! Launches of `kernels/rope_append.cu`: per-head norm, rotary embedding, append to the paged KV.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::matrix::layout_of;
use crate::device::Shape;
use bytemuck::{Pod, Zeroable};

/// What the kernel takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RopeAppendParams {
    batch: Batch,
    y: Address,
    rope: Address,
    q_norm: Address,
    k_norm: Address,
    q: Address,
    pool: Address,
    page_bytes: u64,
    layer_offset: u64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    page_tokens: i32,
    eps: f32,
    reserved: i32,
}

layout_of!(
    RopeAppendParams: batch, y, rope, q_norm, k_norm, q, pool, page_bytes, layer_offset, heads,
    kv_heads, head_dim, page_tokens, eps, reserved
);

impl KernelParams for RopeAppendParams {
    const KERNEL: &'static str = "forerun_rope_append";
}

/// Where one launch reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeAppendBuffers {
    pub(crate) batch: Batch,
    /// f32 `[T, (H + 2 G) D]`, from the `qkv` kernels.
    pub(crate) y: Address,
    /// f32 `[positions][cos: D/2, sin: D/2]`.
    pub(crate) rope: Address,
    /// f32 `[D]`, or address 0.
    pub(crate) q_norm: Address,
    /// f32 `[D]`, or address 0.
    pub(crate) k_norm: Address,
    /// bf16 `[T, H, D]`.
    pub(crate) q: Address,
    /// The first page.
    pub(crate) pool: Address,
}

/// Threads of a CTA: a warp a head.
const THREADS: u32 = 128;
const HEADS_PER_CTA: usize = 4;

/// The largest head dim the kernel has registers for.
pub(crate) const HEAD_DIM_MAX: usize = 256;

/// The launch for a pass of at most `rows` rows.
///
/// # Panics
/// If the head dim is odd or larger than [`HEAD_DIM_MAX`].
pub(crate) fn rope_append(
    rows: usize,
    shape: &Shape,
    layer: usize,
    buffers: &RopeAppendBuffers,
) -> Launch {
    let head_dim = shape.head_dim;
    assert!(head_dim.is_multiple_of(2) && head_dim <= HEAD_DIM_MAX, "head dim {head_dim}");
    let params = RopeAppendParams {
        batch: buffers.batch,
        y: buffers.y,
        rope: buffers.rope,
        q_norm: buffers.q_norm,
        k_norm: buffers.k_norm,
        q: buffers.q,
        pool: buffers.pool,
        page_bytes: shape.page_bytes as u64,
        layer_offset: shape.plane(layer, 0, 0) as u64,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: head_dim as i32,
        page_tokens: shape.page_tokens as i32,
        eps: shape.rms_eps,
        reserved: 0,
    };
    let heads = shape.heads + 2 * shape.kv_heads;
    let grid = [rows as u32, heads.div_ceil(HEADS_PER_CTA) as u32, 1];
    Launch::new(grid, THREADS, 0, &params)
}

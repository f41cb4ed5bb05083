//! Launches of `kernels/attention.cu`.
//!
//! [`AttentionOp`] holds what is constant for a model; a launch adds the layer and the addresses.
//! Invariant: the parameter structs equal the CUDA ones, see [`AttentionParams::layout`].
//! Read next: [`super::super::plan`] for the work items, then the kernel.

use super::super::launch::{KernelParams, Launch};
use super::super::layout::{Address, Batch};
use super::super::plan::ITEM_QUERIES;
use crate::device::Shape;
use crate::error::DeviceError;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// Threads of an attention CTA.
const THREADS: u32 = 128;
/// Keys of a tile in shared memory.
const TILE_KEYS: u32 = 64;

/// What `attention.cu` takes; see there.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AttentionParams {
    batch: Batch,
    q: Address,
    pool: Address,
    out: Address,
    partial_values: Address,
    partial_sums: Address,
    arrivals: Address,
    page_bytes: i64,
    layer_bytes: i64,
    plane_bytes: i64,
    value_bytes: i64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    page_shift: i32,
    scale: f32,
    reserved: i32,
}

impl AttentionParams {
    /// Size and offsets, as `forerun_attention_layout` lists them.
    pub(crate) const fn layout() -> &'static [u32] {
        &[
            size_of::<Self>() as u32,
            offset_of!(Self, batch) as u32,
            offset_of!(Self, q) as u32,
            offset_of!(Self, pool) as u32,
            offset_of!(Self, out) as u32,
            offset_of!(Self, partial_values) as u32,
            offset_of!(Self, partial_sums) as u32,
            offset_of!(Self, arrivals) as u32,
            offset_of!(Self, page_bytes) as u32,
            offset_of!(Self, layer_bytes) as u32,
            offset_of!(Self, plane_bytes) as u32,
            offset_of!(Self, value_bytes) as u32,
            offset_of!(Self, heads) as u32,
            offset_of!(Self, kv_heads) as u32,
            offset_of!(Self, head_dim) as u32,
            offset_of!(Self, page_shift) as u32,
            offset_of!(Self, scale) as u32,
            offset_of!(Self, reserved) as u32,
        ]
    }
}

/// The same parameters for the kernel whose rows are `D` elements wide in shared memory.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct Wide<const D: usize>(AttentionParams);

impl KernelParams for Wide<32> {
    const KERNEL: &'static str = "forerun_attention_d32";
}
impl KernelParams for Wide<64> {
    const KERNEL: &'static str = "forerun_attention_d64";
}
impl KernelParams for Wide<96> {
    const KERNEL: &'static str = "forerun_attention_d96";
}
impl KernelParams for Wide<128> {
    const KERNEL: &'static str = "forerun_attention_d128";
}

/// Where one attention reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionBuffers {
    /// The staged pass, its work list planned by [`super::super::plan::plan_attention`].
    pub(crate) batch: Batch,
    /// bf16 `[T, H, D]`.
    pub(crate) q: Address,
    /// The first page; a multiple of 16.
    pub(crate) pool: Address,
    /// bf16 `[T, H, D]`.
    pub(crate) out: Address,
    /// Memory of [`AttentionOp::partial_bytes`]; a multiple of 16.
    pub(crate) partials: Address,
    /// i32 `[T, G]`, zeros: how many splits of a row have been left.
    pub(crate) arrivals: Address,
}

/// The attention of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionOp {
    shape: Shape,
    /// Elements of a row in shared memory: 32, 64, 96 or 128.
    width: usize,
}

impl AttentionOp {
    /// Checks that there is a kernel for `shape`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] for a head dimension above 128 or not a multiple of 8, more
    /// than 64 query heads a KV head, or a pool whose rows are not 16-byte aligned.
    pub(crate) fn new(shape: &Shape) -> Result<Self, DeviceError> {
        let refuse =
            |reason: String| Err(DeviceError::Unavailable { device: "cuda".into(), reason });
        let Shape { heads, kv_heads, head_dim, page_tokens, page_bytes, .. } = *shape;
        if head_dim == 0 || head_dim % 8 != 0 || head_dim > 128 {
            return refuse(format!(
                "attention has kernels for head dimensions up to 128 that are multiples of 8, \
                 not {head_dim}; use --device cpu for this model"
            ));
        }
        if kv_heads == 0 || heads % kv_heads != 0 || heads / kv_heads > ITEM_QUERIES {
            return refuse(format!(
                "attention has kernels for 1 to {ITEM_QUERIES} query heads a KV head, not {heads} \
                 over {kv_heads}; use --device cpu for this model"
            ));
        }
        if !page_tokens.is_power_of_two() || page_bytes % 16 != 0 {
            return refuse(format!(
                "attention needs pages of a power of two of tokens and a multiple of 16 bytes, \
                 not {page_tokens} tokens in {page_bytes} bytes"
            ));
        }
        Ok(Self { shape: *shape, width: head_dim.next_multiple_of(32) })
    }

    /// Bytes of memory for `partials` states ([`super::super::plan::PlanLimits::partials`]).
    #[must_use]
    pub(crate) fn partial_bytes(shape: &Shape, partials: usize) -> usize {
        partials * shape.heads * (shape.head_dim + 2) * size_of::<f32>()
    }

    /// Attention of `layer` over `items` work items; the grid may be larger than the staged list.
    ///
    /// `partials_max` is the number of states `buffers.partials` has room for.
    #[must_use]
    pub(crate) fn launch(
        &self,
        layer: usize,
        buffers: &AttentionBuffers,
        partials_max: usize,
        items: u32,
    ) -> Launch {
        let Shape { heads, kv_heads, head_dim, page_tokens, page_bytes, .. } = self.shape;
        let bytes = |elements: usize| (elements * 2) as i64;
        let params = AttentionParams {
            batch: buffers.batch,
            q: buffers.q,
            pool: buffers.pool,
            out: buffers.out,
            partial_values: buffers.partials,
            partial_sums: self.partial_sums(buffers, partials_max),
            arrivals: buffers.arrivals,
            page_bytes: page_bytes as i64,
            layer_bytes: bytes(self.shape.plane(layer, 0, 0)),
            plane_bytes: bytes(page_tokens * head_dim),
            value_bytes: bytes(self.shape.plane(0, 1, 0)),
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            page_shift: page_tokens.trailing_zeros() as i32,
            scale: self.scale(),
            reserved: 0,
        };
        let grid = [items, kv_heads as u32, 1];
        let shared = self.shared_bytes();
        match self.width {
            32 => Launch::new(grid, THREADS, shared, &Wide::<32>(params)),
            64 => Launch::new(grid, THREADS, shared, &Wide::<64>(params)),
            96 => Launch::new(grid, THREADS, shared, &Wide::<96>(params)),
            _ => Launch::new(grid, THREADS, shared, &Wide::<128>(params)),
        }
    }

    /// Two stages of a K and a V tile, and 16 queries a warp.
    fn shared_bytes(&self) -> u32 {
        let row_bytes = 2 * self.width as u32;
        (4 * TILE_KEYS + THREADS / 2) * row_bytes
    }

    /// Scores to exponents of two.
    fn scale(&self) -> f32 {
        (std::f64::consts::LOG2_E / (self.shape.head_dim as f64).sqrt()) as f32
    }

    /// The maxima and sums lie behind the values.
    fn partial_sums(&self, buffers: &AttentionBuffers, partials_max: usize) -> Address {
        let values = partials_max * self.shape.heads * self.shape.head_dim * size_of::<f32>();
        buffers.partials.offset(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
        Shape {
            hidden: heads * head_dim,
            heads,
            kv_heads,
            head_dim,
            ffn: 1,
            vocab: 1,
            rms_eps: 1e-6,
            layers: 3,
            page_tokens: 16,
            page_bytes: 3 * 2 * kv_heads * 16 * head_dim * 2,
        }
    }

    fn buffers() -> AttentionBuffers {
        AttentionBuffers {
            batch: Batch::default(),
            q: Address(0x1000),
            pool: Address(0x2000),
            out: Address(0x3000),
            partials: Address(0x4000),
            arrivals: Address(0x5000),
        }
    }

    fn params(launch: &Launch) -> AttentionParams {
        let bytes: &[u8] = bytemuck::cast_slice(launch.params());
        bytemuck::pod_read_unaligned(&bytes[..size_of::<AttentionParams>()])
    }

    #[test]
    fn the_kernel_is_the_narrowest_that_holds_a_head() {
        for (head_dim, kernel, shared_bytes) in [
            (16, "forerun_attention_d32", 20_480),
            (32, "forerun_attention_d32", 20_480),
            (64, "forerun_attention_d64", 40_960),
            (80, "forerun_attention_d96", 61_440),
            (128, "forerun_attention_d128", 81_920),
        ] {
            let op = AttentionOp::new(&shape(8, 2, head_dim)).unwrap();
            let launch = op.launch(0, &buffers(), 7, 5);
            assert_eq!((launch.kernel, launch.shared_bytes), (kernel, shared_bytes));
            assert_eq!((launch.grid, launch.threads), ([5, 2, 1], 128));
        }
    }

    #[test]
    fn planes_and_partial_states_are_addressed_in_bytes() {
        let op = AttentionOp::new(&shape(8, 2, 64)).unwrap();
        let p = params(&op.launch(2, &buffers(), 7, 5));
        let plane = 16 * 64 * 2;
        assert_eq!(p.plane_bytes, plane);
        assert_eq!(p.value_bytes, 2 * plane);
        assert_eq!(p.layer_bytes, 2 * 2 * 2 * plane);
        assert_eq!(p.page_bytes, 3 * 2 * 2 * plane);
        assert_eq!((p.page_shift, p.scale), (4, 0.180_336_88));
        assert_eq!(p.partial_sums, Address(0x4000 + 7 * 8 * 64 * 4));
        assert_eq!(AttentionOp::partial_bytes(&shape(8, 2, 64), 7), 7 * 8 * 66 * 4);
    }

    #[test]
    fn shapes_without_a_kernel_are_refused_by_name() {
        let message = |s: Shape| AttentionOp::new(&s).unwrap_err().to_string();
        assert!(message(shape(4, 2, 136)).contains("not 136"));
        assert!(message(shape(4, 2, 20)).contains("not 20"));
        assert!(message(shape(130, 2, 64)).contains("130 over 2"));
        let odd = Shape { page_bytes: 12_296, ..shape(4, 2, 64) };
        assert!(message(odd).contains("12296 bytes"));
    }

    #[test]
    fn parameters_have_no_hidden_padding() {
        assert_eq!(AttentionParams::layout().first(), Some(&208));
    }
}

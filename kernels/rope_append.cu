// From the sums of qkv.cu to queries and cached keys and values: per-head RMS norm of q and k
// (where the model has one), rotary embedding of q and k, append of k and v to the paged KV.
//
// y [T, (H + 2 G) D] f32: q heads, k heads, v heads; norms [D] f32 or none; rope
// [positions][cos: D/2, sin: D/2] f32; pairs are (i, i + D/2). q [T, H, D] bf16. The pool is pages
// of [L][K|V][G][P][D] bf16; row t goes to batch.slots[t] = page * P + slot. Each value is rounded
// once, to bf16, at its end.
// Grid: x = T, y = ceil((H + 2 G) / 4); 128 threads, a warp a head. D is even and at most 256.
// A warp's lanes take 4 neighbouring pairs each (D a multiple of 8) or every 32nd pair. The norm's
// sum of squares: a lane's elements in order of pairs, low then high, then lanes in a butterfly.
// Bound: launch; T (H + 2 G) D (4 + 2) bytes.
#include "common/batch.cuh"
#include "common/dependent.cuh"
#include "common/numeric.cuh"

namespace forerun {

constexpr int kHeadsPerCta = 4;
constexpr int kHeadDimMax = 256;
constexpr int kPairsPerLane = kHeadDimMax / 2 / 32;

struct RopeAppendParams {
  Batch batch;
  const float* y;
  const float* rope;
  const float* q_norm;  // or null
  const float* k_norm;  // or null
  bf16* q;
  unsigned char* pool;
  unsigned long long page_bytes;
  unsigned long long layer_offset;  // elements from a page to the keys of this layer's KV head 0
  int heads;
  int kv_heads;
  int head_dim;
  int page_tokens;
  float eps;
  int reserved;
};

// A lane's pairs of one head: kCount pairs from `first` on, every kStride-th.
template <int kStride>
struct Pairs {
  float low[kPairsPerLane];
  float high[kPairsPerLane];
  int first;
  int half;  // D / 2

  __device__ Pairs(int lane, int half)
      : first(kStride == 1 ? lane * kPairsPerLane : lane), half(half) {}
  __device__ int pair(int i) const { return first + i * kStride; }
  __device__ bool has(int i) const { return pair(i) < half; }

  __device__ void load(const float* from, float (&to)[kPairsPerLane]) const {
    if constexpr (kStride == 1) {
      const float4 v = has(0) ? *reinterpret_cast<const float4*>(from + first)
                              : make_float4(0, 0, 0, 0);
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
#pragma unroll
      for (int i = 0; i < kPairsPerLane; ++i) {
        to[i] = has(i) ? from[pair(i)] : 0.0f;
      }
    }
  }
  __device__ void store(bf16* to, const float (&from)[kPairsPerLane]) const {
    if constexpr (kStride == 1) {
      if (!has(0)) return;
      *reinterpret_cast<uint2*>(to + first) =
          make_uint2(round_to_pair(from[0], from[1]), round_to_pair(from[2], from[3]));
    } else {
#pragma unroll
      for (int i = 0; i < kPairsPerLane; ++i) {
        if (has(i)) to[pair(i)] = round_to_bf16(from[i]);
      }
    }
  }

  __device__ void load_head(const float* head) {
    load(head, low);
    load(head + half, high);
  }
  __device__ void normalise(const float* weight, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairsPerLane; ++i) {
      squares = __fmaf_rn(low[i], low[i], squares);
      squares = __fmaf_rn(high[i], high[i], squares);
    }
    const float scale = rms_scale(sum_lanes<32>(squares), 2 * half, eps);
    float low_weight[kPairsPerLane], high_weight[kPairsPerLane];
    load(weight, low_weight);
    load(weight + half, high_weight);
#pragma unroll
    for (int i = 0; i < kPairsPerLane; ++i) {
      low[i] = __fmul_rn(__fmul_rn(low[i], scale), low_weight[i]);
      high[i] = __fmul_rn(__fmul_rn(high[i], scale), high_weight[i]);
    }
  }
  __device__ void rotate(const float* angles) {
    float cosines[kPairsPerLane], sines[kPairsPerLane];
    load(angles, cosines);
    load(angles + half, sines);
#pragma unroll
    for (int i = 0; i < kPairsPerLane; ++i) {
      const float a = low[i], b = high[i];
      low[i] = __fmaf_rn(a, cosines[i], -__fmul_rn(b, sines[i]));
      high[i] = __fmaf_rn(b, cosines[i], __fmul_rn(a, sines[i]));
    }
  }
  __device__ void store_head(bf16* head) const {
    store(head, low);
    store(head + half, high);
  }
};

// Where head `head` of row `row` goes: its query, or its place in the pool.
__device__ inline bf16* destination(const RopeAppendParams& p, int row, int head) {
  const size_t head_dim = p.head_dim;
  if (head < p.heads) return p.q + (static_cast<size_t>(row) * p.heads + head) * head_dim;
  const unsigned slot = p.batch.slots[row], page_tokens = p.page_tokens;
  const size_t page = slot / page_tokens, in_page = slot % page_tokens;
  // Planes are [K|V][G], and the heads after the queries are in that order.
  const size_t plane = static_cast<size_t>(head - p.heads) * page_tokens * head_dim;
  return reinterpret_cast<bf16*>(p.pool + page * p.page_bytes) + p.layer_offset + plane +
         in_page * head_dim;
}

template <int kStride>
__device__ inline void rope_append(const RopeAppendParams& p, int row, int head) {
  Pairs<kStride> pairs(threadIdx.x % 32, p.head_dim / 2);
  const int all_heads = p.heads + 2 * p.kv_heads;
  pairs.load_head(p.y + (static_cast<size_t>(row) * all_heads + head) * p.head_dim);
  if (head < p.heads + p.kv_heads) {
    const float* norm = head < p.heads ? p.q_norm : p.k_norm;
    if (norm != nullptr) pairs.normalise(norm, p.eps);
    pairs.rotate(p.rope + static_cast<size_t>(p.batch.positions[row]) * p.head_dim);
  }
  pairs.store_head(destination(p, row, head));
}

}  // namespace forerun

using forerun::RopeAppendParams;

// Size and offsets of RopeAppendParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_rope_append_layout[] = {
    sizeof(RopeAppendParams),
    offsetof(RopeAppendParams, batch),
    offsetof(RopeAppendParams, y),
    offsetof(RopeAppendParams, rope),
    offsetof(RopeAppendParams, q_norm),
    offsetof(RopeAppendParams, k_norm),
    offsetof(RopeAppendParams, q),
    offsetof(RopeAppendParams, pool),
    offsetof(RopeAppendParams, page_bytes),
    offsetof(RopeAppendParams, layer_offset),
    offsetof(RopeAppendParams, heads),
    offsetof(RopeAppendParams, kv_heads),
    offsetof(RopeAppendParams, head_dim),
    offsetof(RopeAppendParams, page_tokens),
    offsetof(RopeAppendParams, eps),
    offsetof(RopeAppendParams, reserved),
};

extern "C" __global__ void __launch_bounds__(128)
    forerun_rope_append(const __grid_constant__ RopeAppendParams p) {
  const int row = blockIdx.x;
  const int head = blockIdx.y * forerun::kHeadsPerCta + threadIdx.x / 32;
  const bool idle =
      row >= p.batch.counts[forerun::kRows] || head >= p.heads + 2 * p.kv_heads;  // staged
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  if (idle) return;
  if (p.head_dim % 8 == 0) {
    forerun::rope_append<1>(p, row, head);
  } else {
    forerun::rope_append<32>(p, row, head);
  }
}

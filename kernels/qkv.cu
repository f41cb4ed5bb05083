// q[t] = rope(Wq x + bq), cached k[t] = rope(Wk x + bk), cached v[t] = Wv x + bv for
// x = rms_norm(hidden[t]) * g: everything before attention, in one launch. Models with a norm per
// head of q and k take qkv_sums.cu and rope_append.cu instead: a head is more than a CTA has.
//
// rows: x before its root, and its squares (common/prepared.cuh); W* [N*, C] packed
// (common/weights.cuh); b* [N*] f32 or none; rope [positions][cos: D/2, sin: D/2] f32; q [T, H, D]
// bf16. The pool is pages of [L][K|V][G][P][D] bf16; row t goes to batch.slots[t] = page * P +
// slot. D is a multiple of 16.
// Rotation takes pairs (i, i + D/2). Rows of Wq and Wk are packed so that both halves of eight
// pairs are a panel: i of them are its rows 0..8, i + D/2 its rows 8..16. A lane has four of a
// panel's sums, its partner's four come by one shuffle. Rounded once, to bf16, at the end.
// Grid: x = ceil(T / tokens of the tile), y = the sum over the matrices of ceil(N* / features of
// the tile), z: CTAs that share the slices of K, 1 but for _n64; 256 threads. Entries
// forerun_qkv_n8, _n16, _n32, _n64 differ in tokens a tile only and give the same bits:
// common/linear.cuh has the order of summation, and the shared memory.
// Bound: memory, the bytes of W and T (2 C + 2 N). Error: one bf16 rounding of each x g.
#include "common/qkv.cuh"

namespace forerun {

struct QkvParams {
  QkvInput in;
  const float* rope;
  bf16* q;
  unsigned char* pool;
  unsigned long long page_bytes;
  unsigned long long layer_offset;  // elements from a page to the keys of this layer's KV head 0
  int head_dim;
  int page_tokens;
};

// A lane's place in a head, from its feature as packed.
struct InHead {
  int head;
  int element;  // first of four
  int pair;     // first of four; of a rotated head
  bool high;    // whether the elements are the second halves of their pairs

  __device__ InHead(int feature, int head_dim, bool rotated) : head(feature / head_dim) {
    const int at = feature % head_dim;
    pair = at / kPanelRows * (kPanelRows / 2) + at % (kPanelRows / 2);
    high = at % kPanelRows >= kPanelRows / 2;
    element = !rotated ? at : high ? pair + head_dim / 2 : pair;
  }
};

// Where element 0 of a head of row `row` goes: its query, or its place in the pool.
__device__ inline bf16* head_of(const QkvParams& p, QkvPart which, int row, int head) {
  const size_t head_dim = p.head_dim;
  if (which == kQueries) return p.q + static_cast<size_t>(row) * p.in.q.rows + head * head_dim;
  const unsigned slot = p.in.batch.slots[row], page_tokens = p.page_tokens;
  const size_t page = slot / page_tokens, in_page = slot % page_tokens;
  // Planes are [K|V][G].
  const int plane = which == kKeys ? head : p.in.k.rows / p.head_dim + head;
  return reinterpret_cast<bf16*>(p.pool + page * p.page_bytes) + p.layer_offset +
         (plane * static_cast<size_t>(page_tokens) + in_page) * head_dim;
}

// Rotates four sums with the four their partners' lane has.
__device__ inline void rotate(Quad& quad, const float* angles, int head_dim, const InHead& at,
                              bool exists) {
  float partner[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) partner[i] = __shfl_xor_sync(~0u, quad.y[i], 2);
  if (!exists) return;
  const float4 c = load_floats(angles + at.pair), s = load_floats(angles + head_dim / 2 + at.pair);
  const float cosines[4] = {c.x, c.y, c.z, c.w}, sines[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float across = __fmul_rn(partner[i], sines[i]);
    quad.y[i] = __fmaf_rn(quad.y[i], cosines[i], at.high ? across : -across);
  }
}

template <int kTokenTiles>
__device__ inline void qkv(const QkvParams& p) {
  multiply_qkv<NarrowTile<kTokenTiles>>(p.in, [&](const Part& part, Quad quad, int feature,
                                                  int row) {
    const bool rotated = part.which != kValues, exists = row >= 0;
    const InHead at(feature, p.head_dim, rotated);
    add_bias(quad, part.bias, at.head * p.head_dim + at.element, part.weights.rows);
    if (rotated) {
      const int position = exists ? p.in.batch.positions[row] : 0;
      const float* angles = p.rope + static_cast<size_t>(position) * p.head_dim;
      rotate(quad, angles, p.head_dim, at, exists);
    }
    if (!exists) return;
    *reinterpret_cast<uint2*>(head_of(p, part.which, row, at.head) + at.element) =
        make_uint2(round_to_pair(quad.y[0], quad.y[1]), round_to_pair(quad.y[2], quad.y[3]));
  });
}

}  // namespace forerun

using forerun::QkvParams;

// Size and offsets of QkvParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_layout[] = {
    sizeof(QkvParams),
    offsetof(QkvParams, in),
    offsetof(QkvParams, rope),
    offsetof(QkvParams, q),
    offsetof(QkvParams, pool),
    offsetof(QkvParams, page_bytes),
    offsetof(QkvParams, layer_offset),
    offsetof(QkvParams, head_dim),
    offsetof(QkvParams, page_tokens),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_shared_bytes[] = {
    forerun::NarrowTile<1>::kSharedBytes, forerun::NarrowTile<2>::kSharedBytes,
    forerun::NarrowTile<4>::kSharedBytes, forerun::NarrowTile<8>::kSharedBytes};

// Decode waits for memory: three CTAs an SM keep more of it under way.
extern "C" __global__ void __launch_bounds__(256, 3)
    forerun_qkv_n8(const __grid_constant__ QkvParams p) {
  forerun::qkv<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_qkv_n16(const __grid_constant__ QkvParams p) {
  forerun::qkv<2>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_qkv_n32(const __grid_constant__ QkvParams p) {
  forerun::qkv<4>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    forerun_qkv_n64(const __grid_constant__ QkvParams p) {
  forerun::qkv<8>(p);
}

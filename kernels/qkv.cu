// y[t, :] = [Wq x + bq, Wk x + bk, Wv x + bv] for x = rms_norm(hidden[t]) * g: one launch for the
// three matrices, each in its own format.
//
// hidden [T, C] bf16; g [C] f32; W* [N*, C] packed (common/weights.cuh); b* [N*] f32 or none;
// y [T, Nq + Nk + Nv] f32, so that values are rounded to bf16 once, by rope_append.cu.
// Grid: x = ceil(T / tokens of the tile), y = the sum over the matrices of ceil(N* / features of
// the tile); 256 threads. Entries forerun_qkv_n8, _n16, _n32, _n64 differ in tokens a tile only and
// give the same bits: common/linear.cuh has the order of summation, and the shared memory.
// Bound: memory, the bytes of W and T (2 C + 4 N). Error: one bf16 rounding of each x g.
#include "common/linear.cuh"

namespace forerun {

struct QkvParams {
  Batch batch;
  Matrix q;
  Matrix k;
  Matrix v;
  const float* q_bias;  // or null, as the next two
  const float* k_bias;
  const float* v_bias;
  const float* norm;
  const bf16* hidden;
  float* y;
  float eps;
  int reserved;
};

// The part of y that one matrix writes.
struct Part {
  Matrix weights;
  const float* bias;
  int first_feature;
  int first_group;  // of panels; a CTA has one group
};

// The matrix of CTA `group`. Matrices do not share CTAs.
__device__ inline Part part_of_group(const QkvParams& p, int panels_per_group, int group) {
  const int q_groups = ceil_div(p.q.panels(), panels_per_group);
  const int k_groups = ceil_div(p.k.panels(), panels_per_group);
  if (group < q_groups) return {p.q, p.q_bias, 0, 0};
  if (group < q_groups + k_groups) return {p.k, p.k_bias, p.q.rows, q_groups};
  return {p.v, p.v_bias, p.q.rows + p.k.rows, q_groups + k_groups};
}

template <int kTokenTiles>
__device__ inline void qkv(const QkvParams& p) {
  using T = NarrowTile<kTokenTiles>;
  const int first_row = blockIdx.x * T::kTokens;
  const Part part = part_of_group(p, T::kPanels, blockIdx.y);
  const int first_panel = (blockIdx.y - part.first_group) * T::kPanels;
  const int tokens = multiply_tile<T, true>(
      Activations{p.hidden, p.norm, part.weights.columns}, ConsecutiveRows{first_row},
      [&] { return p.batch.counts[kRows] - first_row; },
      panel_of(part.weights, first_panel + threadIdx.x / 32 / T::kSliceWarps),
      part.weights.format == kQ4_K, p.eps);
  if (tokens == 0) return;
  const int stride = p.q.rows + p.k.rows + p.v.rows;
  for_each_panel_tile<T>([&](int panel, int token_tile) {
    Quad quad = combine<T>(panel, token_tile);
    const int feature = (first_panel + panel) * kPanelRows + quad.feature;
    if (quad.token >= tokens || feature >= part.weights.rows) return;
    const float scale = Staged<T>::scales()[quad.token];
    const int features = min_of(4, part.weights.rows - feature);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool biased = part.bias != nullptr && i < features;
      quad.y[i] = __fmul_rn(quad.y[i], scale);
      if (biased) quad.y[i] = __fadd_rn(quad.y[i], load_float(part.bias + feature + i));
    }
    float* out = p.y + static_cast<size_t>(first_row + quad.token) * stride + part.first_feature +
                 feature;
    if (stride % 4 == 0 && part.first_feature % 4 == 0 && features == 4) {
      *reinterpret_cast<float4*>(out) = make_float4(quad.y[0], quad.y[1], quad.y[2], quad.y[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < features) out[i] = quad.y[i];
    }
  });
}

}  // namespace forerun

using forerun::QkvParams;

// Size and offsets of QkvParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_layout[] = {
    sizeof(QkvParams),
    offsetof(QkvParams, batch),
    offsetof(QkvParams, q),
    offsetof(QkvParams, k),
    offsetof(QkvParams, v),
    offsetof(QkvParams, q_bias),
    offsetof(QkvParams, k_bias),
    offsetof(QkvParams, v_bias),
    offsetof(QkvParams, norm),
    offsetof(QkvParams, hidden),
    offsetof(QkvParams, y),
    offsetof(QkvParams, eps),
    offsetof(QkvParams, reserved),
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
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_qkv_n64(const __grid_constant__ QkvParams p) {
  forerun::qkv<8>(p);
}

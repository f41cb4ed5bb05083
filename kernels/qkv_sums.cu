// y[t, :] = [Wq x + bq, Wk x + bk, Wv x + bv] for x = rms_norm(hidden[t]) * g: the first of two
// launches before attention where the model has a norm per head of q and k, or heads that qkv.cu
// cannot rotate. rope_append.cu is the second.
//
// rows: x before its root, and its squares (common/prepared.cuh); W* [N*, C] packed
// (common/weights.cuh); b* [N*] f32 or none;
// y [T, Nq + Nk + Nv] f32, so that values are rounded to bf16 once, by rope_append.cu.
// Grid, threads, entries and order of summation as in qkv.cu; the sizes may be any.
// Bound: memory, the bytes of W and T (2 C + 4 N). Error: one bf16 rounding of each x g.
#include "common/qkv.cuh"

namespace forerun {

struct QkvSumsParams {
  QkvInput in;
  float* y;
};

template <int kTokenTiles>
__device__ inline void qkv_sums(const QkvSumsParams& p) {
  const int stride = p.in.q.rows + p.in.k.rows + p.in.v.rows;
  multiply_qkv<NarrowTile<kTokenTiles>>(p.in, [&](const Part& part, Quad quad, int feature,
                                                  int row) {
    const int features = min_of(4, part.weights.rows - feature);
    if (row < 0 || features <= 0) return;
    add_bias(quad, part.bias, feature, part.weights.rows);
    float* out = p.y + static_cast<size_t>(row) * stride + part.first_feature + feature;
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

using forerun::QkvSumsParams;

// Size and offsets of QkvSumsParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_sums_layout[] = {
    sizeof(QkvSumsParams),
    offsetof(QkvSumsParams, in),
    offsetof(QkvSumsParams, y),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_sums_shared_bytes[] = {
    forerun::NarrowTile<1>::kSharedBytes, forerun::NarrowTile<2>::kSharedBytes,
    forerun::NarrowTile<4>::kSharedBytes, forerun::NarrowTile<8>::kSharedBytes};

// Decode waits for memory: three CTAs an SM keep more of it under way.
extern "C" __global__ void __launch_bounds__(256, 3)
    forerun_qkv_sums_n8(const __grid_constant__ QkvSumsParams p) {
  forerun::qkv_sums<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_qkv_sums_n16(const __grid_constant__ QkvSumsParams p) {
  forerun::qkv_sums<2>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_qkv_sums_n32(const __grid_constant__ QkvSumsParams p) {
  forerun::qkv_sums<4>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    forerun_qkv_sums_n64(const __grid_constant__ QkvSumsParams p) {
  forerun::qkv_sums<8>(p);
}

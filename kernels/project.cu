// hidden[t, n] += sum_k W[n, k] x[t, k] + b[n]: output projection of attention, down projection.
//
// x [T, K] bf16; W [N, K] packed (common/weights.cuh); b [N] f32 or none; hidden [T, N] bf16, read,
// added to in f32 and rounded once. x and hidden do not overlap. What the next norm needs of the
// new rows is left beside them (common/prepared.cuh).
// Grid: x = ceil(T / tokens of the tile), y = ceil(N / features of the tile), z: CTAs that
// share the slices of K, 1 but for _n64; 256 threads.
// Entries forerun_project_n8, _n16, _n32, _n64 differ in tokens a tile only and give the same bits:
// common/linear.cuh has the order of summation, and the shared memory.
// Bound: memory, the bytes of W and T (2 K + 6 N); no other traffic but x once a CTA, from L2.
#include "common/linear.cuh"

namespace forerun {

struct ProjectParams {
  Batch batch;
  Matrix weights;
  const float* bias;  // or null
  const bf16* x;
  bf16* hidden;
  Preparation next;
  SplitSums split;
};

// Adds four sums to a row; `now` is what the row has then, zeros beyond its end.
__device__ inline void add_to_hidden(const ProjectParams& p, const Quad& quad, int row,
                                     int feature, float (&now)[4]) {
  const int features = p.weights.rows;
  bf16* out = p.hidden + static_cast<size_t>(row) * features + feature;
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool inside = p.bias != nullptr && feature + i < features;
    y[i] = inside ? __fadd_rn(quad.y[i], load_float(p.bias + feature + i)) : quad.y[i];
  }
  if (features % 4 == 0) {
    const uint2 old = *reinterpret_cast<const uint2*>(out);
    const uint2 sum = make_uint2(round_to_pair(__fadd_rn(low_of_pair(old.x), y[0]),
                                               __fadd_rn(high_of_pair(old.x), y[1])),
                                 round_to_pair(__fadd_rn(low_of_pair(old.y), y[2]),
                                               __fadd_rn(high_of_pair(old.y), y[3])));
    *reinterpret_cast<uint2*>(out) = sum;
    now[0] = low_of_pair(sum.x), now[1] = high_of_pair(sum.x);
    now[2] = low_of_pair(sum.y), now[3] = high_of_pair(sum.y);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (feature + i >= features) continue;
    const bf16 sum = round_to_bf16(__fadd_rn(float_of_bf16(out[i]), y[i]));
    out[i] = sum;
    now[i] = float_of_bf16(sum);
  }
}

template <int kTokenTiles>
__device__ inline void project(const ProjectParams& p) {
  using T = NarrowTile<kTokenTiles>;
  const int first_row = blockIdx.x * T::kTokens;
  multiply_groups<T>(
      Activations::plain(p.x, p.weights.columns), ConsecutiveRows{first_row},
      [&] { return p.batch.counts[kRows] - first_row; },
      OneGroup(),
      [&](int group) { return panels_of<T>(p.weights, group * T::kPanels); }, p.split,
      [&](int group, int tokens) {
        for_each_panel_tile<T>([&](int panel, int token_tile) {
          const Quad quad = combine<T>(panel, token_tile);
          const int feature = (group * T::kPanels + panel) * kPanelRows + quad.feature;
          const int row = first_row + quad.token;
          const bool exists = quad.token < tokens && feature < p.weights.rows;
          float now[4] = {};
          if (exists) add_to_hidden(p, quad, row, feature, now);
          leave_prepared(p.next, exists, row, feature, p.weights.rows, now);
        });
      });
}

}  // namespace forerun

using forerun::ProjectParams;

// Size and offsets of ProjectParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_project_layout[] = {
    sizeof(ProjectParams),
    offsetof(ProjectParams, batch),
    offsetof(ProjectParams, weights),
    offsetof(ProjectParams, bias),
    offsetof(ProjectParams, x),
    offsetof(ProjectParams, hidden),
    offsetof(ProjectParams, next),
    offsetof(ProjectParams, split),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_project_shared_bytes[] = {
    forerun::NarrowTile<1>::kSharedBytes, forerun::NarrowTile<2>::kSharedBytes,
    forerun::NarrowTile<4>::kSharedBytes, forerun::NarrowTile<8>::kSharedBytes};

// Decode waits for memory: three CTAs an SM keep more of it under way.
extern "C" __global__ void __launch_bounds__(256, 3)
    forerun_project_n8(const __grid_constant__ ProjectParams p) {
  forerun::project<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_project_n16(const __grid_constant__ ProjectParams p) {
  forerun::project<2>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_project_n32(const __grid_constant__ ProjectParams p) {
  forerun::project<4>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    forerun_project_n64(const __grid_constant__ ProjectParams p) {
  forerun::project<8>(p);
}

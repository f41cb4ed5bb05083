// act[t, f] = silu(gate) * up, gate = Wg x, up = Wu x, x = rms_norm(hidden[t]) * g.
//
// rows: x before its root, and its squares (common/prepared.cuh); W [2 F', C] packed
// (common/weights.cuh), F' = F up to a multiple of 8; act [T, F] bf16. silu(y) = y / (1 + exp(-y)).
// A panel of W is eight rows of Wg, then the same rows of Wu, so that both factors of a product are
// in one warp: a lane has four of one, its partner's four come by one shuffle, and silu and product
// happen before anything is stored.
// Grid: x = ceil(T / tokens of the tile), y at most ceil(2 F' / features of the tile), z: CTAs that
// share the slices of K, 1 but for _n64; 256 threads.
// Entries forerun_gate_up_n8, _n16, _n32, _n64 differ in tokens a tile only and give the same bits:
// common/linear.cuh has the order of summation, and the shared memory.
// Bound: memory, the bytes of W and 2 T (C + F). Error: one bf16 rounding of each x g.
#include "common/linear.cuh"

namespace forerun {

struct GateUpParams {
  Batch batch;
  Matrix pairs;
  PreparedRows rows;
  bf16* act;
  SplitSums split;
  float eps;
  int features;  // F
};

__device__ inline float silu(float y) { return __fdiv_rn(y, __fadd_rn(1.0f, expf(-y))); }

// Multiplies what a lane has of gates with what its partner has of ups, and stores the products;
// all lanes of the warp call this for one panel.
__device__ inline void store_products(const GateUpParams& p, const Quad& quad, int panel, int row,
                                      bool exists) {
  constexpr int kPairs = kPanelRows / 2;
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float up = __shfl_xor_sync(~0u, quad.y[i], 2);
    y[i] = __fmul_rn(silu(quad.y[i]), up);
  }
  const int feature = panel * kPairs + quad.feature;
  if (quad.feature >= kPairs || !exists || feature >= p.features) return;
  bf16* out = p.act + static_cast<size_t>(row) * p.features + feature;
  if (p.features % 4 == 0) {
    *reinterpret_cast<uint2*>(out) =
        make_uint2(round_to_pair(y[0], y[1]), round_to_pair(y[2], y[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (feature + i < p.features) out[i] = round_to_bf16(y[i]);
  }
}

template <int kTokenTiles>
__device__ inline void gate_up(const GateUpParams& p) {
  using T = NarrowTile<kTokenTiles>;
  const int first_row = blockIdx.x * T::kTokens;
  multiply_groups<T>(
      Activations::normed(p.rows, p.pairs.columns, p.eps), ConsecutiveRows{first_row},
      [&] { return p.batch.counts[kRows] - first_row; },
      DealtGroups(ceil_div(p.pairs.panels(), T::kPanels)),
      [&](int group) { return panels_of<T>(p.pairs, group * T::kPanels); }, p.split,
      [&](int group, int tokens) {
        for_each_panel_tile<T>([&](int panel, int token_tile) {
          Quad quad = combine<T>(panel, token_tile);
          quad.scale(Staged<T>::scales()[quad.token]);
          const bool exists = quad.token < tokens;
          store_products(p, quad, group * T::kPanels + panel, first_row + quad.token, exists);
        });
      });
}

}  // namespace forerun

using forerun::GateUpParams;

// Size and offsets of GateUpParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_gate_up_layout[] = {
    sizeof(GateUpParams),
    offsetof(GateUpParams, batch),
    offsetof(GateUpParams, pairs),
    offsetof(GateUpParams, rows),
    offsetof(GateUpParams, act),
    offsetof(GateUpParams, split),
    offsetof(GateUpParams, eps),
    offsetof(GateUpParams, features),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_gate_up_shared_bytes[] = {
    forerun::NarrowTile<1>::kSharedBytes, forerun::NarrowTile<2>::kSharedBytes,
    forerun::NarrowTile<4>::kSharedBytes, forerun::NarrowTile<8>::kSharedBytes};

// Decode waits for memory: three CTAs an SM keep more of it under way.
extern "C" __global__ void __launch_bounds__(256, 3)
    forerun_gate_up_n8(const __grid_constant__ GateUpParams p) {
  forerun::gate_up<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_gate_up_n16(const __grid_constant__ GateUpParams p) {
  forerun::gate_up<2>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_gate_up_n32(const __grid_constant__ GateUpParams p) {
  forerun::gate_up<4>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    forerun_gate_up_n64(const __grid_constant__ GateUpParams p) {
  forerun::gate_up<8>(p);
}

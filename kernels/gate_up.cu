// act[t, f] = silu(gate) * up, gate = Wg x, up = Wu x, x = rms_norm(hidden[t]) * g.
//
// hidden [T, C] bf16; g [C] f32; Wg, Wu [F, C] packed (common/weights.cuh), each in its own format;
// act [T, F] bf16. silu(y) = y / (1 + exp(-y)).
// Grid: x = ceil(T / tokens of the tile), y = ceil(F / 32); 256 threads. A CTA's four panels are
// gate, up, gate, up of two neighbouring panels of features, two warps each, so that silu and the
// product happen before anything is stored. Entries forerun_gate_up_n8, _n16, _n32, _n64 differ in
// tokens a tile only and give the same bits: common/linear.cuh has the order of summation, and the
// shared memory.
// Bound: memory, the bytes of W and 2 T (C + F). Error: one bf16 rounding of each x g.
#include "common/linear.cuh"

namespace forerun {

struct GateUpParams {
  Batch batch;
  Matrix gate;
  Matrix up;
  const float* norm;
  const bf16* hidden;
  bf16* act;
  float eps;
  int reserved;
};

__device__ inline float silu(float y) { return __fdiv_rn(y, __fadd_rn(1.0f, expf(-y))); }

template <int kTokenTiles>
__device__ inline void gate_up(const GateUpParams& p) {
  using T = WideTile<kTokenTiles>;
  const int first_row = blockIdx.x * T::kTokens;
  const int first_panel = blockIdx.y * (T::kPanels / 2);
  const int warp_slot = threadIdx.x / 32 / T::kSliceWarps;
  const int tokens = multiply_tile<T, true>(
      Activations{p.hidden, p.norm, p.gate.columns}, ConsecutiveRows{first_row},
      [&] { return p.batch.counts[kRows] - first_row; },
      panel_of(warp_slot % 2 == 0 ? p.gate : p.up, first_panel + warp_slot / 2),
      p.gate.format == kQ4_K || p.up.format == kQ4_K, p.eps);
  if (tokens == 0) return;
  const int features = p.gate.rows;
  for_each_panel_tile<T>([&](int slot, int token_tile) {
    if (slot % 2 != 0) return;
    const Quad gate = combine<T>(slot, token_tile), up = combine<T>(slot + 1, token_tile);
    const int feature = (first_panel + slot / 2) * kPanelRows + gate.feature;
    if (gate.token >= tokens || feature >= features) return;
    const float scale = Staged<T>::scales()[gate.token];
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = __fmul_rn(silu(__fmul_rn(gate.y[i], scale)), __fmul_rn(up.y[i], scale));
    }
    bf16* out = p.act + static_cast<size_t>(first_row + gate.token) * features + feature;
    if (features % 4 == 0) {
      *reinterpret_cast<uint2*>(out) =
          make_uint2(round_to_pair(y[0], y[1]), round_to_pair(y[2], y[3]));
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (feature + i < features) out[i] = round_to_bf16(y[i]);
    }
  });
}

}  // namespace forerun

using forerun::GateUpParams;

// Size and offsets of GateUpParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_gate_up_layout[] = {
    sizeof(GateUpParams),
    offsetof(GateUpParams, batch),
    offsetof(GateUpParams, gate),
    offsetof(GateUpParams, up),
    offsetof(GateUpParams, norm),
    offsetof(GateUpParams, hidden),
    offsetof(GateUpParams, act),
    offsetof(GateUpParams, eps),
    offsetof(GateUpParams, reserved),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_gate_up_shared_bytes[] = {
    forerun::WideTile<1>::kSharedBytes, forerun::WideTile<2>::kSharedBytes,
    forerun::WideTile<4>::kSharedBytes, forerun::WideTile<8>::kSharedBytes};

extern "C" __global__ void __launch_bounds__(256, 2)
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
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_gate_up_n64(const __grid_constant__ GateUpParams p) {
  forerun::gate_up<8>(p);
}

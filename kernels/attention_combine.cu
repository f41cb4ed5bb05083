// Folds the splits of rows that attention.cu left in several pieces.
//
//   out[t, h, :] = sum_s 2^(scale (max_s - max)) values_s[h, :] / sum_s 2^(...) sum_s[h]
//
// in split order, with the functions of attention.cuh that attention.cu uses where it folds itself.
// Grid: x covers H D / 4 groups of four columns, y the rows; rows with one split return at once.
// Bytes: 4 (D + 2) H a split read, 2 H D a row written.
#include <cstddef>

#include "common/attention.cuh"
#include "common/dependent.cuh"

namespace forerun {

constexpr int kCombineThreads = 128;
constexpr int kColumns = 4;
// Splits that are loaded together: a few rows have too few threads to wait for one after another.
constexpr int kTogether = 8;

struct AttentionCombineParams {
  Batch batch;
  const float* partial_values;  // [partials, H, D]
  const float2* partial_sums;   // [partials, H]: max, sum
  char* out;                    // bf16 [T, H, D]
  int heads;
  int head_dim;                 // a multiple of 4
  float scale;                  // log2(e) / sqrt(D)
  int reserved;
};

__device__ __forceinline__ void combine(const AttentionCombineParams& p, int row, int partial,
                                        int column) {
  const Group group = p.batch.groups[p.batch.row_groups[row]];
  const int visible = visible_keys(p.batch, group, row - group.row_begin);
  const int splits = (visible + kSplitKeys - 1) / kSplitKeys;
  const int head = column / p.head_dim;
  const long long width = static_cast<long long>(p.heads) * p.head_dim;
  const float* values = p.partial_values + partial * width + column;
  const float2* sums = p.partial_sums + static_cast<long long>(partial) * p.heads + head;
  float4 total = make_float4(0, 0, 0, 0);
  float2 state = make_float2(kMasked, 0);
  for (int first = 0; first < splits; first += kTogether) {
    float4 more[kTogether];
    float2 next[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= splits) break;
      more[i] = *reinterpret_cast<const float4*>(values + (first + i) * width);
      next[i] = sums[(first + i) * static_cast<long long>(p.heads)];
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= splits) break;
      const Fold both(state.x, next[i].x, p.scale);
      state = make_float2(both.max, both(state.y, next[i].y));
      total = make_float4(both(total.x, more[i].x), both(total.y, more[i].y),
                          both(total.z, more[i].z), both(total.w, more[i].w));
    }
  }
  const float inverse = normaliser(state.y);
  const uint2 packed = make_uint2(normalised(total.x, total.y, inverse),
                                  normalised(total.z, total.w, inverse));
  *reinterpret_cast<uint2*>(p.out + 2 * (row * width + column)) = packed;
}

}  // namespace forerun

using forerun::AttentionCombineParams;

// Size and offsets of the parameters, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_attention_combine_layout[] =
    {
        sizeof(AttentionCombineParams),
        offsetof(AttentionCombineParams, batch),
        offsetof(AttentionCombineParams, partial_values),
        offsetof(AttentionCombineParams, partial_sums),
        offsetof(AttentionCombineParams, out),
        offsetof(AttentionCombineParams, heads),
        offsetof(AttentionCombineParams, head_dim),
        offsetof(AttentionCombineParams, scale),
        offsetof(AttentionCombineParams, reserved),
};

extern "C" __global__ void __launch_bounds__(forerun::kCombineThreads)
    forerun_attention_combine(const __grid_constant__ AttentionCombineParams p) {
  const int column = (blockIdx.x * forerun::kCombineThreads + threadIdx.x) * forerun::kColumns;
  const int rows = p.batch.counts[forerun::kRows];  // staged
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const int partial = p.batch.row_partials[row];
    if (partial >= 0 && column < p.heads * p.head_dim) forerun::combine(p, row, partial, column);
  }
}

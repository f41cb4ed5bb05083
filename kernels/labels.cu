// probabilities over a few labels of one row: p[i] = exp(l_i - max) / sum, l_i = W[label_i, :] x,
// x = rms_norm(hidden[row]) * g. Ten rows of W for a score, not the vocabulary.
//
// rows: x before its root, and its squares (common/prepared.cuh); W [V, C] packed
// (common/weights.cuh). The labels' rows are gathered from their panels and multiplied in the
// head's order of summation, so l_i has the bits that the whole head would give.
// Grid: label heads; 256 threads; 16 labels a pass over x, at most two passes.
// Shared memory and order of summation: common/linear.cuh, the tile of 8 tokens of which one is
// used. The softmax is one warp's: butterflies for the maximum and the sum.
// Bound: memory, labels K weights and 2 C a head.
#include "common/linear.cuh"

namespace forerun {

struct LabelsParams {
  Batch batch;
  Results results;
  Matrix weights;
  PreparedRows rows;
  float eps;
  int reserved;
};

constexpr int kLabelsMax = 32;

// Every row of the tile is one row of the batch.
struct OneRow {
  int row;
  __device__ int operator()(int) const { return row; }
};

__device__ inline float largest_of_warp(float value) {
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, mask));
  }
  return value;
}

// Softmax of `logits` by one warp, lane i for label i.
__device__ inline void finish_labels(const LabelsParams& p, const LabelHead& head,
                                     const float* logits) {
  const int lane = threadIdx.x;
  const bool mine = lane < head.labels;
  const float logit = mine ? logits[lane] : -INFINITY;
  const float largest = largest_of_warp(logit);
  const float weight = mine ? expf(logit - largest) : 0.0f;
  const float sum = sum_lanes<32>(weight);
  if (mine) p.results.probabilities[head.first_label + lane] = __fdiv_rn(weight, sum);
  const bool non_finite = __any_sync(kFullWarp, mine && is_not_finite(logit));
  if (lane == 0) p.results.heads[head.result] = HeadResult{0.0f, 0, non_finite, 0};
}

__device__ inline void labels(const LabelsParams& p) {
  using T = NarrowTile<1>;
  __shared__ float logits[kLabelsMax];
  if (static_cast<int>(blockIdx.x) >= p.batch.counts[kLabelHeads]) {
    wait_for_predecessors();
    return;
  }
  const LabelHead head = p.batch.label_heads[blockIdx.x];
  const int* ids = p.batch.labels + head.first_label;
  const int lane = threadIdx.x % 32;
  multiply_groups<T>(
      Activations::normed(p.rows, p.weights.columns, p.eps), OneRow{head.row}, [] { return 1; },
      GroupRun(0, ceil_div(head.labels, kPanelRows)),
      [&](int group) {
        // Lanes without a label of their own multiply the last one again; nobody reads it.
        const int low = min_of(group * kPanelRows + lane / 4, head.labels - 1);
        const int high = min_of(group * kPanelRows + lane / 4 + 8, head.labels - 1);
        return WarpWeights<T, GatheredRows>{{GatheredRows(p.weights, ids[low], ids[high])},
                                            p.weights.format, true};
      },
      SplitSums{}, [&](int group, int) {
        if (threadIdx.x >= 32) return;
        Quad quad = combine<T>(0, 0);
        if (quad.token != 0) return;
        quad.scale(Staged<T>::scales()[0]);
#pragma unroll
        for (int i = 0; i < 4; ++i) logits[group * kPanelRows + quad.feature + i] = quad.y[i];
      });
  if (threadIdx.x >= 32) return;
  __syncwarp();
  finish_labels(p, head, logits);
}

}  // namespace forerun

using forerun::LabelsParams;

// Size and offsets of LabelsParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_labels_layout[] = {
    sizeof(LabelsParams),
    offsetof(LabelsParams, batch),
    offsetof(LabelsParams, results),
    offsetof(LabelsParams, weights),
    offsetof(LabelsParams, rows),
    offsetof(LabelsParams, eps),
    offsetof(LabelsParams, reserved),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_labels_shared_bytes[] = {
    forerun::NarrowTile<1>::kSharedBytes};

extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_labels(const __grid_constant__ LabelsParams p) {
  forerun::labels(p);
}

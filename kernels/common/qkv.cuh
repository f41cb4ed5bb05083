// Queries, keys and values of x = rms_norm(hidden[t]) * g: what qkv.cu and qkv_sums.cu share. One
// launch multiplies by the three matrices, each in its own format; groups of panels are those of q,
// then of k, then of v, and none has panels of two of them.
#pragma once

#include "common/linear.cuh"

namespace forerun {

struct QkvInput {
  Batch batch;
  Matrix q;
  Matrix k;
  Matrix v;
  const float* q_bias;  // or null, as the next two
  const float* k_bias;
  const float* v_bias;
  PreparedRows rows;
  SplitSums split;
  float eps;
  int reserved;
};

enum QkvPart : int { kQueries = 0, kKeys = 1, kValues = 2 };

// One of the three matrices.
struct Part {
  QkvPart which;
  Matrix weights;
  const float* bias;
  int first_feature;  // where it begins in [q, k, v]
  int first_group;    // of panels
};

// The matrix of group `group`.
__device__ inline Part part_of_group(const QkvInput& in, int panels_per_group, int group) {
  const int q_groups = ceil_div(in.q.panels(), panels_per_group);
  const int k_groups = ceil_div(in.k.panels(), panels_per_group);
  if (group < q_groups) return {kQueries, in.q, in.q_bias, 0, 0};
  if (group < q_groups + k_groups) return {kKeys, in.k, in.k_bias, in.q.rows, q_groups};
  return {kValues, in.v, in.v_bias, in.q.rows + in.k.rows, q_groups + k_groups};
}

// Adds the bias of features `feature` to `feature` + 4, those of them that are below `end`.
__device__ inline void add_bias(Quad& quad, const float* bias, int feature, int end) {
  if (bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (feature + i < end) quad.y[i] = __fadd_rn(quad.y[i], load_float(bias + feature + i));
  }
}

// Multiplies, and calls f(part, quad, feature, row) for the sums of each four features from
// `feature` of the part on, the norm's scale in them and no bias. All lanes of a warp call f
// together, for the same panel; where `row` is negative the lane has no token.
template <class T, class F>
__device__ inline void multiply_qkv(const QkvInput& in, F f) {
  const int first_row = blockIdx.x * T::kTokens;
  multiply_groups<T>(
      Activations::normed(in.rows, in.q.columns, in.eps), ConsecutiveRows{first_row},
      [&] { return in.batch.counts[kRows] - first_row; },
      OneGroup(),
      [&](int group) {
        const Part part = part_of_group(in, T::kPanels, group);
        return panels_of<T>(part.weights, (group - part.first_group) * T::kPanels);
      },
      in.split, [&](int group, int tokens) {
        const Part part = part_of_group(in, T::kPanels, group);
        const int first_panel = (group - part.first_group) * T::kPanels;
        for_each_panel_tile<T>([&](int panel, int token_tile) {
          if (first_panel + panel >= part.weights.panels()) return;
          Quad quad = combine<T>(panel, token_tile);
          quad.scale(Staged<T>::scales()[quad.token]);
          const int row = quad.token < tokens ? first_row + quad.token : -1;
          f(part, quad, (first_panel + panel) * kPanelRows + quad.feature, row);
        });
      });
}

}  // namespace forerun

// Size and offsets of QkvInput, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_qkv_input_layout[] = {
    sizeof(forerun::QkvInput),
    offsetof(forerun::QkvInput, batch),
    offsetof(forerun::QkvInput, q),
    offsetof(forerun::QkvInput, k),
    offsetof(forerun::QkvInput, v),
    offsetof(forerun::QkvInput, q_bias),
    offsetof(forerun::QkvInput, k_bias),
    offsetof(forerun::QkvInput, v_bias),
    offsetof(forerun::QkvInput, rows),
    offsetof(forerun::QkvInput, split),
    offsetof(forerun::QkvInput, eps),
    offsetof(forerun::QkvInput, reserved),
};

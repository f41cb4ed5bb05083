// How the keys of a row are cut and put together again, to the last bit.
//
// The keys of a row form one sequence (prefix keys, then the visible own keys, no gaps). It is cut
// into splits of kSplitKeys; each split gives a state (max, sum, values[D]), and the states of a
// row are folded in split order. A work item of one split leaves its state in memory, and the last
// to do so folds; an item that covers all splits folds in registers. Both call the functions below
// on the same f32 in the same order, so the bits do not depend on who folds. A row with one split
// is never folded: its state goes straight to `normalised`.
#pragma once

#include "common/batch.cuh"
#include "common/numeric.cuh"

namespace forerun {

// Part of the numerics: changing it changes bits. Mirrored by SPLIT_KEYS of plan.rs.
constexpr int kSplitKeys = 128;
// Stands for minus infinity and stays finite: differences of two of them are 0, not NaN.
constexpr float kMasked = -1e30f;

// 2^x, within 2 ulp; zero for large negative x.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// How many keys row `i` of the group sees, itself included.
__device__ __forceinline__ int visible_keys(const Batch& batch, const Group& group, int i) {
  if (group.mask < 0) return group.prefix_len + group.own_len + i + 1;
  return group.prefix_len + __popcll(batch.masks[group.mask + i]);
}

// Puts the state of one more split behind the states already folded.
struct Fold {
  float max;        // of both
  float old_scale;  // of what was there
  float new_scale;  // of what comes

  // `scale` turns scores into base-2 exponents. The maxima are of unscaled scores.
  __device__ __forceinline__ Fold(float old_max, float new_max, float scale) {
    max = fmaxf(old_max, new_max);
    old_scale = exp2_approx(__fmul_rn(__fsub_rn(old_max, max), scale));
    new_scale = exp2_approx(__fmul_rn(__fsub_rn(new_max, max), scale));
  }

  // A sum or a value of both.
  __device__ __forceinline__ float operator()(float old_value, float new_value) const {
    return __fmaf_rn(new_value, new_scale, __fmul_rn(old_value, old_scale));
  }
};

// The factor that turns weighted values into attention: 1 / sum, within 1 ulp. A sum is at least
// the weight of the largest score, which is 1.
__device__ __forceinline__ float normaliser(float sum) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(sum));
  return inverse;
}

// Two neighbouring elements of the output row.
__device__ __forceinline__ unsigned normalised(float low, float high, float inverse_sum) {
  return round_to_pair(__fmul_rn(low, inverse_sum), __fmul_rn(high, inverse_sum));
}

}  // namespace forerun

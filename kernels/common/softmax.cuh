// The largest logit of a set, its id, and the sum of exponentials below it: what arg max and
// log-probabilities need, and how two such sets are merged.
//
// A sum of exponentials is relative to the set's largest logit, so merging rescales the smaller
// one. Merging in a fixed order gives fixed bits; the largest logit and its id (the lowest among
// equals) do not depend on the order at all.
#pragma once

#include "common/numeric.cuh"

namespace forerun {

// 16 bytes; forerun_head leaves one a head and CTA.
struct LogitSummary {
  float largest;
  float sum;       // of exp(logit - largest)
  int id;          // of the largest
  int non_finite;  // 1 when any logit was NaN or infinite

  __device__ static LogitSummary none() { return {-INFINITY, 0.0f, 0x7fffffff, 0}; }
};

__device__ inline LogitSummary merge(const LogitSummary& a, const LogitSummary& b) {
  const bool second = b.largest > a.largest || (b.largest == a.largest && b.id < a.id);
  const float high = second ? b.largest : a.largest, high_sum = second ? b.sum : a.sum;
  const float low = second ? a.largest : b.largest, low_sum = second ? a.sum : b.sum;
  // Nothing, or only infinities: no exponential of a difference of infinities.
  const float sum = low_sum > 0.0f ? __fmaf_rn(low_sum, expf(low - high), high_sum) : high_sum;
  return {high, sum, second ? b.id : a.id, a.non_finite | b.non_finite};
}

}  // namespace forerun

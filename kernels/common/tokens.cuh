// The tokens a CTA chooses among: those on a row's list, or all of the row.
//
// Both kinds answer the same two questions, so a rule is written once. `each(f)` calls f(key, id)
// for this thread's share; `pick(target, scan, weight)` is the id, ascending, at which the running
// sum of weight(key, id) first exceeds `target`, which must be below the sum.
#pragma once

#include "common/scan.cuh"

namespace forerun {

// Of tokens in order of id, the one that makes the sum of their weights reach `target`, at least 1.
// `visit(f)` calls f(id, weight) for this thread's share, in any order.
template <class CtaScan, class Visit>
__device__ __forceinline__ int id_at(u64 target, CtaScan& scan, Visit visit) {
  const auto descending = [&](auto add) {
    visit([&](int id, u64 weight) { add(~static_cast<unsigned>(id), weight); });
  };
  return static_cast<int>(~scan.boundary(target, descending).key);
}

// Tokens that may survive truncation, in no order; in shared memory or not.
template <class CtaScan>
struct Listed {
  const Candidate* candidates;
  int count;

  template <class F>
  __device__ __forceinline__ void each(F f) const {
    for (int i = threadIdx.x; i < count; i += CtaScan::kThreads)
      f(candidates[i].key, candidates[i].id);
  }

  template <class Weight>
  __device__ __forceinline__ int pick(u64 target, CtaScan& scan, Weight weight) const {
    return id_at(target + 1, scan, [&](auto add) {
      each([&](unsigned key, int id) {
        const u64 own = weight(key, id);
        if (own > 0) add(id, own);
      });
    });
  }
};

// Every token of a row.
template <class CtaScan>
struct Unlisted {
  const Row& row;

  template <class F>
  __device__ __forceinline__ void each(F f) const {
    for (int id = threadIdx.x; id < row.vocab; id += CtaScan::kThreads)
      f(order_key(row.at(id)), id);
  }

  template <class Weight>
  __device__ __forceinline__ int pick(u64 target, CtaScan& scan, Weight weight) const {
    return scan.position(
        0, row.vocab, [&](int id) { return weight(order_key(row.at(id)), id); },
        [&](u64) { return target; });
  }
};

}  // namespace forerun

// Sums, cut-offs and positions over a vocabulary by one CTA, without sorting.
//
// Everything is integer arithmetic, so results do not depend on the order in which threads add.
// Lives in shared memory. Every member is called by all threads of the CTA, gives all of them the
// same answer, and leaves the shared memory free for the next call.
#pragma once

#include "common/sample.cuh"

namespace forerun {

__device__ __forceinline__ u64 warp_sum(u64 value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

__device__ __forceinline__ u64 warp_max(u64 value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// Sums of the lanes up to and including this one.
__device__ __forceinline__ u64 warp_running_sum(u64 value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 before = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// Where a descending order of keys has reached a target weight.
struct Boundary {
  unsigned key;  // the largest key that, with all larger ones, reaches the target
  u64 missing;   // of the target, to be taken from this key; at least 1
  u64 weight;    // of this key
};

// Sums and maxima of a CTA of `kCtaThreads`, a power of two from 32 to 1024.
template <int kCtaThreads>
struct Reduce {
  static constexpr int kThreads = kCtaThreads;
  static constexpr int kWarps = kThreads / 32;

  u64 warps[kWarps];

  // What each warp has to say, in the lane of its number; zero in further lanes.
  __device__ __forceinline__ u64 exchange(u64 of_warp) {
    const int lane = threadIdx.x % 32;
    if (lane == 0) warps[threadIdx.x / 32] = of_warp;
    __syncthreads();
    const u64 all = lane < kWarps ? warps[lane] : 0;
    __syncthreads();
    return all;
  }

  __device__ __forceinline__ u64 sum(u64 value) { return warp_sum(exchange(warp_sum(value))); }

  __device__ __forceinline__ u64 max(u64 value) { return warp_max(exchange(warp_max(value))); }

};

// Cut-offs and positions too.
template <int kCtaThreads>
struct Scan : Reduce<kCtaThreads> {
  using Reduce<kCtaThreads>::kThreads;
  // A key of 32 bits is found in three rounds of 11, 11 and 10 bits.
  static constexpr int kBins = 2048;
  static constexpr int kThreadBins = kBins / kThreads;

  u64 bins[kBins];
  u64 found[3];

  // The boundary of `target`, at least 1 and at most the sum of all weights. `visit(f)` calls
  // f(key, weight) for this thread's share of the elements.
  template <class Visit>
  __device__ __forceinline__ Boundary boundary(u64 target, Visit visit) {
    Boundary last = {0, target, 0};
#pragma unroll 1
    for (int round = 0; round < 3; ++round) {
      const int shift = round == 0 ? 21 : round == 1 ? 10 : 0;
      const int bits = round == 2 ? 10 : 11;
      for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
      __syncthreads();
      visit([&](unsigned key, u64 weight) {
        // Shifted twice: by 32 in the first round.
        if (key >> shift >> bits == last.key)
          atomicAdd(&bins[key >> shift & ((1 << bits) - 1)], weight);
      });
      __syncthreads();
      find_bin(last.missing);
      last.key = last.key << bits | static_cast<unsigned>(found[0]);
      last.missing -= found[1];
      last.weight = found[2];
      __syncthreads();
    }
    return last;
  }

  // Of `count` ids from `first` the one at which the running sum of weight(id) first exceeds
  // target(sum of all); that target must be below the sum.
  template <class Weight, class Target>
  __device__ __forceinline__ int position(int first, int count, Weight weight, Target target) {
    const int lane = threadIdx.x % 32;
    u64 left = 0;
    bool begun = false;
#pragma unroll 1
    while (!begun || count > 32) {
      // Each warp sums a stretch of whole groups of 32; then the stretch that decides is divided.
      const int stretch = (count + kThreads - 1) / kThreads * 32;
      const int begin = min(static_cast<int>(threadIdx.x) / 32 * stretch, count);
      const int end = min(begin + stretch, count);
      u64 sum = 0;
#pragma unroll 4
      for (int id = begin + lane; id < end; id += 32) sum += weight(first + id);
      const u64 through = warp_running_sum(this->exchange(warp_sum(sum)));
      if (!begun) left = target(__shfl_sync(~0u, through, 31));
      begun = true;
      const int decides = __ffs(__ballot_sync(~0u, through > left)) - 1;
      const u64 before = __shfl_sync(~0u, through, decides > 0 ? decides - 1 : 0);
      if (decides > 0) left -= before;
      first += decides * stretch;
      count = min(stretch, count - decides * stretch);
    }
    const u64 through = warp_running_sum(lane < count ? weight(first + lane) : 0);
    return first + __ffs(__ballot_sync(~0u, through > left)) - 1;
  }

 private:
  // Finds the bin, counted from the highest, in which the running sum reaches `target`.
  __device__ __forceinline__ void find_bin(u64 target) {
    const int high = kBins - 1 - kThreadBins * threadIdx.x;
    u64 own = 0;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) own += bins[high - i];
    u64 through = warp_running_sum(own);
    const u64 of_warp = __shfl_sync(~0u, through, 31);
    const int warp = threadIdx.x / 32;
    const u64 of_warps = warp_running_sum(this->exchange(of_warp));
    through += __shfl_sync(~0u, of_warps, warp) - of_warp;
    u64 before = through - own;
    if (before < target && target <= through) {
#pragma unroll
      for (int i = 0; i < kThreadBins; ++i) {
        const u64 bin = bins[high - i];
        if (before < target && target <= before + bin) {
          found[0] = high - i;
          found[1] = before;
          found[2] = bin;
        }
        before += bin;
      }
    }
    __syncthreads();
  }
};

}  // namespace forerun

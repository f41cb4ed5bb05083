// CTAs that share a piece of work: each leaves its part in memory and counts itself, and the last
// to arrive finishes. Nobody waits for anybody. Counters are zero when a kernel begins and when it
// has ended.
//
// Every thread fences between its part and the CTA's barrier, behind which a thread counts; behind
// the next barrier the last CTA fences again, and reads the parts from the L2 (__ldcg): this SM's
// L1 may hold what was there before.
#pragma once

namespace forerun {

// Counts one of `all` arrivals. Whether it was the last, which leaves the counter at zero.
__device__ inline bool is_last_to_arrive(int* arrived, int all) {
  if (atomicAdd(arrived, 1) != all - 1) return false;
  *arrived = 0;
  return true;
}

}  // namespace forerun

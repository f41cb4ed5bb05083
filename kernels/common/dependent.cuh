// Programmatic dependent launch: a kernel may begin while the kernel before it ends.
//
// On compute capability 9.0 the host lets every kernel of a submission but the first start as soon
// as each CTA of its predecessor has called let_dependents_launch() or is over
// (src/device/cuda/stream.rs). What a kernel does before wait_for_predecessors() runs beside its
// predecessor, and so
//   - it writes nothing to global memory;
//   - it reads only what no kernel writes: weights, biases, norm weights, the rope table, and what
//     the host staged, that is Batch and whatever it points to. One copy has brought that before
//     the submission's first kernel began, which began before all others.
// Every thread waits before it exits, in a CTA without work too: a kernel has ended when its
// threads have, so "my predecessor has ended" says by this alone that all before it have, and
// what A wrote is there for C behind B.
// What another kernel wrote is read by ordinary loads, never by the `nc` ones of async.cuh: it
// changes while this kernel runs.
//
// Below 9.0 both functions are nothing, and the host launches one kernel after another. The
// software GPU faults on a broken rule (tests/gpu-emulator).
#pragma once

namespace forerun {

// Waits until the kernel before this one has ended and its writes can be read. The second time is
// free.
__device__ __forceinline__ void wait_for_predecessors() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind this one begin: it finds free SMs, or room beside the CTAs that are there.
// One thread says so for its CTA.
__device__ __forceinline__ void let_dependents_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace forerun

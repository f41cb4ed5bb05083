// Moving bytes: asynchronous copies to shared memory, and loads from global memory by what they are
// for.
//
// `weights_*` bytes are read once a pass by one CTA and must not push anything out of L1; `nc`
// loads are of memory that nothing writes while the kernel runs, so the compiler may move them. A
// kernel may run beside the end of the one before it (dependent.cuh), so what kernels leave to one
// another is not such memory.
#pragma once

namespace forerun {

// Copies 16 bytes from global to shared memory; both addresses are multiples of 16. With
// `valid` false nothing is read and 16 zero bytes are written; the source must still be a pointer
// into the same buffer.
__device__ inline void cp_async_16(unsigned shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
// The same for 8 bytes at multiples of 8.
__device__ inline void cp_async_8(unsigned shared, const void* global, bool valid) {
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :
               : "r"(shared), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
// Closes the group of this thread's copies since the last commit.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `kPending` of this thread's newest groups are under way. Other threads see
// the bytes after a barrier that follows.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// Loads where `when` holds, else leaves `v` as it is: a predicate, no branch, so that the loaded
// registers are those the loop keeps.
__device__ inline void load_weights_16(uint4& v, const unsigned char* from, bool when) {
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.u32 p, %5, 0;\n"
      "  @p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(when)));
}
// The same, through L1.
__device__ inline void load_16(uint4& v, const void* from, bool when) {
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.u32 p, %5, 0;\n"
      "  @p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(when)));
}
__device__ inline void load_4(unsigned& v, const void* from, bool when) {
  asm("{\n"
      "  .reg .pred p;\n"
      "  setp.ne.u32 p, %2, 0;\n"
      "  @p ld.global.nc.u32 %0, [%1];\n"
      "}"
      : "+r"(v)
      : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(when)));
}
__device__ inline uint4 load_16(const void* from) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
__device__ inline float4 load_floats(const float* from) {
  float4 v;
  asm("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
__device__ inline uint2 load_8(const void* from) {
  uint2 v;
  asm("ld.global.nc.v2.u32 {%0, %1}, [%2];"
      : "=r"(v.x), "=r"(v.y)
      : "l"(__cvta_generic_to_global(from)));
  return v;
}
__device__ inline unsigned load_4(const void* from) {
  unsigned v;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
__device__ inline float load_float(const float* from) {
  float v;
  asm("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}
__device__ inline unsigned short load_2(const void* from) {
  unsigned short v;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(__cvta_generic_to_global(from)));
  return v;
}

}  // namespace forerun

// Tensor-core instructions, sm_80 onwards: one wrapper an instruction, nothing hidden.
//
// Fragments of mma.m16n8k16 (D[16,8] += A[16,16] B[16,8]), lane = 4 g + t, g in 0..8, t in 0..4:
//   a0: A[g][2t, 2t+1]    a1: A[g+8][2t, 2t+1]    a2: A[g][2t+8, 2t+9]    a3: A[g+8][2t+8, 2t+9]
//   b0: B[2t, 2t+1][g]    b1: B[2t+8, 2t+9][g]
//   d0, d1: D[g][2t, 2t+1]                        d2, d3: D[g+8][2t, 2t+1]
// Each a, b is a pair of bf16, the lower index in the low half.
#pragma once

namespace forerun {

// d += A B, bf16 products, f32 sums.
__device__ inline void mma_bf16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The address of a pointer into shared memory, as the instructions below take it.
__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Loads four 8x8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8 (16 bytes, at
// a multiple of 16); lane 4 g + t receives elements 2t, 2t+1 of row g of each.
__device__ inline void ldmatrix_x4(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same, each matrix transposed: lane 4 g + t receives elements g of rows 2t, 2t+1.
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// Two matrices; lanes 0..16 name the rows.
__device__ inline void ldmatrix_x2(unsigned (&r)[2], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
__device__ inline void ldmatrix_x2_trans(unsigned (&r)[2], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

}  // namespace forerun

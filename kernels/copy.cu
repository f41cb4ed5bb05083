// Copies the first rows of every plane of a page to another page of the KV pool.
//
// pool: pages [L][K|V][G][P][D]. The copies have no order among themselves: a destination is no
// other copy's source or destination. Grid: x is the copy (beyond `count`, nothing), y strides over
// the L 2 G planes, 128 threads over the 16-byte pieces of a plane's rows.
// Bytes: 2 tokens L 2 G D 2 a copy, read and written once.
#include <cstddef>

#include "common/dependent.cuh"

namespace forerun {

constexpr int kThreads = 128;

struct PageCopy {
  int from;
  int to;
  int tokens;    // rows of each plane
  int reserved;
};

struct CopyRowsParams {
  const int* count;           // copies
  const PageCopy* copies;
  char* pool;
  long long page_bytes;
  int planes;                 // of a page
  int plane_bytes;
  int row_bytes;              // 2 D, a multiple of 16
  int reserved;
};

}  // namespace forerun

using forerun::CopyRowsParams;

// Size and offsets of the parameters, then of what they point to, for the test that compares them
// with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_copy_rows_layout[] = {
    sizeof(CopyRowsParams),
    offsetof(CopyRowsParams, count),
    offsetof(CopyRowsParams, copies),
    offsetof(CopyRowsParams, pool),
    offsetof(CopyRowsParams, page_bytes),
    offsetof(CopyRowsParams, planes),
    offsetof(CopyRowsParams, plane_bytes),
    offsetof(CopyRowsParams, row_bytes),
    offsetof(CopyRowsParams, reserved),
    sizeof(forerun::PageCopy),
    offsetof(forerun::PageCopy, from),
    offsetof(forerun::PageCopy, to),
    offsetof(forerun::PageCopy, tokens),
    offsetof(forerun::PageCopy, reserved),
};

extern "C" __global__ void __launch_bounds__(forerun::kThreads)
    forerun_copy_rows(const __grid_constant__ CopyRowsParams p) {
  const bool idle = blockIdx.x >= *p.count;  // staged
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  if (idle) return;
  const forerun::PageCopy copy = p.copies[blockIdx.x];
  const char* from = p.pool + copy.from * p.page_bytes;
  char* to = p.pool + copy.to * p.page_bytes;
  const int bytes = copy.tokens * p.row_bytes;
  for (int plane = blockIdx.y; plane < p.planes; plane += gridDim.y) {
    const long long begin = static_cast<long long>(plane) * p.plane_bytes;
    for (int at = threadIdx.x * 16; at < bytes; at += forerun::kThreads * 16)
      *reinterpret_cast<uint4*>(to + begin + at) =
          *reinterpret_cast<const uint4*>(from + begin + at);
  }
}

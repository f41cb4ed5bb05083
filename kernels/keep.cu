// Rows that the last layer goes on with, moved to the front: q[i] = q[kept[i]] and
// hidden[i] = hidden[kept[i]], in place, kept ascending.
//
// q [T, H D] and hidden [T, C] bf16; kept [rows of the batch]: where its rows were in the pass.
// A thread has one column and takes the rows in order, some at a time: each is read before a row
// is written that could be it, for kept[i] >= i.
// Grid: x = ceil((H D + C) / 256); 256 threads. Bytes: 4 (H D + C) a row. Bound: launch.
#include <cstddef>

#include "common/batch.cuh"
#include "common/dependent.cuh"
#include "common/numeric.cuh"

namespace forerun {

constexpr int kThreads = 256;
constexpr int kRowsAtATime = 8;

struct KeepParams {
  Batch batch;
  const int* kept;
  bf16* q;
  bf16* hidden;
  int q_columns;  // H D
  int columns;    // C
};

__device__ inline void keep_column(bf16* column, int columns, const int* kept, int rows) {
#pragma unroll 1
  for (int first = 0; first < rows; first += kRowsAtATime) {
    bf16 values[kRowsAtATime];
#pragma unroll
    for (int i = 0; i < kRowsAtATime; ++i) {
      const int row = first + i;
      values[i] = row < rows ? column[static_cast<size_t>(kept[row]) * columns] : bf16{0};
    }
#pragma unroll
    for (int i = 0; i < kRowsAtATime; ++i) {
      const int row = first + i;
      if (row < rows) column[static_cast<size_t>(row) * columns] = values[i];
    }
  }
}

}  // namespace forerun

using forerun::KeepParams;

// Size and offsets of KeepParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_keep_layout[] = {
    sizeof(KeepParams),
    offsetof(KeepParams, batch),
    offsetof(KeepParams, kept),
    offsetof(KeepParams, q),
    offsetof(KeepParams, hidden),
    offsetof(KeepParams, q_columns),
    offsetof(KeepParams, columns),
};

extern "C" __global__ void __launch_bounds__(forerun::kThreads)
    forerun_keep(const __grid_constant__ KeepParams p) {
  const int rows = p.batch.counts[forerun::kRows];  // staged
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  const int column = blockIdx.x * forerun::kThreads + threadIdx.x;
  if (column < p.q_columns) {
    forerun::keep_column(p.q + column, p.q_columns, p.kept, rows);
  } else if (column < p.q_columns + p.columns) {
    forerun::keep_column(p.hidden + column - p.q_columns, p.columns, p.kept, rows);
  }
}

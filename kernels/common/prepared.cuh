// Hidden states, ready for the matrix behind the next norm.
//
// rms_norm(x) g is (x g) / sqrt(mean(x^2) + eps). Whoever writes a row x of hidden states leaves
// beside it bf16(x g), g the weight of the norm that comes next, and the sum of squares of every 16
// columns of x. A matrix kernel then copies its operand to shared memory as it is, adds the squares
// up while its first weights are under way, and multiplies the finished sums by the root. Scaling
// by g before and by the root after the product costs the same single rounding as both before it.
//
// Both sums have one order, whoever writes: four columns in a lane, four lanes in a butterfly; then
// in the reader panels l, l + 32, ... in lane l, and a butterfly.
#pragma once

#include "common/async.cuh"
#include "common/numeric.cuh"

namespace forerun {

// Columns whose squares are one sum: a panel of the matrix that wrote them.
constexpr int kSquareColumns = 16;

struct PreparedRows {
  bf16* scaled;    // bf16(x g), [T, C]
  float* squares;  // [T, ceil(C / 16)]

  __device__ static int squares_of_row(int columns) { return ceil_div(columns, kSquareColumns); }
};

// What is to be left of the rows that are written.
struct Preparation {
  const float* norm;  // g, [C]
  PreparedRows rows;
};

// Leaves columns `column` to `column` + 4 of row `row`, whose hidden states are `x`; zeros beyond
// `columns`. The four lanes that have the same 16 columns call this together with the rest of their
// warp; where `exists` is false nothing is left.
__device__ inline void leave_prepared(const Preparation& to, bool exists, int row, int column,
                                      int columns, const float (&x)[4]) {
  // Lanes that come here one by one would load one by one.
  __syncwarp();
  const bool inside = exists && column < columns;
  float g[4] = {};
  if (inside && columns % 4 == 0) {
    const float4 four = load_floats(to.norm + column);
    g[0] = four.x, g[1] = four.y, g[2] = four.z, g[3] = four.w;
  } else if (inside) {
#pragma unroll
    for (int i = 0; i < 4; ++i) g[i] = column + i < columns ? load_float(to.norm + column + i) : 0;
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) squares = __fmaf_rn(x[i], x[i], squares);
  squares = sum_lanes<4>(squares);
  if (!inside) return;
  bf16* out = to.rows.scaled + static_cast<size_t>(row) * columns + column;
  const uint2 scaled = make_uint2(round_to_pair(__fmul_rn(x[0], g[0]), __fmul_rn(x[1], g[1])),
                                  round_to_pair(__fmul_rn(x[2], g[2]), __fmul_rn(x[3], g[3])));
  if (columns % 4 == 0) {
    *reinterpret_cast<uint2*>(out) = scaled;
  } else {
    const unsigned pairs[2] = {scaled.x, scaled.y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < columns) out[i] = static_cast<bf16>(pairs[i / 2] >> (i % 2 * 16));
    }
  }
  if (column % kSquareColumns == 0) {
    to.rows.squares[static_cast<size_t>(row) * PreparedRows::squares_of_row(columns) +
                    column / kSquareColumns] = squares;
  }
}

}  // namespace forerun

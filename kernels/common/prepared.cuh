// Hidden states, ready for the matrix behind the next norm.
//
// rms_norm(x) g is (x g) / sqrt(mean(x^2) + eps). Whoever writes a row x of hidden states leaves
// beside it bf16(x g), g the weight of the norm that comes next, and the sum of squares of every 16
// columns of x. A matrix kernel then copies its operand to shared memory as it is, adds the squares
// up while its first weights are under way, and multiplies the finished sums by the root. Scaling by
// g before and by the root after the product costs the same single rounding as both before it.
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
  const float* norm;  // g, [C]; null: nothing, no norm comes next
  PreparedRows rows;
};

// Leaves columns `column` to `column` + 4 of row `row`, whose hidden states are `x`; zeros beyond
// `columns`. The four lanes that have the same 16 columns call this together with the rest of their
// warp; where `exists` is false nothing is left.
__device__ inline void leave_prepared(const Preparation& to, bool exists, int row, int column,
                                      int columns, const float (&x)[4]) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) squares = __fmaf_rn(x[i], x[i], squares);
  squares = sum_lanes<4>(squares);
  if (!exists || column >= columns) return;
  if (column % kSquareColumns == 0) {
    to.rows.squares[static_cast<size_t>(row) * PreparedRows::squares_of_row(columns) +
                    column / kSquareColumns] = squares;
  }
  bf16* out = to.rows.scaled + static_cast<size_t>(row) * columns + column;
  if (columns % 4 == 0) {
    const float4 g = load_floats(to.norm + column);
    *reinterpret_cast<uint2*>(out) =
        make_uint2(round_to_pair(__fmul_rn(x[0], g.x), __fmul_rn(x[1], g.y)),
                   round_to_pair(__fmul_rn(x[2], g.z), __fmul_rn(x[3], g.w)));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < columns) {
      out[i] = round_to_bf16(__fmul_rn(x[i], load_float(to.norm + column + i)));
    }
  }
}

}  // namespace forerun

// hidden[t, k] = bf16(E[tokens[t], k]): the embedding rows of a batch. A row without a token in the
// batch takes the one that feed.cu left for it.
//
// E [V, C] packed (common/weights.cuh) in any format; hidden [T, C] bf16, and what the first norm
// needs of it (common/prepared.cuh). A quantised element is
// decoded in f32 in the order of its definition (scale * quant, then minus the minimum, each
// rounded) and rounded once more to bf16.
// Grid: T; 128 threads, each with the eight columns that one lane of an mma would have of a row.
// Bound: memory, T C (weight bytes + 4); pieces of a packed row are 16 bytes (bf16) or 8 and less.
#include "common/batch.cuh"
#include "common/dependent.cuh"
#include "common/prepared.cuh"
#include "common/weights.cuh"

namespace forerun {

constexpr int kEmbedThreads = 128;

struct EmbedParams {
  Batch batch;
  Matrix table;
  const int* fed;  // [T] tokens of the rows that have -1 in the batch
  bf16* hidden;
  Preparation next;
};

// Two groups of four elements with what they are multiplied by and lessened by.
struct Piece {
  uint4 quants;  // pairs of bf16
  float scale[2];
  float minimum;
};

// The columns of quarter `quarter` of step `step` of row `row`.
__device__ inline Piece load_piece(const Matrix& table, int row, int step, int quarter) {
  const int in_panel = row % kPanelRows, unit = step / kUnitSteps, in_unit = step % kUnitSteps;
  const unsigned half = in_panel / 8, lane_row = in_panel % 8;
  const unsigned lane = (lane_row * 4 + quarter) * 16, pair = lane + half * 8;
  const unsigned char* panel = table.panel(row / kPanelRows);
  const unsigned even = in_unit / 2 * 512;  // the pair of steps in its unit
  switch (table.format) {
    case kBf16:
      return {load_16(panel + step * kBf16StepBytes + half * 512 + lane), {1.0f, 1.0f}, 0.0f};
    case kQ8_0: {
      const unsigned char* at = panel + unit * kQ8UnitBytes;
      const uint2 q = load_8(at + kQ8ScaleBytes + in_unit * kQ8StepBytes + pair);
      const float d = float_of_f16(load_2(at + lane_row * 16 + half * 8 + in_unit * 2));
      return {expand_q8(q.x, q.y), {d, d}, 0.0f};
    }
    case kQ4_K: {
      const unsigned char* at = panel + unit / 2 * kQ4BlockBytes;
      const uint2 q = load_8(at + kQ4ScaleBytes + unit % 2 * kNibbleUnitBytes + even + pair);
      const uint4 s = load_16(at + in_panel * 16);
      const ByteScales bytes = expand_q4_scales(s.y, s.z, s.w, unit);
      const float d = __fmul_rn(low_of_f16_pair(s.x), float_of_byte(bytes.scales, in_unit));
      const float m = __fmul_rn(high_of_f16_pair(s.x), float_of_byte(bytes.minimums, in_unit));
      return {expand_q4(in_unit % 2 == 0 ? q.x : q.y), {d, d}, m};
    }
    default: {
      const unsigned char* at = panel + unit / 2 * kQ6BlockBytes;
      const uint2 q = load_8(at + unit % 2 * kNibbleUnitBytes + even + pair);
      const uint2 high = load_8(at + kQ6HighAt + unit % 2 * kQ6HighUnitBytes + pair);
      const unsigned char* scales =
          at + kQ6ScalesAt + unit % 2 * kQ6ScaleUnitBytes + lane_row * 16 + half * 8;
      const unsigned s = load_2(scales + in_unit * 2) ^ 0x8080u;
      const float d = float_of_f16(load_2(at + kQ6DAt + lane_row * 4 + half * 2));
      const unsigned bits = in_unit < 2 ? high.x : high.y;
      return {in_unit % 2 == 0 ? expand_q6(q.x, bits, 0) : expand_q6(q.y, bits, 1),
              {__fmul_rn(d, float_of_offset_byte(s, 0)), __fmul_rn(d, float_of_offset_byte(s, 1))},
              0.0f};
    }
  }
}

// Stores four hidden states, `count` of them inside the row, and tells what they are now, zeros
// beyond the row's end.
__device__ inline void store_four(bf16* out, int count, unsigned first, unsigned second,
                                  float scale, float minimum, float (&now)[4]) {
  const float values[4] = {low_of_pair(first), high_of_pair(first), low_of_pair(second),
                           high_of_pair(second)};
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = __fsub_rn(__fmul_rn(scale, values[i]), minimum);
  const uint2 pairs = make_uint2(round_to_pair(y[0], y[1]), round_to_pair(y[2], y[3]));
  const float rounded[4] = {low_of_pair(pairs.x), high_of_pair(pairs.x), low_of_pair(pairs.y),
                            high_of_pair(pairs.y)};
#pragma unroll
  for (int i = 0; i < 4; ++i) now[i] = i < count ? rounded[i] : 0.0f;
  if (count >= 4 && reinterpret_cast<size_t>(out) % 8 == 0) {
    *reinterpret_cast<uint2*>(out) = pairs;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = round_to_bf16(y[i]);
  }
}

__device__ inline void embed(const EmbedParams& p) {
  const int row = blockIdx.x;
  const bool idle = row >= p.batch.counts[kRows];  // staged, as the tokens
  const int staged = idle ? 0 : p.batch.tokens[row];
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const int token = staged < 0 ? p.fed[row] : staged, columns = p.table.columns;
  bf16* out = p.hidden + static_cast<size_t>(row) * columns;
  const int pieces = ceil_div(columns, kStepColumns) * 4;
  // Whole warps go round: four lanes have the squares of 16 columns together.
  for (int warp_first = threadIdx.x / 32 * 32; warp_first < pieces; warp_first += kEmbedThreads) {
    const int i = warp_first + threadIdx.x % 32;
    const bool exists = i < pieces;
    const int step = i / 4, quarter = i % 4, first = step * kStepColumns + quarter * 4;
    float low[4] = {}, high[4] = {};
    __syncwarp();  // Lanes that come here one by one would load one by one.
    if (exists) {
      const Piece piece = load_piece(p.table, token, step, quarter);
      store_four(out + first, columns - first, piece.quants.x, piece.quants.y, piece.scale[0],
                 piece.minimum, low);
      store_four(out + first + 16, columns - first - 16, piece.quants.z, piece.quants.w,
                 piece.scale[1], piece.minimum, high);
    }
    leave_prepared(p.next, exists, row, first, columns, low);
    leave_prepared(p.next, exists, row, first + 16, columns, high);
  }
}

}  // namespace forerun

using forerun::EmbedParams;

// Size and offsets of EmbedParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_embed_layout[] = {
    sizeof(EmbedParams),
    offsetof(EmbedParams, batch),
    offsetof(EmbedParams, table),
    offsetof(EmbedParams, fed),
    offsetof(EmbedParams, hidden),
    offsetof(EmbedParams, next),
};

extern "C" __global__ void __launch_bounds__(128)
    forerun_embed(const __grid_constant__ EmbedParams p) {
  forerun::embed(p);
}

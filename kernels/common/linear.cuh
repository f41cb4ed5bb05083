// A tile of y[t, n] = sum_k W[n, k] x[t, k]: the core of every matrix kernel.
//
// A CTA of 8 warps multiplies a few panels of 16 out features by up to 64 tokens. Weights are the A
// operand of mma.m16n8k16 and go straight from global memory to registers, a few steps of 32
// columns ahead of use; tokens are B, eight to an mma, staged in shared memory (staging.cuh).
//
// Order of summation, the same for every tile size, so that the bits of a token's row depend on
// nothing but that row and W:
//   K is cut into 8 slices of whole units, [i U / 8, (i + 1) U / 8) for U units;
//   a slice is summed by one warp, mma after mma in the order of K (for quantised weights: each
//   group's mmas from zero, then sum = fma(scale, group, sum), then the minimum);
//   halves h0 = ((0 + s0) + s1 + s2) + s3 and h1 = ((0 + s4) + s5 + s6) + s7; the sum is h0 + h1.
// Small token tiles give each slice its own warp; large ones give a warp four slices one after
// another and share the staged tokens among four panels.
//
// With an RMS norm, bf16(x g) is staged and the epilogue multiplies the finished sums by
// 1 / sqrt(mean(x^2) + eps). Staging x g rather than x g / rms costs the same single rounding and
// lets the first weights be used before the row's norm is known.
#pragma once

#include "common/dependent.cuh"
#include "common/staging.cuh"

namespace forerun {

// sum += (scaled) A B for one step and eight tokens.
template <class Unit>
__device__ inline void multiply_step(float (&sum)[4], const Fragments& a, const uint4 b,
                                     const RowScales& first, const RowScales& second,
                                     const RowScales& minimum, float2 step_sums) {
  if constexpr (Unit::kGroupsPerStep == 0) {
    mma_bf16(sum, a.low.x, a.high.x, a.low.y, a.high.y, b.x, b.y);
    mma_bf16(sum, a.low.z, a.high.z, a.low.w, a.high.w, b.z, b.w);
    return;
  }
  float group[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_bf16(group, a.low.x, a.high.x, a.low.y, a.high.y, b.x, b.y);
  if constexpr (Unit::kGroupsPerStep == 2) {
    sum[0] = __fmaf_rn(first.low, group[0], sum[0]);
    sum[1] = __fmaf_rn(first.low, group[1], sum[1]);
    sum[2] = __fmaf_rn(first.high, group[2], sum[2]);
    sum[3] = __fmaf_rn(first.high, group[3], sum[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) group[i] = 0.0f;
  }
  mma_bf16(group, a.low.z, a.high.z, a.low.w, a.high.w, b.z, b.w);
  sum[0] = __fmaf_rn(second.low, group[0], sum[0]);
  sum[1] = __fmaf_rn(second.low, group[1], sum[1]);
  sum[2] = __fmaf_rn(second.high, group[2], sum[2]);
  sum[3] = __fmaf_rn(second.high, group[3], sum[3]);
  if constexpr (Unit::kMinimums) {
    sum[0] = __fmaf_rn(-minimum.low, step_sums.x, sum[0]);
    sum[1] = __fmaf_rn(-minimum.low, step_sums.y, sum[1]);
    sum[2] = __fmaf_rn(-minimum.high, step_sums.x, sum[2]);
    sum[3] = __fmaf_rn(-minimum.high, step_sums.y, sum[3]);
  }
}

// One step of a panel, `in_unit` of its unit, and all tokens of the tile.
template <class Unit, class T, class Held>
__device__ inline void multiply_tokens(float (&sums)[T::kTokenTiles][4], const Held& held,
                                       int in_unit, int slot, const uint4* b,
                                       const float2* step_sums, int tokens) {
  const Fragments a = Unit::fragments(held, in_unit, slot);
  const RowScales first = Unit::scale(held, in_unit, 0), second = Unit::scale(held, in_unit, 1);
  const RowScales minimum = Unit::minimum(held, in_unit);
#pragma unroll
  for (int tile = 0; tile < T::kTokenTiles; ++tile) {
    // The last tile of a pass may have few tokens; and with all 64 tokens of B at once in registers
    // there would not be enough of them.
    if (tile > 0 && tile % 2 == 0 && tile * 8 >= tokens) break;
    const float2 of_step = Unit::kMinimums ? step_sums[tile * 4] : make_float2(0.0f, 0.0f);
    multiply_step<Unit>(sums[tile], a, b[tile * 32], first, second, minimum, of_step);
  }
}

// Loads what a warp holds when it begins, with step `step` of those before `last`.
template <class Unit, class Held, class Rows>
__device__ inline void load_first(Held& held, const Rows& rows, int step, int last) {
  if (step < last) Unit::load_scales(held, rows, step / kUnitSteps);
#pragma unroll
  for (int i = 0; i < Held::kAhead; ++i) {
    if (step + i < last) Unit::load_step(held, rows, step / kUnitSteps, i, i);
  }
}

// A warp's steps [begin, end) of a chunk: where its tokens are.
struct ChunkSteps {
  int begin;
  int end;
  int last;  // the warp's last step of all, exclusive
  int buffer;
  int position;
};

// Multiplies a chunk's steps, each time loading the step that is kAhead steps further on.
template <class Unit, class T, class Held, class Rows>
__device__ inline void multiply_chunk(Held& held, const Rows& rows, const ChunkSteps& chunk,
                                      int tokens, float (&sums)[T::kTokenTiles][4]) {
  constexpr int kAhead = Held::kAhead;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int base = chunk.begin; base < chunk.end; base += kAhead) {
    if (base % kUnitSteps == 0) {
      const int unit = base / kUnitSteps;
      Unit::take_scales(held, unit);
      const bool due = (unit + 1) % Unit::kUnitsPerScales == 0;
      if (due && base + kUnitSteps < chunk.last) Unit::load_scales(held, rows, unit + 1);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = base + i, in_unit = kAhead == kUnitSteps ? i : base % kUnitSteps + i;
      if (step < chunk.end) {
        const int staged = step - chunk.begin;
        const int at = Staged<T>::at(chunk.buffer, chunk.position, staged, 0, lane);
        const float* step_sums = Staged<T>::step_sums(chunk.buffer, chunk.position, staged);
        multiply_tokens<Unit, T>(sums, held, in_unit, i,
                                 reinterpret_cast<const uint4*>(shared_memory() + at),
                                 reinterpret_cast<const float2*>(step_sums) + lane % 4, tokens);
      }
      if (step + kAhead < chunk.last) {
        Unit::load_step(held, rows, (step + kAhead) / kUnitSteps, (in_unit + kAhead) % kUnitSteps,
                        i);
      }
    }
  }
}

// Adds a warp's sums over one slice to its partial sums in shared memory, which no other warp
// touches before the last barrier, and starts the next slice from zero.
template <class T>
__device__ inline void add_slice(float (&sums)[T::kTokenTiles][4], bool first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* partial = Staged<T>::partials() + warp * T::kTokenTiles * kPartialFloats +
                   lane % 4 * 2 * kPartialStride + lane / 4;
#pragma unroll
  for (int tile = 0; tile < T::kTokenTiles; ++tile, partial += kPartialFloats) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& sum = partial[i % 2 * kPartialStride + i / 2 * 8];
      sum = __fadd_rn(first ? 0.0f : sum, sums[tile][i]);
      sums[tile][i] = 0.0f;
    }
  }
}

// The norm's scale of each token, from the sums of squares, slices in order.
template <class T>
__device__ inline void finish_norm(int tokens, int columns, float eps) {
  const int token = threadIdx.x;
  if (token >= T::kTokens) return;
  float squares = 0.0f;
  if (token < tokens) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      squares = __fadd_rn(squares, Staged<T>::squares(slice)[token]);
    }
  }
  Staged<T>::scales()[token] = rms_scale(squares, columns, eps);
}

// What a warp multiplies by: a panel (or gathered rows) and its format; with `active` false there
// is none and the warp only helps to stage.
template <class Rows>
struct WarpWeights {
  Rows rows;
  int format;
  bool active;
};

// The warp's panel of a matrix, if there is one.
__device__ inline WarpWeights<PanelRows> panel_of(const Matrix& matrix, int panel) {
  const bool active = panel < matrix.panels();
  return {PanelRows{matrix.panel(active ? panel : 0)}, matrix.format, active};
}

// The whole K loop of a CTA. Warp w works at position w % kSliceWarps of K. `tokens_left` reads
// from the staged batch how many tokens there are from the tile's first on. The first weights are
// under way before that number has come, and before the kernel that leaves the tokens has ended.
// `want_sums`: some weights of the CTA have minimums.
//
// Leaves the partial sums, and the norm's scale of each token, in shared memory; ends with a
// barrier. Returns the tile's tokens; 0, before any barrier, when there are none. Every thread has
// waited for the kernel before (dependent.cuh).
template <class T, bool kNorm, class Rows, class RowOf, class TokensLeft>
__device__ inline int multiply_tile(const Activations& in, const RowOf& row_of,
                                    const TokensLeft& tokens_left,
                                    const WarpWeights<Rows>& weights, bool want_sums, float eps) {
  const Rows& rows = weights.rows;
  const int format = weights.format;
  const int position = threadIdx.x / 32 % T::kSliceWarps;
  const Slices slices(in.columns);
  const int first = slices.begin(position * T::kSlicesPerWarp);
  const int last = weights.active ? slices.begin((position + 1) * T::kSlicesPerWarp) : first;

  Held<T::kAhead> held;
  switch (format) {
    case kBf16: load_first<Bf16Unit>(held, rows, first, last); break;
    case kQ8_0: load_first<Q8Unit>(held, rows, first, last); break;
    case kQ4_K: load_first<Q4Unit>(held, rows, first, last); break;
    default: load_first<Q6Unit>(held, rows, first, last); break;
  }
  const int tokens = min_of(tokens_left(), T::kTokens);
  wait_for_predecessors();
  if (tokens <= 0) return 0;
  start_chunk<T>(in, row_of, tokens, slices, 0, 0, 0);
  clear_missing<T>(tokens, want_sums);

  float sums[T::kTokenTiles][4] = {};
  const int chunks = ceil_div(slices.longest(), T::kChunkSteps);
  int buffer = 0;
#pragma unroll 1
  for (int turn = 0; turn < T::kSlicesPerWarp; ++turn) {
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk, buffer ^= 1) {
      cp_async_wait<0>();
      prepare_chunk<T, kNorm>(in, tokens, slices, turn, chunk, buffer, want_sums);
      __syncthreads();  // This chunk is prepared, and nobody reads the one before any more.
      const bool ends_slice = chunk + 1 == chunks;
      if (!ends_slice || turn + 1 < T::kSlicesPerWarp) {
        start_chunk<T>(in, row_of, tokens, slices, ends_slice ? turn + 1 : turn,
                       ends_slice ? 0 : chunk + 1, buffer ^ 1);
      }
      const int slice = position * T::kSlicesPerWarp + turn;
      const int begin = slices.begin(slice) + chunk * T::kChunkSteps;
      const int end = min_of(min_of(slices.begin(slice + 1), begin + T::kChunkSteps), last);
      const ChunkSteps steps{begin, end, last, buffer, position};
      switch (format) {
        case kBf16: multiply_chunk<Bf16Unit, T>(held, rows, steps, tokens, sums); break;
        case kQ8_0: multiply_chunk<Q8Unit, T>(held, rows, steps, tokens, sums); break;
        case kQ4_K: multiply_chunk<Q4Unit, T>(held, rows, steps, tokens, sums); break;
        default: multiply_chunk<Q6Unit, T>(held, rows, steps, tokens, sums); break;
      }
    }
    add_slice<T>(sums, turn == 0);
  }
  // The memory is free for the next kernel's first weights.
  let_dependents_launch();
  if (kNorm) finish_norm<T>(tokens, in.columns, eps);
  __syncthreads();
  return tokens;
}

// The epilogue's share of one lane: four neighbouring features of one token.
struct Quad {
  int token;    // of the tile
  int feature;  // first of the four, of the panel
  float y[4];

  __device__ void scale(float by) {
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = __fmul_rn(y[i], by);
  }
};

// Lanes 4i..4i+4 have the 16 features of a token; tokens are dealt so that eight lanes read 128
// different bytes of banks.
__device__ inline int quad_token(int lane) { return (lane / 4 % 2) * 4 + lane / 8; }

// Combines the partial sums of a panel and eight tokens in the one order.
template <class T>
__device__ inline Quad combine(int panel, int token_tile) {
  const int lane = threadIdx.x % 32, token = quad_token(lane), feature = lane % 4 * 4;
  const float* partial = Staged<T>::partials() +
                         (panel * T::kSliceWarps * T::kTokenTiles + token_tile) * kPartialFloats +
                         token * kPartialStride + feature;
  constexpr int kPosition = T::kTokenTiles * kPartialFloats;
  float halves[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) halves[half][i] = 0.0f;
#pragma unroll
    for (int part = 0; part < T::kSliceWarps / 2; ++part) {
      const float4 s = *reinterpret_cast<const float4*>(
          partial + (half * (T::kSliceWarps / 2) + part) * kPosition);
      const float values[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) halves[half][i] = __fadd_rn(halves[half][i], values[i]);
    }
  }
  Quad quad{token_tile * 8 + token, feature, {}};
#pragma unroll
  for (int i = 0; i < 4; ++i) quad.y[i] = __fadd_rn(halves[0][i], halves[1][i]);
  return quad;
}

// Calls f(panel, token tile) for every pair of the CTA, each by one warp.
template <class T, class F>
__device__ inline void for_each_panel_tile(F f) {
  for (int i = threadIdx.x / 32; i < T::kPanels * T::kTokenTiles; i += kWarps) {
    f(i / T::kTokenTiles, i % T::kTokenTiles);
  }
}

}  // namespace forerun

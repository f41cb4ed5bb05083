// A tile of y[t, n] = sum_k W[n, k] x[t, k]: the core of every matrix kernel.
//
// A CTA of 8 warps multiplies a few panels of 16 out features by up to 64 tokens. Weights are the A
// operand of mma.m16n8k16 and go straight from global memory to registers, a few steps of 32
// columns ahead of use; tokens are B, eight to an mma, staged in shared memory (staging.cuh).
//
// Order of summation, the same for every tile size, so that the bits of a token's row depend on
// nothing but that row and W:
//   K is cut into 8 slices of whole units (for K-quants of whole blocks),
//   [i U / 8, (i + 1) U / 8) for U of them;
//   a slice is summed by one warp, mma after mma in the order of K (for quantised weights: each
//   group's mmas from zero, then sum = fma(scale, group, sum), then the minimum);
//   halves h0 = ((0 + s0) + s1 + s2) + s3 and h1 = ((0 + s4) + s5 + s6) + s7; the sum is h0 + h1.
// Small token tiles give each slice its own warp; large ones give a warp four slices one after
// another and share the staged tokens among more panels. The largest may split K as well: each CTA
// along z takes some of the slices and leaves the sums of each in memory, and the last to arrive
// adds all of them as if it had multiplied them itself.
#pragma once

#include "common/arrival.cuh"
#include "common/dependent.cuh"
#include "common/staging.cuh"

namespace forerun {

// sum += (scaled) A B for one step and eight tokens. `of_step`: per token the sum of its columns,
// for the minimums.
template <class Unit>
__device__ inline void multiply_step(float (&sum)[4], const Fragments& a, const uint4 b,
                                     const RowScales& first, const RowScales& second,
                                     const RowScales& minimum, const float (&of_step)[4]) {
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
    sum[0] = __fmaf_rn(-minimum.low, of_step[0], sum[0]);
    sum[1] = __fmaf_rn(-minimum.low, of_step[1], sum[1]);
    sum[2] = __fmaf_rn(-minimum.high, of_step[0], sum[2]);
    sum[3] = __fmaf_rn(-minimum.high, of_step[1], sum[3]);
  }
}

// A panel's step, ready to multiply.
struct PanelStep {
  Fragments a;
  RowScales first, second, minimum;
};

// One step of a warp's panels, `in_unit` of its unit, and all tokens of the tile.
template <class Unit, class T>
__device__ inline void multiply_tokens(float (&sums)[T::kWarpPanels][T::kTokenTiles][4],
                                       const Held<T::kAhead> (&held)[T::kWarpPanels], int in_unit,
                                       int slot, const uint4* b, int tokens) {
  PanelStep panels[T::kWarpPanels];
#pragma unroll
  for (int i = 0; i < T::kWarpPanels; ++i) {
    panels[i] = {Unit::fragments(held[i], in_unit, slot), Unit::scale(held[i], in_unit, 0),
                 Unit::scale(held[i], in_unit, 1), Unit::minimum(held[i], in_unit)};
  }
#pragma unroll
  for (int tile = 0; tile < T::kTokenTiles; ++tile) {
    // The last tile of a pass may have few tokens; and with all 64 tokens of B at once in registers
    // there would not be enough of them.
    if (tile > 0 && tile % 2 == 0 && tile * 8 >= tokens) break;
    const uint4 columns = b[tile * 32];
    float of_step[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (Unit::kMinimums) {
      // A row of ones times B: what the minimums need, where it is needed, from the tensor core.
      mma_bf16(of_step, kPairOnes, kPairOnes, kPairOnes, kPairOnes, columns.x, columns.y);
      mma_bf16(of_step, kPairOnes, kPairOnes, kPairOnes, kPairOnes, columns.z, columns.w);
    }
#pragma unroll
    for (int i = 0; i < T::kWarpPanels; ++i) {
      multiply_step<Unit>(sums[i][tile], panels[i].a, columns, panels[i].first, panels[i].second,
                          panels[i].minimum, of_step);
    }
  }
}

// What a warp multiplies by: panels (or gathered rows) and their format; with `active` false there
// are none and the warp only helps to stage.
template <class T, class Rows>
struct WarpWeights {
  Rows rows[T::kWarpPanels];
  int format;
  bool active;
};

// The warp's panels of a matrix, the CTA's first being `first`. Where only some of them exist the
// last stands for the others; nobody reads what comes of it.
template <class T>
__device__ inline WarpWeights<T, PanelRows> panels_of(const Matrix& matrix, int first) {
  const int panel = first + threadIdx.x / 32 / T::kSliceWarps * T::kWarpPanels;
  WarpWeights<T, PanelRows> weights;
  weights.format = matrix.format;
  weights.active = panel < matrix.panels();
#pragma unroll
  for (int i = 0; i < T::kWarpPanels; ++i) {
    weights.rows[i] = PanelRows{matrix.panel(min_of(panel + i, matrix.panels() - 1))};
  }
  return weights;
}

// A warp's steps for one group of panels: those of its slices, none where it has no panels.
struct WarpSteps {
  int first;
  int last;  // exclusive

  template <class Begins>
  __device__ WarpSteps(const Begins& slices, int first_slice, int count, bool active)
      : first(slices.begin(first_slice)),
        last(active ? slices.begin(first_slice + count) : first) {}
};

// Loads what a warp holds when it begins with some panels.
template <class Unit, class T, class Rows>
__device__ inline void load_first(Held<T::kAhead> (&held)[T::kWarpPanels],
                                  const Rows (&rows)[T::kWarpPanels], const WarpSteps& steps) {
#pragma unroll
  for (int panel = 0; panel < T::kWarpPanels; ++panel) {
    const int unit = steps.first / kUnitSteps;
    Unit::load_scales(held[panel], rows[panel], unit, steps.first < steps.last);
#pragma unroll
    for (int i = 0; i < T::kAhead; ++i) {
      Unit::load_step(held[panel], rows[panel], unit, i, i, steps.first + i < steps.last);
    }
  }
}

template <class T, class Rows>
__device__ inline void load_first(Held<T::kAhead> (&held)[T::kWarpPanels],
                                  const WarpWeights<T, Rows>& weights,
                                  const WarpSteps& steps) {
  switch (weights.format) {
    case kBf16: load_first<Bf16Unit, T>(held, weights.rows, steps); break;
    case kQ8_0: load_first<Q8Unit, T>(held, weights.rows, steps); break;
    case kQ4_K: load_first<Q4Unit, T>(held, weights.rows, steps); break;
    default: load_first<Q6Unit, T>(held, weights.rows, steps); break;
  }
}

// A warp's steps [begin, end) of a chunk.
struct ChunkSteps {
  int begin;
  int end;
  int last;    // the warp's last step of all, exclusive
  int staged;  // where `begin` is staged
};

// Multiplies a chunk's steps, each time loading the step that is kAhead steps further on.
template <class Unit, class T, class Rows>
__device__ inline void multiply_chunk(Held<T::kAhead> (&held)[T::kWarpPanels],
                                      const Rows (&rows)[T::kWarpPanels], const ChunkSteps& chunk,
                                      int tokens,
                                      float (&sums)[T::kWarpPanels][T::kTokenTiles][4]) {
  constexpr int kAhead = T::kAhead;
  const unsigned char* operand = Staged<T>::operand(chunk.staged, tokens);
  const int step_bytes = Staged<T>::width(tokens) * kStagedStepBytes;
#pragma unroll 1
  for (int base = chunk.begin; base < chunk.end; base += kAhead) {
    if (base % kUnitSteps == 0) {
      const int unit = base / kUnitSteps;
      const bool due =
          (unit + 1) % Unit::kUnitsPerScales == 0 && base + kUnitSteps < chunk.last;
#pragma unroll
      for (int panel = 0; panel < T::kWarpPanels; ++panel) {
        Unit::take_scales(held[panel], unit);
        Unit::load_scales(held[panel], rows[panel], unit + 1, due);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = base + i, in_unit = kAhead == kUnitSteps ? i : base % kUnitSteps + i;
      if (step < chunk.end) {
        const unsigned char* of_step = operand + (step - chunk.begin) * step_bytes;
        multiply_tokens<Unit, T>(sums, held, in_unit, i,
                                 reinterpret_cast<const uint4*>(of_step), tokens);
      }
#pragma unroll
      for (int panel = 0; panel < T::kWarpPanels; ++panel) {
        Unit::load_step(held[panel], rows[panel], (step + kAhead) / kUnitSteps,
                        (in_unit + kAhead) % kUnitSteps, i, step + kAhead < chunk.last);
      }
    }
  }
}

// Adds a warp's sums over one slice to its partial sums in shared memory, which no other warp
// touches before the barrier behind the last, and starts the next slice from zero.
template <class T>
__device__ inline void add_slice(float (&sums)[T::kWarpPanels][T::kTokenTiles][4], bool first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int panel = 0; panel < T::kWarpPanels; ++panel) {
    float* partial = Staged<T>::partials(warp, panel);
#pragma unroll
    for (int tile = 0; tile < T::kTokenTiles; ++tile, partial += kPartialFloats) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = partial[partial_at(lane % 4 * 2 + i % 2, lane / 4 + i / 2 * 8)];
        sum = __fadd_rn(first ? 0.0f : sum, sums[panel][tile][i]);
        sums[panel][tile][i] = 0.0f;
      }
    }
  }
}

// Where CTAs that split K leave the sums of their slices, and how many have. A kernel that begins
// touches neither before the one before it has ended, so one of each serves all.
struct SplitSums {
  float4* sums;   // [tiles of the grid][slices][panels][token tiles][lanes]
  int* arrivals;  // [tiles of the grid], zeros between kernels

  // Of panel `panel` of this warp, for one slice.
  template <class T>
  __device__ float4* of(int slice, int panel) const {
    const int warp_panel = threadIdx.x / 32 / T::kSliceWarps * T::kWarpPanels + panel;
    const size_t tile = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    return sums + ((tile * kSlices + slice) * T::kPanels + warp_panel) * T::kTokenTiles * 32 +
           threadIdx.x % 32;
  }
};

// Leaves a warp's sums over one slice in memory, and starts the next from zero.
template <class T>
__device__ inline void leave_slice(const SplitSums& split, int slice, int tokens,
                                   float (&sums)[T::kWarpPanels][T::kTokenTiles][4]) {
#pragma unroll
  for (int panel = 0; panel < T::kWarpPanels; ++panel) {
    float4* to = split.of<T>(slice, panel);
#pragma unroll
    for (int tile = 0; tile < T::kTokenTiles; ++tile) {
      float(&sum)[4] = sums[panel][tile];
      if (tile * 8 < tokens) to[tile * 32] = make_float4(sum[0], sum[1], sum[2], sum[3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
    }
  }
}

// Whether this CTA is the last of its tile to have left its slices; then it reads what all have
// left. All threads of the CTA call this.
__device__ inline bool is_last_of_tile(const SplitSums& split) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = is_last_to_arrive(split.arrivals + blockIdx.y * gridDim.x + blockIdx.x, gridDim.z);
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Adds the slices that all CTAs of the tile have left.
template <class T>
__device__ inline void add_left_slices(const SplitSums& split, int tokens,
                                       float (&sums)[T::kWarpPanels][T::kTokenTiles][4]) {
  const int position = threadIdx.x / 32 % T::kSliceWarps;
#pragma unroll 1
  for (int turn = 0; turn < T::kSlicesPerWarp; ++turn) {
#pragma unroll
    for (int panel = 0; panel < T::kWarpPanels; ++panel) {
      const float4* from = split.of<T>(position * T::kSlicesPerWarp + turn, panel);
#pragma unroll
      for (int tile = 0; tile < T::kTokenTiles; ++tile) {
        if (tile * 8 >= tokens) continue;
        const float4 sum = __ldcg(from + tile * 32);
        sums[panel][tile][0] = sum.x, sums[panel][tile][1] = sum.y;
        sums[panel][tile][2] = sum.z, sums[panel][tile][3] = sum.w;
      }
    }
    add_slice<T>(sums, turn == 0);
  }
}

// Groups of panels that a CTA multiplies, one after another; all of one format.
struct Groups {
  int first;
  int end;
  int step;
};

// Groups that follow one another.
struct GroupRun : Groups {
  static constexpr bool kMany = true;
  // One place in the code that loads a group's first weights: with two, the assembler moves loaded
  // registers about and waits for them. It costs registers that not every kernel has.
  static constexpr bool kLoadsInOnePlace = true;
  __device__ GroupRun(int first, int end) : Groups{first, end, 1} {}
};

// Those of `count` that fall to this CTA, dealt along y.
struct DealtGroups : Groups {
  static constexpr bool kMany = true;
  static constexpr bool kLoadsInOnePlace = false;
  __device__ explicit DealtGroups(int count)
      : Groups{static_cast<int>(blockIdx.y), count, static_cast<int>(gridDim.y)} {}
};

// The one group of a CTA along y.
struct OneGroup : Groups {
  static constexpr bool kMany = false;
  static constexpr bool kLoadsInOnePlace = false;
  __device__ OneGroup() : Groups{static_cast<int>(blockIdx.y), 0, 0} {}
};

// What a CTA knows and needs rarely. In registers it would push out what the K loop holds; read as
// volatile it is not kept there.
struct Progress {
  int tokens;
  int group;
  int chunks;               // of a slice
  int begins[kSlices + 1];  // of the slices

  __device__ int begin(int slice) const volatile { return begins[slice]; }
};

__device__ inline volatile Progress& progress() {
  __shared__ Progress kept;
  return kept;
}

// Everything a CTA multiplies. Warp w works at position w % kSliceWarps of K. `tokens_left` reads
// from the staged batch how many tokens there are from the tile's first on; `weights_of(group)`
// says what this warp multiplies. The first weights are under way before the number of tokens has
// come, and before the kernel that leaves the tokens has ended. K is split along z, for tiles with
// several panels a warp; others take all of it whatever the grid. A CTA that splits K has one
// group.
//
// For each group calls finish(group, tokens) in all threads, with its partial sums, and where the
// rows are prepared ones the norm's scale of each token, in shared memory; where K is split only in
// the CTA that has all of it. Returns the tile's tokens. Every thread has waited for the kernel
// before (dependent.cuh).
template <class T, class G, class RowOf, class TokensLeft, class WeightsOf, class Finish>
__device__ inline int multiply_groups(const Activations& in, const RowOf& row_of,
                                      const TokensLeft& tokens_left, const G& groups,
                                      const WeightsOf& weights_of, const SplitSums& split,
                                      const Finish& finish) {
  constexpr bool kMaySplit = T::kWarpPanels > 1;
  const int position = threadIdx.x / 32 % T::kSliceWarps;
  const int parts = kMaySplit ? gridDim.z : 1, turns = T::kSlicesPerWarp / parts;
  const int first_turn = kMaySplit ? blockIdx.z * turns : 0, end_turn = first_turn + turns;
  const int first_slice = position * T::kSlicesPerWarp + first_turn;

  auto weights = weights_of(groups.first);
  WarpSteps steps(Slices(in.columns, weights.format), first_slice, turns, weights.active);
  Held<T::kAhead> held[T::kWarpPanels];
  int buffer = -1, tokens, group, next;
  // Whether there are tokens; with the first of them under way.
  const auto start = [&] {
    // Opaque, or a loop of groups would carry what only its begin needs.
    const Slices slices(G::kLoadsInOnePlace ? opaque(in.columns) : in.columns, weights.format);
    buffer = 0;
    tokens = min_of(tokens_left(), T::kTokens);
    if (tokens > 0) clear_missing<T>(tokens);
    wait_for_predecessors();
    if (tokens <= 0) return false;
    if (Staged<T>::is_resident(tokens, slices.steps)) {
      stage_rows<T>(in, row_of, tokens, slices.steps);
    } else {
      stage_chunk<T>(in, row_of, tokens, slices, first_turn, 0, 0);
    }
    if (!G::kMany && in.squares != nullptr) scale_tokens<T>(in, row_of, tokens);
    if (threadIdx.x <= kSlices) progress().begins[threadIdx.x] = slices.begin(threadIdx.x);
    if (threadIdx.x == 0) {
      progress().tokens = tokens;
      progress().group = groups.first;
      progress().chunks = ceil_div(slices.longest(), T::kChunkSteps);
    }
    return true;
  };
  if (!G::kLoadsInOnePlace) {
    load_first<T>(held, weights, steps);
    if (!start()) return 0;
  }
#pragma unroll 1
  do {
    if (G::kLoadsInOnePlace) {
      load_first<T>(held, weights, steps);
      if (buffer < 0 && !start()) return 0;
    }
    float sums[T::kWarpPanels][T::kTokenTiles][4] = {};
#pragma unroll 1
    for (int turn = first_turn; turn < end_turn; ++turn) {
      const int slice = position * T::kSlicesPerWarp + turn;
      bool ends_slice = false;
#pragma unroll 1
      for (int chunk = 0; !ends_slice; ++chunk, buffer ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // This chunk is there, and nobody reads the one before any more.
        tokens = progress().tokens;
        const bool resident = Staged<T>::is_resident(tokens, progress().begin(kSlices));
        ends_slice = resident || chunk + 1 == progress().chunks;
        const bool ends_group = turn + 1 == end_turn;
        const bool more = G::kMany && progress().group + groups.step < groups.end;
        if (!resident && (!ends_slice || !ends_group || more)) {
          const int next_turn = !ends_slice ? turn : ends_group ? first_turn : turn + 1;
          stage_chunk<T>(in, row_of, tokens, progress(), next_turn, ends_slice ? 0 : chunk + 1,
                         buffer ^ 1);
        }
        const int begin = progress().begin(slice) + chunk * T::kChunkSteps;
        const int slice_end = min_of(progress().begin(slice + 1), steps.last);
        const int end = resident ? slice_end : min_of(slice_end, begin + T::kChunkSteps);
        const int staged =
            resident ? begin : (buffer * T::kSliceWarps + position) * T::kChunkSteps;
        const ChunkSteps of_chunk{begin, end, steps.last, staged};
        const auto& rows = weights.rows;
        switch (weights.format) {
          case kBf16: multiply_chunk<Bf16Unit, T>(held, rows, of_chunk, tokens, sums); break;
          case kQ8_0: multiply_chunk<Q8Unit, T>(held, rows, of_chunk, tokens, sums); break;
          case kQ4_K: multiply_chunk<Q4Unit, T>(held, rows, of_chunk, tokens, sums); break;
          default: multiply_chunk<Q6Unit, T>(held, rows, of_chunk, tokens, sums); break;
        }
      }
      if (parts > 1) {
        leave_slice<T>(split, slice, tokens, sums);
      } else {
        add_slice<T>(sums, turn == first_turn);
      }
    }
    tokens = progress().tokens;
    group = G::kMany ? progress().group : groups.first, next = group + groups.step;
    // The memory is free for the next kernel's first weights.
    if (!G::kMany || next >= groups.end) let_dependents_launch();
    if (parts > 1) {
      if (!is_last_of_tile(split)) return tokens;
      add_left_slices<T>(split, tokens, sums);
    }
    // With more groups to come this can wait.
    if (G::kMany && group == groups.first && in.squares != nullptr) {
      scale_tokens<T>(in, row_of, tokens);
    }
    __syncthreads();
    finish(group, tokens);
    if (!G::kMany || next >= groups.end) return tokens;
    __syncwarp();  // Lanes that go on one by one would load one by one.
    // Few tokens are one warp's to finish, while the others are here already. All have read the
    // number of the group they finish, and read the next one behind another barrier.
    if (threadIdx.x == 0) progress().group = next;
    weights = weights_of(next);
    steps = WarpSteps(progress(), first_slice, turns, weights.active);
    if (!G::kLoadsInOnePlace) load_first<T>(held, weights, steps);
  } while (true);
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
  const int lane = opaque(threadIdx.x % 32), token = quad_token(lane), feature = lane % 4 * 4;
  const float* partial =
      Staged<T>::partials(panel / T::kWarpPanels * T::kSliceWarps, panel % T::kWarpPanels) +
      token_tile * kPartialFloats + partial_at(token, feature);
  constexpr int kPosition = T::kWarpPanels * T::kTokenTiles * kPartialFloats;
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

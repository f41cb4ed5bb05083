// Tokens in shared memory, as the B operand of the matrix kernels; and the shapes of their tiles.
//
// While a CTA multiplies one chunk of K, asynchronous copies bring the next: for each of its
// positions in K (linear.cuh says why there are several) and each token some steps of 32 columns,
// in the order in which the mmas will read them. Nothing is done to them on the way: who wrote the
// rows left them ready (prepared.cuh).
//
// Few tokens are packed, those there are one after another. Then whole rows often fit, decode's
// above all, and stay: copied once, however many panels the CTA multiplies, and no barrier between
// chunks.
//
// Tokens beyond the tile's are never read from global memory. In a packed tile the last one stands
// for them, else zeros do; nobody reads what comes of either.
#pragma once

#include "common/batch.cuh"
#include "common/mma.cuh"
#include "common/prepared.cuh"
#include "common/weights.cuh"

namespace forerun {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlices = 8;

// Partial sums of 16 features and 8 tokens. Rows of tokens, and halves of rows, change places so
// that neither the fragments' stores nor the epilogue's 16-byte loads meet in a bank.
constexpr int kPartialFloats = 8 * 16;
__device__ inline int partial_at(int token, int feature) {
  const int row = (token >> 2 & 1) | (token & 3) << 1;
  return row * 16 + (feature ^ (token >> 1 & 1) << 3);
}

// A lane copies four columns, 8 bytes; eight lanes a step of one token, two whole sectors; and the
// next eight the step behind it.
constexpr int kCopyColumns = 4;
constexpr int kStepLanes = kStepColumns / kCopyColumns;
constexpr int kPairLanes = 2 * kStepLanes;

// A step of one token in shared memory: lane t of the four that share the token finds its columns,
// ordered as weights.cuh says, in 16 bytes at 16 t. A step has its tokens one after another, and is
// an odd number of them wide, so that the two steps of a token that sixteen lanes copy fill
// different banks.
constexpr int kStagedStepBytes = 2 * kStepColumns;
__host__ __device__ constexpr int staged_width(int tokens) { return tokens | 1; }

// kTokenTiles: tokens / 8. kSliceWarps: warps that share panels, each with its slices of K.
// kChunkSteps: steps of each such warp that are staged at a time. kWarpPanels: panels a warp
// multiplies by each operand it has read from shared memory.
template <int kTokenTiles_, int kSliceWarps_, int kChunkSteps_, int kWarpPanels_ = 1>
struct Tile {
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kSliceWarps = kSliceWarps_;
  static constexpr int kWarpPanels = kWarpPanels_;
  static constexpr int kPanels = kWarps / kSliceWarps * kWarpPanels;
  static constexpr int kSlicesPerWarp = kSlices / kSliceWarps;
  static constexpr int kChunkSteps = kChunkSteps_;
  // Steps of weights that a warp has loaded or under way. A step of two panels and 64 tokens takes
  // long enough for two to hide the memory.
  static constexpr int kAhead = kChunkSteps >= 4 ? 4 : 2;
  static constexpr bool kPacked = kTokenTiles == 1;

  // Shared memory: two buffers of staged tokens; the partial sums; the norm's scale of each token.
  static constexpr int kBufferSteps = kSliceWarps * kChunkSteps;
  static constexpr int kStagedBytes = 2 * kBufferSteps * staged_width(kTokens) * kStagedStepBytes;
  static constexpr int kPartialsAt = kStagedBytes;
  static constexpr int kScalesAt =
      kPartialsAt + kWarps * kWarpPanels * kTokenTiles * kPartialFloats * 4;
  static constexpr int kSharedBytes = kScalesAt + kTokens * 4;

  static_assert(kSliceWarps == 2 || kSliceWarps == 8, "partial sums are combined in two halves");
  static_assert(kChunkSteps % kAhead == 0 && kUnitSteps % kAhead == 0, "chunks cut no look-ahead");
};

// A tile of 64 features; of 128 for 64 tokens, which are most of the traffic. Where that leaves too
// few CTAs the slices of K are split among several (linear.cuh).
template <int kTokenTiles>
struct WideTile : Tile<kTokenTiles, 2, 16 / kTokenTiles> {};
template <>
struct WideTile<8> : Tile<8, 2, 2, 2> {};

// A tile of few features, so that a small matrix makes many CTAs; from 32 tokens on the staged
// tokens are worth sharing.
template <int kTokenTiles>
struct NarrowTile : WideTile<kTokenTiles> {};
template <>
struct NarrowTile<1> : Tile<1, 8, 4> {};
template <>
struct NarrowTile<2> : Tile<2, 8, 4> {};

// Where x comes from: row i of the tile is row row_of(i) of `x`, [rows, columns]. With `squares`
// it is a prepared row, and these are its squares.
struct Activations {
  const bf16* x;
  const float* squares;
  int columns;
  float eps;

  __device__ static Activations plain(const bf16* x, int columns) {
    return {x, nullptr, columns, 0.0f};
  }
  __device__ static Activations normed(const PreparedRows& rows, int columns, float eps) {
    return {rows.scaled, rows.squares, columns, eps};
  }
};

// Rows of the tile that follow one another.
struct ConsecutiveRows {
  int first;
  __device__ int operator()(int i) const { return first + i; }
};

// Slices of K in steps; each begins with a unit, for K-quants with a block of two.
struct Slices {
  int block_units;
  int blocks;
  int steps;
  __device__ Slices(int columns, int format)
      : block_units(format == kQ4_K || format == kQ6_K ? 2 : 1),
        blocks(ceil_div(columns, kUnitColumns * block_units)),
        steps(ceil_div(columns, kStepColumns)) {}
  __device__ int begin(int slice) const {
    const int block = static_cast<int>(static_cast<unsigned>(slice * blocks) / kSlices);
    return min_of(block * block_units * kUnitSteps, steps);
  }
  __device__ int longest() const { return ceil_div(blocks, kSlices) * block_units * kUnitSteps; }
};

// Bytes of dynamic shared memory of the CTA.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

template <class T>
struct Staged {
  // Tokens a step is wide when there are `tokens`.
  __device__ static int width(int tokens) {
    return staged_width(T::kPacked ? tokens : T::kTokens);
  }
  // Whether all of K is there at once: step i of it is staged step i. Else buffer b has staged
  // steps from b kBufferSteps on, kChunkSteps of them for each position.
  __device__ static bool is_resident(int tokens, int steps) {
    return T::kPacked && steps * width(tokens) * kStagedStepBytes <= T::kStagedBytes;
  }
  // A staged step of one of `tokens` tokens.
  __device__ static unsigned char* at(int step, int token, int tokens) {
    return shared_memory() + (step * width(tokens) + token) * kStagedStepBytes;
  }
  // Where this lane finds its columns of a staged step, of the first token tile. Tiles follow one
  // another, eight tokens each.
  __device__ static const unsigned char* operand(int step, int tokens) {
    const int lane = threadIdx.x % 32;
    const int token = T::kPacked ? min_of(lane / 4, tokens - 1) : lane / 4;
    return at(step, token, tokens) + lane % 4 * 16;
  }
  __device__ static float* scales() {
    return reinterpret_cast<float*>(shared_memory() + T::kScalesAt);
  }
  // Of panel `panel` of this warp's.
  __device__ static float* partials(int warp, int panel) {
    return reinterpret_cast<float*>(shared_memory() + T::kPartialsAt) +
           (warp * T::kWarpPanels + panel) * T::kTokenTiles * kPartialFloats;
  }
};

// Zeros for the tokens that the tile lacks, in both buffers.
template <class T>
__device__ inline void clear_missing(int tokens) {
  if (T::kPacked || tokens == T::kTokens) return;
  constexpr int kPieces = kStagedStepBytes / 16, kTokenPieces = staged_width(T::kTokens) * kPieces;
  for (int i = threadIdx.x; i < T::kStagedBytes / 16; i += kThreads) {
    if (i % kTokenPieces / kPieces >= tokens) {
      reinterpret_cast<uint4*>(shared_memory())[i] = make_uint4(0, 0, 0, 0);
    }
  }
}

// Two columns of a row; zeros beyond `columns`. The row is another kernel's.
__device__ inline unsigned load_column_pair(const bf16* row, int column, int columns) {
  unsigned pair = column < columns ? row[column] : 0u;
  if (column + 1 < columns) pair |= static_cast<unsigned>(row[column + 1]) << 16;
  return pair;
}

// Starts the copies of staged steps `first` to `first` + `count`, an even number. `step_of(i)` is
// the step of K that comes to `first` + i, or -1: none.
template <class T, class RowOf, class StepOf>
__device__ inline void stage(const Activations& in, const RowOf& row_of, int tokens, int first,
                             int count, const StepOf& step_of) {
  const int lane = threadIdx.x % kStepLanes, odd = threadIdx.x / kStepLanes % 2;
  const int pairs = count / 2;
#pragma unroll 1
  for (int item = threadIdx.x / kPairLanes; item < tokens * pairs; item += kThreads / kPairLanes) {
    const int token = item / pairs, i = item % pairs * 2 + odd, step = step_of(i);
    if (step < 0) continue;
    // Columns 4t of a step belong to lane t of its first mma, columns 16 + 4t of its second.
    const int column = step * kStepColumns + lane * kCopyColumns;
    unsigned char* to =
        Staged<T>::at(first + i, token, tokens) + lane % 4 * 16 + lane / 4 * 8;
    const bf16* row = in.x + static_cast<size_t>(row_of(token)) * in.columns;
    if (in.columns % kCopyColumns == 0) {
      const bool inside = column < in.columns;
      cp_async_8(shared_address(to), inside ? row + column : row, inside);
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(load_column_pair(row, column, in.columns),
                                                 load_column_pair(row, column + 2, in.columns));
    }
  }
  cp_async_commit();
}

// All of K.
template <class T, class RowOf>
__device__ inline void stage_rows(const Activations& in, const RowOf& row_of, int tokens,
                                  int steps) {
  stage<T>(in, row_of, tokens, 0, ceil_div(steps, 2) * 2,
           [&](int i) { return i < steps ? i : -1; });
}

// Chunk `chunk` of the `turn`-th slice of every position.
template <class T, class RowOf, class Begins>
__device__ inline void stage_chunk(const Activations& in, const RowOf& row_of, int tokens,
                                   const Begins& slices, int turn, int chunk, int buffer) {
  stage<T>(in, row_of, tokens, buffer * T::kBufferSteps, T::kBufferSteps, [&](int i) {
    const int slice = i / T::kChunkSteps * T::kSlicesPerWarp + turn;
    const int step = slices.begin(slice) + chunk * T::kChunkSteps + i % T::kChunkSteps;
    return step < slices.begin(slice + 1) ? step : -1;
  });
}

// The norm's scale of each token of the tile, a warp a token.
template <class T, class RowOf>
__device__ inline void scale_tokens(const Activations& in, const RowOf& row_of, int tokens) {
  const int lane = threadIdx.x % 32, panels = PreparedRows::squares_of_row(in.columns);
#pragma unroll 1
  for (int token = threadIdx.x / 32; token < T::kTokens; token += kWarps) {
    float squares = 0.0f;
    if (token < tokens) {
      const float* of_row = in.squares + static_cast<size_t>(row_of(token)) * panels;
#pragma unroll 4
      for (int panel = lane; panel < panels; panel += 32) {
        squares = __fadd_rn(squares, of_row[panel]);
      }
    }
    squares = sum_lanes<32>(squares);
    if (lane == 0) Staged<T>::scales()[token] = rms_scale(squares, in.columns, in.eps);
  }
}

}  // namespace forerun

// Tokens in shared memory, as the B operand of the matrix kernels; and the shapes of their tiles.
//
// While a CTA multiplies one chunk of K, asynchronous copies bring the next: for each of its
// positions in K (linear.cuh says why there are several) and each token some steps of 32 columns,
// in the order in which the mmas will read them. Then the threads that copied a piece prepare it in
// place: they multiply by the norm's weight, which leaves bf16(x g); and they add up, per token and
// slice of K, the squares for the RMS norm, and per token and step the prepared values for the
// minimums of Q4_K. Both sums have one order: eight columns in a lane, then lanes in a butterfly,
// then blocks of 64 columns in order.
//
// Tokens beyond the tile's are zeros in shared memory and never read from global memory.
#pragma once

#include "common/batch.cuh"
#include "common/mma.cuh"
#include "common/weights.cuh"

namespace forerun {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlices = 8;

// Partial sums of 16 features and 8 tokens lie as [token][16 features and 4 unused]: with 20 floats
// a token neither the fragments' stores nor the epilogue's 16-byte loads meet in a bank.
constexpr int kPartialStride = 20;
constexpr int kPartialFloats = 8 * kPartialStride;

// Eight lanes stage a block of 64 columns of one token.
constexpr int kBlockLanes = 8;
constexpr int kBlockSteps = 2;
constexpr int kStagers = kThreads / kBlockLanes;

// kTokenTiles: tokens / 8. kSliceWarps: warps that share a panel, each with its slices of K.
// kChunkSteps: steps of each such warp that are staged at a time.
template <int kTokenTiles_, int kSliceWarps_, int kChunkSteps_>
struct Tile {
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kSliceWarps = kSliceWarps_;
  static constexpr int kPanels = kWarps / kSliceWarps;
  static constexpr int kSlicesPerWarp = kSlices / kSliceWarps;
  static constexpr int kChunkSteps = kChunkSteps_;
  // Steps of weights that a warp has loaded or under way. A step of 64 tokens takes long enough
  // for two to hide the memory, and its sums leave no registers for more.
  static constexpr int kAhead = kChunkSteps >= 4 ? 4 : 2;

  // Shared memory: two buffers of staged tokens; the partial sums; two buffers of sums over each
  // step; sums of squares by slice; the norm's scale of each token.
  static constexpr int kStagedBytes = kSliceWarps * kChunkSteps * kTokenTiles * 512;
  static constexpr int kPartialsAt = 2 * kStagedBytes;
  static constexpr int kStepSumsAt = kPartialsAt + kWarps * kTokenTiles * kPartialFloats * 4;
  // A row of step sums, of a position's, of squares: longer than the tokens, for the banks.
  static constexpr int kStepFloats = kTokens + 4;
  static constexpr int kPositionFloats = kChunkSteps * kStepFloats + 2;
  static constexpr int kStepSumFloats = kSliceWarps * kPositionFloats;
  static constexpr int kSquaresAt = kStepSumsAt + 2 * kStepSumFloats * 4;
  static constexpr int kSquareFloats = kTokens + 1;
  static constexpr int kScalesAt = kSquaresAt + kSlices * kSquareFloats * 4;
  static constexpr int kSharedBytes = kScalesAt + kTokens * 4;

  static_assert(kSliceWarps == 2 || kSliceWarps == 8, "partial sums are combined in two halves");
  static_assert(kChunkSteps % kAhead == 0 && kUnitSteps % kAhead == 0, "chunks cut no look-ahead");
};

// A tile of 64 features.
template <int kTokenTiles>
using WideTile = Tile<kTokenTiles, 2, 16 / kTokenTiles>;

// A tile of few features, so that a small matrix makes many CTAs; from 32 tokens on the staged
// tokens are worth sharing.
template <int kTokenTiles>
struct NarrowTile : WideTile<kTokenTiles> {};
template <>
struct NarrowTile<1> : Tile<1, 8, 4> {};
template <>
struct NarrowTile<2> : Tile<2, 8, 4> {};

// Where x comes from. Row i of the tile is row row_of(i) of `x`, [rows, columns].
struct Activations {
  const bf16* x;
  const float* norm;  // [columns] when the tile is normalised
  int columns;
};

// Rows of the tile that follow one another.
struct ConsecutiveRows {
  int first;
  __device__ int operator()(int i) const { return first + i; }
};

// Slices of K in steps; each begins with a unit.
struct Slices {
  int units;
  int steps;
  __device__ explicit Slices(int columns)
      : units(ceil_div(columns, kUnitColumns)), steps(ceil_div(columns, kStepColumns)) {}
  __device__ int begin(int slice) const {
    const int unit = static_cast<int>(static_cast<unsigned>(slice * units) / kSlices);
    return min_of(unit * kUnitSteps, steps);
  }
  __device__ int longest() const { return ceil_div(units, kSlices) * kUnitSteps; }
};

// Bytes of dynamic shared memory of the CTA.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

template <class T>
struct Staged {
  // Byte offset of the 16 bytes of (buffer, position, step of the chunk, token tile, lane). A step
  // of eight tokens is 512 bytes, 16 a lane: lane 4 g + t has token g's columns as weights.cuh
  // orders them. Lanes are permuted so that the sixteen lanes that stage two steps of one token for
  // two positions, or of two tokens, write to different banks.
  __device__ static int at(int buffer, int position, int step, int token_tile, int lane) {
    const int swizzle = (step & 1) | ((position & 1) << 2);
    return buffer * T::kStagedBytes +
           ((position * T::kChunkSteps + step) * T::kTokenTiles + token_tile) * 512 +
           (lane ^ swizzle) * 16;
  }
  __device__ static float* step_sums(int buffer, int position, int step) {
    return reinterpret_cast<float*>(shared_memory() + T::kStepSumsAt) +
           buffer * T::kStepSumFloats + position * T::kPositionFloats + step * T::kStepFloats;
  }
  __device__ static float* squares(int slice) {
    return reinterpret_cast<float*>(shared_memory() + T::kSquaresAt) + slice * T::kSquareFloats;
  }
  __device__ static float* scales() {
    return reinterpret_cast<float*>(shared_memory() + T::kScalesAt);
  }
  __device__ static float* partials() {
    return reinterpret_cast<float*>(shared_memory() + T::kPartialsAt);
  }
};

// Zeros for the tokens that the tile lacks, in both buffers.
template <class T>
__device__ inline void clear_missing(int tokens, bool want_sums) {
  if (tokens == T::kTokens) return;
  for (int i = threadIdx.x; i < 2 * T::kStagedBytes / 16; i += kThreads) {
    const int position = i / (32 * T::kTokenTiles * T::kChunkSteps) % T::kSliceWarps;
    const int lane = (i % 32) ^ ((position & 1) << 2);  // the rest of the swizzle stays in a token
    if (i / 32 % T::kTokenTiles * 8 + lane / 4 >= tokens) {
      reinterpret_cast<uint4*>(shared_memory())[i] = make_uint4(0, 0, 0, 0);
    }
  }
  if (!want_sums) return;
  for (int i = threadIdx.x; i < 2 * T::kSliceWarps * T::kChunkSteps * T::kTokens; i += kThreads) {
    const int token = i % T::kTokens, step = i / T::kTokens;
    const int position = step / T::kChunkSteps;
    if (token >= tokens) {
      Staged<T>::step_sums(position / T::kSliceWarps, position % T::kSliceWarps,
                           step % T::kChunkSteps)[token] = 0.0f;
    }
  }
}

// What eight columns of one token are to their lane.
template <class T>
struct Piece {
  int token;     // of the tile
  int position;  // in K
  int slice;
  int step;      // of the chunk
  int column;    // first of the eight
  bool exists;   // whether the slice has this step

  // `item` counts (token, position); `block` is that of the chunk, `chunk` that of the slice.
  __device__ Piece(int item, const Slices& slices, int turn, int chunk, int block) {
    const int lane = threadIdx.x % kBlockLanes;
    token = item / T::kSliceWarps;
    position = item % T::kSliceWarps;
    slice = position * T::kSlicesPerWarp + turn;
    step = block * kBlockSteps + lane / 4;
    const int in_matrix = slices.begin(slice) + chunk * T::kChunkSteps + step;
    column = in_matrix * kStepColumns + lane % 4 * 8;
    exists = in_matrix < slices.begin(slice + 1);
  }

  // Columns 0..4 of the eight go to one lane of the mma, 4..8 (`second`) to the next: 8c..8c+4 of a
  // step are lane quarter 2c % 4 of mma c / 2.
  __device__ int at(int buffer, int second) const {
    const int c = threadIdx.x % 4;
    const int lane = token % 8 * 4 + 2 * (c % 2) + second;
    return Staged<T>::at(buffer, position, step, token / 8, lane) + c / 2 * 8;
  }
};

// Two neighbouring columns of a row; zeros beyond `columns`. The row is another kernel's.
__device__ inline unsigned load_column_pair(const bf16* row, int column, int columns) {
  unsigned pair = column < columns ? row[column] : 0u;
  if (column + 1 < columns) pair |= static_cast<unsigned>(row[column + 1]) << 16;
  return pair;
}

// Calls f(piece, mine, block) for this thread's pieces of a chunk, blocks in order. A warp makes
// every call that one of its lanes makes; `mine` is false for a lane that has no piece then.
template <class T, class F>
__device__ inline void for_each_piece(int items, const Slices& slices, int turn, int chunk, F f) {
  const int first = threadIdx.x / kBlockLanes, warp_first = threadIdx.x / 32 * (32 / kBlockLanes);
#pragma unroll 1
  for (int block = 0; block < T::kChunkSteps / kBlockSteps; ++block) {
    for (int base = 0; base + warp_first < items; base += kStagers) {
      const int item = base + first;
      Piece<T> piece(item, slices, turn, chunk, block);
      piece.exists = piece.exists && item < items;
      f(piece, item < items, block);
    }
  }
}

// Starts the copies of chunk `chunk` of the `turn`-th slice of every position.
template <class T, class RowOf>
__device__ inline void start_chunk(const Activations& in, const RowOf& row_of, int tokens,
                                   const Slices& slices, int turn, int chunk, int buffer) {
  for_each_piece<T>(tokens * T::kSliceWarps, slices, turn, chunk,
                    [&](const Piece<T>& piece, bool, int) {
    if (!piece.exists) return;
    const bf16* row = in.x + static_cast<size_t>(row_of(piece.token)) * in.columns;
    if (in.columns % 8 == 0) {
      const bool inside = piece.column < in.columns;
      const bf16* from = inside ? row + piece.column : row;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        cp_async_8(shared_address(shared_memory() + piece.at(buffer, i)), from + 4 * i, inside);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint2*>(shared_memory() + piece.at(buffer, i)) =
          make_uint2(load_column_pair(row, piece.column + 4 * i, in.columns),
                     load_column_pair(row, piece.column + 4 * i + 2, in.columns));
    }
  });
  cp_async_commit();
}

__device__ inline void load_norm(const float* norm, int column, int columns, float (&g)[8]) {
  if (column + 8 <= columns) {
    const float4 a = load_floats(norm + column), b = load_floats(norm + column + 4);
    g[0] = a.x, g[1] = a.y, g[2] = a.z, g[3] = a.w;
    g[4] = b.x, g[5] = b.y, g[6] = b.z, g[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    g[i] = column + i < columns ? load_float(norm + column + i) : 0.0f;
  }
}

// Prepares this thread's pieces of a chunk, whose copies it has waited for.
template <class T, bool kNorm>
__device__ inline void prepare_chunk(const Activations& in, int tokens, const Slices& slices,
                                     int turn, int chunk, int buffer, bool want_sums) {
  if (!kNorm && !want_sums) return;
  for_each_piece<T>(tokens * T::kSliceWarps, slices, turn, chunk,
                    [&](const Piece<T>& piece, bool mine, int block) {
    uint2 halves[2] = {};
    float squares = 0.0f, sum = 0.0f;
    if (piece.exists) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        halves[i] = *reinterpret_cast<const uint2*>(shared_memory() + piece.at(buffer, i));
      }
      unsigned words[4] = {halves[0].x, halves[0].y, halves[1].x, halves[1].y};
      if (kNorm) {
        float g[8];
        load_norm(in.norm, piece.column, in.columns, g);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float a = low_of_pair(words[i]), b = high_of_pair(words[i]);
          squares = __fmaf_rn(a, a, squares);
          squares = __fmaf_rn(b, b, squares);
          words[i] = round_to_pair(__fmul_rn(a, g[2 * i]), __fmul_rn(b, g[2 * i + 1]));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          *reinterpret_cast<uint2*>(shared_memory() + piece.at(buffer, i)) =
              make_uint2(words[2 * i], words[2 * i + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum = __fadd_rn(sum, __fadd_rn(low_of_pair(words[i]), high_of_pair(words[i])));
      }
    }
    if (kNorm) {
      squares = sum_lanes<kBlockLanes>(squares);
      // The same thread for every chunk of this token and slice: no barrier is needed in between.
      if (mine && threadIdx.x % kBlockLanes == 0) {
        float& so_far = Staged<T>::squares(piece.slice)[piece.token];
        so_far = chunk == 0 && block == 0 ? squares : __fadd_rn(so_far, squares);
      }
    }
    if (want_sums) {
      sum = sum_lanes<4>(sum);
      if (piece.exists && threadIdx.x % 4 == 0) {
        Staged<T>::step_sums(buffer, piece.position, piece.step)[piece.token] = sum;
      }
    }
  });
}

}  // namespace forerun

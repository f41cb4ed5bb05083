// Paged attention: decode, verification, scoring suffixes and prefill in one kernel.
//
//   out[t, h, :] = sum_j softmax_j(q[t, h, :] . K[j, :] / sqrt(D)) V[j, :]
//
// over the keys that row t sees (attention.cuh). q, out [T, H, D] bf16; pages [L][K|V][G][P][D]
// bf16; query head h reads KV head h / (H / G).
//
// Grid: x is the work item (plan.rs; beyond the last, nothing), y the KV head. A CTA of four warps
// packs the rows of its item times the H / G query heads of its KV head into 1 to 4 tiles of 16
// queries. One tile: every warp computes all scores and takes a quarter of the D value columns; two
// tiles: two warps share a tile, half the columns each; else a warp has a tile to itself. What a
// warp computes for one query and one column is the same sequence of operations each time, so the
// bits of a row do not depend on its neighbours: an mma adds every product of a row of A and a
// column of B in one way, wherever in the tile they are, and a key that a query does not see adds
// exact zeros.
//
// Order, per query: splits of 128 keys, blocks of 32; in a block one maximum, one rescaling, then
// 16 keys an mma, rising. Scores are unscaled f32; weights 2^(scale (s - max)) are rounded to bf16.
// Their sum is one more value column, of ones: the sum of the rounded weights.
//
// Shared memory (4 tiles of 64 rows, 64 rows of queries; 80 KiB at D = 128): two stages of a K and
// a V tile, filled by cp.async up to two tiles ahead. Rows beyond the item's keys are zeros: what a
// recycled page holds there (NaN) never meets an mma.
// Items of one split leave their states in memory, and of the CTAs that have a split of a row the
// last to arrive folds it. Counters are zero when a launch begins and when it has ended.
// Bytes: 4 D a key, KV head and item from the pool, the floor as long as the rows of a group fit
// one item (64 queries); 2 D read and written a query, 4 (D + 2) more where a state is left.
#include <cstddef>

#include "common/arrival.cuh"
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/dependent.cuh"
#include "common/mma.cuh"

namespace forerun {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileKeys = 64;
constexpr int kBlockKeys = 32;  // of a softmax block
constexpr int kTilesPerSplit = kSplitKeys / kTileKeys;
constexpr int kTileQueries = 16;
constexpr int kChunk = 8;  // bf16 in 16 bytes, the unit of copies
constexpr int kFoldColumns = 4;
// Splits that are loaded together: a row has too few threads to wait for one after another.
constexpr int kTogether = 8;

struct AttentionParams {
  Batch batch;
  const char* q;           // bf16 [T, H, D]
  const char* pool;        // pages
  char* out;               // bf16 [T, H, D]
  float* partial_values;   // [partials, H, D]
  float2* partial_sums;    // [partials, H]: max, sum
  int* arrivals;           // [T, H / G groups]: splits of the row that have been left
  long long page_bytes;    // from page to page
  long long layer_bytes;   // from a page to the K plane of KV head 0 of this layer
  long long plane_bytes;   // from KV head to KV head
  long long value_bytes;   // from a K row to its V row
  int heads;
  int kv_heads;
  int head_dim;            // a multiple of 8, at most the kernel's D; columns beyond it are zero
  int page_shift;          // log2 P
  float scale;             // log2(e) / sqrt(D)
  int reserved;
};

// Sixteen bytes of shared memory.
__device__ __forceinline__ uint4 load_shared_16(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_16(unsigned address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

// Index of the n-th set bit, n from 0.
__device__ __forceinline__ int select_bit(unsigned long long mask, int n) {
  int index = 0;
#pragma unroll 1
  for (int width = 32; width > 0; width >>= 1) {
    const int below = __popcll(mask & ((1ull << width) - 1));
    if (n >= below) {
      n -= below;
      index += width;
      mask >>= width;
    }
  }
  return index;
}

// Where the keys of one work item lie.
struct Keys {
  const char* head;          // the K plane of this layer and KV head, in page 0
  const int* prefix_pages;
  const int* own_pages;
  int prefix_len;
  int first_key;             // of the item
  int count;                 // of the item
  bool tree;
  unsigned long long bits;   // own keys of the tree row

  __device__ __forceinline__ Keys(const AttentionParams& p, const AttentionWork& work,
                                  const Group& group, int kv_head) {
    head = p.pool + p.layer_bytes + kv_head * p.plane_bytes;
    prefix_pages = p.batch.pages + group.prefix_pages;
    own_pages = p.batch.pages + group.own_pages;
    prefix_len = group.prefix_len;
    first_key = work.first_key;
    count = work.keys;
    tree = group.mask >= 0;
    // A tree tile of several rows covers prefix keys only.
    bits = tree ? p.batch.masks[group.mask + work.first_row + work.rows - 1] : 0;
  }

  // Address of the K row of key `j` of the item; null beyond the last.
  __device__ __forceinline__ const char* row(const AttentionParams& p, int j) const {
    if (j >= count) return nullptr;
    int index = first_key + j;
    const int* pages = prefix_pages;
    if (index >= prefix_len) {
      index -= prefix_len;
      pages = own_pages;
      if (tree) index = select_bit(bits, index);
    }
    const int slot = index & ((1 << p.page_shift) - 1);
    return head + pages[index >> p.page_shift] * p.page_bytes + slot * (2 * p.head_dim);
  }
};

// Shared memory of a CTA: two stages of a K and a V tile, then parked queries. Rows are kDim
// elements; a 16-byte chunk of a row lies at chunk ^ swizzle, so that neighbouring rows fill
// opposite halves of the 32 banks and eight rows fill all of them: no conflict for a quarter warp
// that writes or reads 4 chunks of 2 rows, nor for one that reads the same chunk of 8 rows.
template <int kDim>
struct Tiles {
  static constexpr int kRowBytes = 2 * kDim;
  static constexpr int kTileBytes = kTileKeys * kRowBytes;

  // Chunks of a row that change places.
  static constexpr int kMask = kDim % 64 == 0 ? 7 : 3;

  // Where chunk `chunk` of `row` lies in a tile.
  static __device__ __forceinline__ unsigned chunk(int row, int chunk) {
    const int pair = (row >> 1) & 3;
    // Rows of 32 and 96 elements change halves by their length alone.
    const int swizzle = kMask == 7 ? (row & 1) << 2 | pair : pair;
    return row * kRowBytes + ((chunk ^ swizzle) << 4);
  }

  // From where a chunk below `step` lies to where the chunk `step` further on lies; `step` is a
  // constant whose bits the first chunk does not have.
  static __device__ __forceinline__ unsigned further(unsigned from, int step) {
    return (from ^ (step & kMask) << 4) + (step & ~kMask) * 16;
  }

  static __device__ __forceinline__ unsigned stage(unsigned shared, int stage) {
    return shared + stage * 2 * kTileBytes;
  }

  // Where this thread parks the query chunks it needs for every tile. Nobody else reads them.
  static __device__ __forceinline__ unsigned queries(unsigned shared) {
    return shared + 4 * kTileBytes + threadIdx.x * 16;
  }
};

// The rows of a tile that this thread copies: a quarter of row `thread / 4` and of the row 32
// further on.
template <int kDim>
struct Copier {
  using Shared = Tiles<kDim>;
  static constexpr int kRows = kTileKeys / (kThreads / 4);

  const char* rows[kRows];  // of K, in memory; null: beyond the last key

  // Looks up the pages of tile `tile`. The item is read again each time: registers are scarcer than
  // cached loads.
  __device__ __forceinline__ void find(const AttentionParams& p, int item, int tile) {
    const AttentionWork work = p.batch.work[item];
    const Keys keys(p, work, p.batch.groups[work.group], blockIdx.y);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      rows[r] = keys.row(p, tile * kTileKeys + r * (kThreads / 4) + threadIdx.x / 4);
  }

  // Starts copying them.
  __device__ __forceinline__ void copy(const AttentionParams& p, unsigned stage) const {
    const int row = threadIdx.x / 4;
    const int quarter = threadIdx.x % 4;
    const unsigned to = stage + Shared::chunk(row, quarter);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kDim / 32; ++c) {
        const int chunk = quarter + 4 * c;
        const bool present = rows[r] != nullptr && chunk * kChunk < p.head_dim;
        const unsigned at =
            Shared::further(to, 4 * c) + r * (kThreads / 4) * Shared::kRowBytes;
        // Nothing is read where the row is absent, but the address must be one.
        const char* key = present ? rows[r] + chunk * 16 : p.pool;
        cp_async_16(at, key, present);
        cp_async_16(at + Shared::kTileBytes, present ? key + p.value_bytes : key, present);
      }
  }
};

// One query of a work item: a row and a head.
struct Query {
  bool present;
  int i;     // row of the group
  int row;   // row of the batch
  int head;  // of all heads

  // Number `index` of the item's queries.
  __device__ __forceinline__ Query(const AttentionParams& p, const AttentionWork& work,
                                   const Group& group, int index) {
    const int ratio = p.heads / p.kv_heads;
    present = index < work.rows * ratio;
    i = work.first_row + (present ? index / ratio : 0);
    row = group.row_begin + i;
    head = blockIdx.y * ratio + index % ratio;
  }

  // Of this query in an array [rows, heads].
  __device__ __forceinline__ long long place(const AttentionParams& p, int first_row) const {
    return static_cast<long long>(first_row) * p.heads + head;
  }
};

// One warp's share of a work item: 16 queries against kDim / kParts value columns.
template <int kDim, int kParts>
struct Warp {
  static constexpr int kColumns = kDim / kChunk / kParts;  // groups of 8 columns
  // Whether `part * kColumns` and a smaller number share no bit.
  static constexpr bool kBitsApart = kParts == 1 || (kColumns & (kColumns - 1)) == 0;
  using Shared = Tiles<kDim>;

  int t, g;                    // lane = 4 g + t
  int part;                    // which columns
  int visible[2];              // keys of the item that they see
  unsigned parked;             // this lane's query chunks, parked in shared memory
  float max[2];                // of the split so far
  float sum[4];                // accumulator of the column of ones
  float values[kColumns][4];
  float total_max[2];          // of the splits folded so far
  float total_sum[2];
  float total[kColumns][4];

  __device__ __forceinline__ Warp(const AttentionParams& p, const AttentionWork& work,
                                  const Group& group, unsigned shared) {
    const int lane = threadIdx.x % 32;
    t = lane % 4;
    g = lane / 4;
    part = threadIdx.x / 32 % kParts;
    parked = Shared::queries(shared);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Query query(p, work, group, first_query() + 8 * half);
      // A query that does not exist needs no mask; its results go nowhere.
      visible[half] =
          query.present ? visible_keys(p.batch, group, query.i) - work.first_key : 1 << 30;
      const char* from = p.q + query.place(p, query.row) * (2 * p.head_dim);
#pragma unroll
      for (int c = 0; c < kDim / 32; ++c) {
        const int chunk = t + 4 * c;
        const bool inside = query.present && chunk * kChunk < p.head_dim;
        store_shared_16(parked + (2 * c + half) * kThreads * 16,
                        inside ? *reinterpret_cast<const uint4*>(from + chunk * 16)
                               : make_uint4(0, 0, 0, 0));
      }
      total_max[half] = kMasked;
      total_sum[half] = 0;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) total[c][e] = 0;
  }

  // Index of this lane's first query in the item; the second is 8 further on.
  __device__ __forceinline__ int first_query() const {
    return threadIdx.x / 32 / kParts * kTileQueries + g;
  }

  // Begins a split.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int half = 0; half < 2; ++half) max[half] = kMasked;
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) values[c][e] = 0;
  }

  // Scores of all keys of a block. The order of the D products is permuted, the same for q and K:
  // a lane's 16 bytes of chunk t + 4c serve two mma, its first half elements {2t, 2t + 1} and
  // {2t + 8, 2t + 9} of the first, its second half those of the second.
  __device__ __forceinline__ void score(unsigned keys, float (&s)[kBlockKeys / 8][4]) const {
#pragma unroll
    for (int j = 0; j < kBlockKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = 0;
    const unsigned first = keys + Shared::chunk(g, t);
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      const unsigned at = Shared::further(first, 4 * c);
      const uint4 a = load_shared_16(parked + 2 * c * kThreads * 16);
      const uint4 b = load_shared_16(parked + (2 * c + 1) * kThreads * 16);
#pragma unroll
      for (int j = 0; j < kBlockKeys / 8; ++j) {
        const uint4 k = load_shared_16(at + j * 8 * Shared::kRowBytes);
        mma_bf16(s[j], a.x, b.x, a.y, b.y, k.x, k.y);
        mma_bf16(s[j], a.z, b.z, a.w, b.w, k.z, k.w);
      }
    }
  }

  // Hides the keys of the block that a query does not see.
  __device__ __forceinline__ void mask(int first_key, float (&s)[kBlockKeys / 8][4]) const {
    if (first_key + kBlockKeys <= min(visible[0], visible[1])) return;
#pragma unroll
    for (int j = 0; j < kBlockKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = first_key + 8 * j + 2 * t + e % 2;
        if (key >= visible[e / 2]) s[j][e] = kMasked;
      }
  }

  // Turns scores into weights, and moves what was summed so far to the new maximum.
  __device__ __forceinline__ void weigh(float scale, float (&s)[kBlockKeys / 8][4]) {
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float larger = max[half];
#pragma unroll
      for (int j = 0; j < kBlockKeys / 8; ++j)
        larger = fmaxf(larger, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      larger = fmaxf(larger, __shfl_xor_sync(~0u, larger, 1));
      larger = fmaxf(larger, __shfl_xor_sync(~0u, larger, 2));
      rescale[half] = exp2_approx(__fmul_rn(__fsub_rn(max[half], larger), scale));
      max[half] = larger;
#pragma unroll
      for (int j = 0; j < kBlockKeys / 8; ++j)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e)
          s[j][e] = exp2_approx(__fmul_rn(__fsub_rn(s[j][e], larger), scale));
    }
    // Mostly no maximum moves; multiplying by one would change nothing.
    if (!__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum[e] = __fmul_rn(sum[e], rescale[e / 2]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) values[c][e] = __fmul_rn(values[c][e], rescale[e / 2]);
    }
  }

  // Adds the weighted values of a block. An accumulator of scores is, packed, the A operand of 16
  // keys.
  __device__ __forceinline__ void add(unsigned tile, const float (&s)[kBlockKeys / 8][4]) {
    unsigned w[kBlockKeys / 16][4];
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; ++k) {
      w[k][0] = round_to_pair(s[2 * k][0], s[2 * k][1]);
      w[k][1] = round_to_pair(s[2 * k][2], s[2 * k][3]);
      w[k][2] = round_to_pair(s[2 * k + 1][0], s[2 * k + 1][1]);
      w[k][3] = round_to_pair(s[2 * k + 1][2], s[2 * k + 1][3]);
      mma_bf16(sum, w[k][0], w[k][1], w[k][2], w[k][3], kPairOnes, kPairOnes);
    }
    const int lane = threadIdx.x % 32;
    const unsigned first = tile + Shared::chunk(lane, part * kColumns);
#pragma unroll
    for (int k = 0; k < kBlockKeys / 16; k += 2)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const unsigned at = kBitsApart ? Shared::further(first, c)
                                       : tile + Shared::chunk(lane, part * kColumns + c);
        unsigned v[4];
        ldmatrix_x4_trans(v, at + k * 16 * Shared::kRowBytes);
        mma_bf16(values[c], w[k][0], w[k][1], w[k][2], w[k][3], v[0], v[1]);
        mma_bf16(values[c], w[k + 1][0], w[k + 1][1], w[k + 1][2], w[k + 1][3], v[2], v[3]);
      }
  }

  // Adds one block of keys, the first of them key `first_key` of the item.
  __device__ __forceinline__ void block(unsigned keys, int first_key, float scale) {
    float s[kBlockKeys / 8][4];
    score(keys, s);
    mask(first_key, s);
    weigh(scale, s);
    add(keys + Shared::kTileBytes, s);
  }

  // Puts the split behind the splits before it. For a query that sees none of its keys the new
  // scale is zero.
  __device__ __forceinline__ void fold(float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Fold both(total_max[half], max[half], scale);
      total_max[half] = both.max;
      total_sum[half] = both(total_sum[half], sum[2 * half]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) total[c][e] = both(total[c][e], values[c][e]);
    }
  }

  // The finished rows, or the state of the one split for rows that have several. Every row of an
  // item sees a key of it (plan.rs).
  __device__ __forceinline__ void store(const AttentionParams& p, int item) const {
    const AttentionWork work = p.batch.work[item];
    const Group group = p.batch.groups[work.group];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Query query(p, work, group, first_query() + 8 * half);
      if (!query.present) continue;
      const int partial = p.batch.row_partials[query.row];
      const long long at = query.place(p, partial < 0 ? query.row : partial + work.split);
      const float inverse = normaliser(total_sum[half]);
      if (partial >= 0 && part == 0 && t == 0)
        p.partial_sums[at] = make_float2(total_max[half], total_sum[half]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int column = (part * kColumns + c) * kChunk + 2 * t;
        if (column >= p.head_dim) continue;
        const long long element = at * p.head_dim + column;
        const float low = total[c][2 * half];
        const float high = total[c][2 * half + 1];
        if (partial < 0)
          *reinterpret_cast<unsigned*>(p.out + 2 * element) = normalised(low, high, inverse);
        else
          *reinterpret_cast<float2*>(p.partial_values + element) = make_float2(low, high);
      }
    }
  }
};

// Folds four columns of a row whose first state is `partial`.
__device__ __forceinline__ void fold_columns(const AttentionParams& p, int row, int partial,
                                             int splits, int column) {
  const int head = column / p.head_dim;
  const long long width = static_cast<long long>(p.heads) * p.head_dim;
  const float* values = p.partial_values + partial * width + column;
  const float2* sums = p.partial_sums + static_cast<long long>(partial) * p.heads + head;
  float4 total = make_float4(0, 0, 0, 0);
  float2 state = make_float2(kMasked, 0);
  for (int first = 0; first < splits; first += kTogether) {
    float4 more[kTogether];
    float2 next[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= splits) break;
      more[i] = __ldcg(reinterpret_cast<const float4*>(values + (first + i) * width));
      next[i] = __ldcg(sums + (first + i) * static_cast<long long>(p.heads));
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= splits) break;
      const Fold both(state.x, next[i].x, p.scale);
      state = make_float2(both.max, both(state.y, next[i].y));
      total = make_float4(both(total.x, more[i].x), both(total.y, more[i].y),
                          both(total.z, more[i].z), both(total.w, more[i].w));
    }
  }
  const float inverse = normaliser(state.y);
  *reinterpret_cast<uint2*>(p.out + 2 * (row * width + column)) =
      make_uint2(normalised(total.x, total.y, inverse), normalised(total.z, total.w, inverse));
}

// Counts the states that this CTA has left, and folds the rows of which they were the last.
__device__ __forceinline__ void fold_rows(const AttentionParams& p, int item) {
  __shared__ int splits_of[kWarps * kTileQueries];  // of the rows to fold; 0: somebody else's
  const AttentionWork work = p.batch.work[item];
  const Group group = p.batch.groups[work.group];
  const int first_row = group.row_begin + work.first_row;
  // Of an item's rows the last sees most: if that has one split they all have.
  if (p.batch.row_partials[first_row + work.rows - 1] < 0) return;
  __threadfence();
  __syncthreads();
  const int i = threadIdx.x;
  if (i < work.rows) {
    splits_of[i] = 0;
    if (p.batch.row_partials[first_row + i] >= 0) {
      const int visible = visible_keys(p.batch, group, work.first_row + i);
      const int splits = (visible + kSplitKeys - 1) / kSplitKeys;
      int* arrived = p.arrivals + (first_row + i) * p.kv_heads + blockIdx.y;
      if (is_last_to_arrive(arrived, splits)) splits_of[i] = splits;
    }
  }
  __syncthreads();
  __threadfence();
  const int columns = p.heads / p.kv_heads * p.head_dim;
#pragma unroll 1
  for (int r = 0; r < work.rows; ++r) {
    if (splits_of[r] == 0) continue;
    const int row = first_row + r, partial = p.batch.row_partials[row];
#pragma unroll 1
    for (int c = threadIdx.x * kFoldColumns; c < columns; c += kThreads * kFoldColumns) {
      fold_columns(p, row, partial, splits_of[r], blockIdx.y * columns + c);
    }
  }
}

template <int kDim, int kParts>
__device__ __forceinline__ void attend(const AttentionParams& p, int item, int tiles,
                                       int warps, unsigned shared) {
  using Shared = Tiles<kDim>;
  Copier<kDim> copier;
#pragma unroll
  for (int ahead = 0; ahead < 2; ++ahead) {
    copier.find(p, item, ahead);  // in the staged page tables
    if (ahead == 0) wait_for_predecessors();
    if (ahead < tiles) copier.copy(p, Shared::stage(shared, ahead));
    cp_async_commit();
  }
  let_dependents_launch();
  const AttentionWork work = p.batch.work[item];
  Warp<kDim, kParts> warp(p, work, p.batch.groups[work.group], shared);
  // A warp without queries only copies.
  const int warp_keys = threadIdx.x / 32 < warps ? kTileKeys : 0;
  int tile = 0;
#pragma unroll 1
  while (tile < tiles) {
    warp.begin();
#pragma unroll 1
    do {
      const unsigned stage = Shared::stage(shared, tile % 2);
      cp_async_wait<1>();
      __syncthreads();
      // The pages of the tile after next are looked up behind this tile's arithmetic.
      copier.find(p, item, tile + 2);
#pragma unroll 1
      for (int key = 0; key < warp_keys; key += kBlockKeys)
        warp.block(stage + key * Shared::kRowBytes, tile * kTileKeys + key, p.scale);
      __syncthreads();
      if (tile + 2 < tiles) copier.copy(p, stage);
      cp_async_commit();
      ++tile;
    } while (tile < tiles && tile % kTilesPerSplit != 0);
    warp.fold(p.scale);
  }
  warp.store(p, item);
  fold_rows(p, item);
}

template <int kDim>
__device__ __forceinline__ void attention(const AttentionParams& p) {
  extern __shared__ __align__(128) char memory[];
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  const int item = blockIdx.x;
  if (item >= p.batch.counts[kAttentionWork]) {
    wait_for_predecessors();
    return;
  }
  const int queries = p.batch.work[item].rows * (p.heads / p.kv_heads);
  const int tiles = (p.batch.work[item].keys + kTileKeys - 1) / kTileKeys;
  if (queries <= kTileQueries)
    attend<kDim, 4>(p, item, tiles, kWarps, shared);
  else if (queries <= 2 * kTileQueries)
    attend<kDim, 2>(p, item, tiles, kWarps, shared);
  else
    attend<kDim, 1>(p, item, tiles, (queries + kTileQueries - 1) / kTileQueries, shared);
}

}  // namespace forerun

using forerun::AttentionParams;

// Size and offsets of the parameters, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_attention_layout[] = {
    sizeof(AttentionParams),
    offsetof(AttentionParams, batch),
    offsetof(AttentionParams, q),
    offsetof(AttentionParams, pool),
    offsetof(AttentionParams, out),
    offsetof(AttentionParams, partial_values),
    offsetof(AttentionParams, partial_sums),
    offsetof(AttentionParams, arrivals),
    offsetof(AttentionParams, page_bytes),
    offsetof(AttentionParams, layer_bytes),
    offsetof(AttentionParams, plane_bytes),
    offsetof(AttentionParams, value_bytes),
    offsetof(AttentionParams, heads),
    offsetof(AttentionParams, kv_heads),
    offsetof(AttentionParams, head_dim),
    offsetof(AttentionParams, page_shift),
    offsetof(AttentionParams, scale),
    offsetof(AttentionParams, reserved),
};

extern "C" __global__ void __launch_bounds__(forerun::kThreads, 2)
    forerun_attention_d32(const __grid_constant__ AttentionParams p) {
  forerun::attention<32>(p);
}

extern "C" __global__ void __launch_bounds__(forerun::kThreads, 2)
    forerun_attention_d64(const __grid_constant__ AttentionParams p) {
  forerun::attention<64>(p);
}

extern "C" __global__ void __launch_bounds__(forerun::kThreads, 2)
    forerun_attention_d96(const __grid_constant__ AttentionParams p) {
  forerun::attention<96>(p);
}

extern "C" __global__ void __launch_bounds__(forerun::kThreads, 2)
    forerun_attention_d128(const __grid_constant__ AttentionParams p) {
  forerun::attention<128>(p);
}

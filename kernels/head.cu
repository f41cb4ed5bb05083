// logits[i, v] = W[v, :] x_i, x_i = rms_norm(hidden[row of head i]) * g, for the batch's vocabulary
// heads only; and per head what was asked for: the arg max, the log-probability of an id, or the
// row of logits.
//
// rows: x before its root, and its squares (common/prepared.cuh); W [V, C] packed
// (common/weights.cuh). Only heads of kind Full store logits, f32 [full rows, V]. forerun_head
// reduces the 256 logits of its CTA to a LogitSummary, forerun_head_finish merges a head's
// summaries and writes its HeadResult. Several heads may name one row.
// A head looks at its first `ids`, all of V or whole CTAs of them: what lies behind is not read for
// it alone, and its row of logits undefined there. The grid reaches as far as the head that looks
// at most.
// Workspace: summaries [heads][ceil(most ids / 256)] of 16 bytes; targets [heads] f32, the logit
// that a LogProb head asks about, written by the one CTA that has it.
// Grid of forerun_head: x = ceil(heads / heads of the tile), y = ceil(most ids / 256); 256 threads,
// for one tile of vocabulary rows after another. Entries forerun_head_n8, _n16, _n32, _n64 differ
// in heads a tile only and give the same bits: common/linear.cuh has the order of summation, and
// the shared memory; summaries are merged by panel of 16 rows in order of ids.
// Grid of forerun_head_finish: heads; 256 threads; thread i merges summaries i, i + 256, ..., then
// threads merge in a tree.
// Bound: memory, the bytes of W. Error: one bf16 rounding of each x g.
#include "common/linear.cuh"
#include "common/softmax.cuh"

namespace forerun {

// Vocabulary rows of a CTA.
constexpr int kHeadFeatures = 256;

struct HeadParams {
  Batch batch;
  Matrix weights;
  PreparedRows rows;
  float* logits;
  LogitSummary* summaries;
  float* targets;
  float eps;
  int reserved;
};

struct HeadFinishParams {
  Batch batch;
  Results results;
  const LogitSummary* summaries;
  const float* targets;
  int summaries_per_head;
  int reserved;
};

// The rows that heads ask for.
struct HeadRows {
  const VocabHead* heads;  // of the tile
  __device__ int operator()(int i) const { return heads[i].row; }
};

// Stores what head `head` wants of four logits, from id `first` on, `count` of them inside V.
__device__ inline void keep_logits(const HeadParams& p, const VocabHead& head, int index,
                                   const float (&logits)[4], int first, int count) {
  if (head.kind == kLogProb && head.argument >= first && head.argument < first + count) {
    const int i = head.argument - first;
    p.targets[index] = i == 0 ? logits[0] : i == 1 ? logits[1] : i == 2 ? logits[2] : logits[3];
  }
  if (head.kind != kFull) return;
  float* out = p.logits + static_cast<size_t>(head.argument) * p.weights.rows + first;
  if (p.weights.rows % 4 == 0) {
    *reinterpret_cast<float4*>(out) = make_float4(logits[0], logits[1], logits[2], logits[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = logits[i];
  }
}

// The summary of a panel's 16 logits of one head, four of them in each of four lanes.
__device__ inline LogitSummary summarise(const float (&logits)[4], int first, int count) {
  LogitSummary s = LogitSummary::none();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= count) continue;
    s.non_finite |= is_not_finite(logits[i]);
    if (logits[i] > s.largest) s.largest = logits[i], s.id = first + i;
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
    const float other = __shfl_xor_sync(kFullWarp, s.largest, mask);
    const int other_id = __shfl_xor_sync(kFullWarp, s.id, mask);
    const bool better = other > s.largest || (other == s.largest && other_id < s.id);
    if (better) s.largest = other, s.id = other_id;
    s.non_finite |= __shfl_xor_sync(kFullWarp, s.non_finite, mask);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) s.sum = __fadd_rn(s.sum, expf(logits[i] - s.largest));
  }
  s.sum = sum_lanes<4>(s.sum);
  return s;
}

// Takes the 64 logits of each head of a tile that a group of panels has: warp w for token tile w,
// four lanes a head. What a head has so far waits in `running`, not in registers of the K loop.
template <class T>
__device__ inline void take_group(const HeadParams& p, int first_head, int tokens, int first_panel,
                                  LogitSummary* running) {
  const int warp = threadIdx.x / 32, vocab = p.weights.rows;
  if (warp >= T::kTokenTiles) return;
  const int token = warp * 8 + quad_token(threadIdx.x % 32);
  const bool mine = token < tokens;
  const float scale = Staged<T>::scales()[token];
  const VocabHead head = p.batch.vocab_heads[first_head + (mine ? token : 0)];
  LogitSummary summary = running[token];
#pragma unroll 1
  for (int panel = 0; panel < T::kPanels; ++panel) {
    if ((first_panel + panel) * kPanelRows >= vocab) break;
    Quad quad = combine<T>(panel, warp);
    quad.scale(scale);
    const int first = (first_panel + panel) * kPanelRows + quad.feature;
    const int count = min_of(vocab - first, 4);
    if (mine && count > 0) keep_logits(p, head, first_head + token, quad.y, first, count);
    summary = merge(summary, summarise(quad.y, first, count));
  }
  __syncwarp();
  if (threadIdx.x % 4 == 0) running[token] = summary;
}

template <int kTokenTiles>
__device__ inline void head(const HeadParams& p) {
  using T = WideTile<kTokenTiles>;
  __shared__ LogitSummary running[T::kTokens];
  const int first_head = blockIdx.x * T::kTokens;
  if (threadIdx.x < T::kTokens) running[threadIdx.x] = LogitSummary::none();
  constexpr int kGroups = kHeadFeatures / (T::kPanels * kPanelRows);
  const int first = blockIdx.y * kGroups;
  const int groups = ceil_div(p.weights.panels(), T::kPanels);
  const int tokens = multiply_groups<T>(
      Activations::normed(p.rows, p.weights.columns, p.eps),
      HeadRows{p.batch.vocab_heads + first_head},
      [&] { return p.batch.counts[kVocabHeads] - first_head; },
      GroupRun(first, min_of(first + kGroups, groups)),
      [&](int group) { return panels_of<T>(p.weights, group * T::kPanels); }, SplitSums{},
      [&](int group, int found) {
        take_group<T>(p, first_head, found, group * T::kPanels, running);
      });
  if (tokens == 0) return;
  __syncthreads();
  const int token = threadIdx.x;
  if (token < tokens) {
    p.summaries[static_cast<size_t>(first_head + token) * gridDim.y + blockIdx.y] = running[token];
  }
}

__device__ inline void head_finish(const HeadFinishParams& p) {
  __shared__ LogitSummary shared[kThreads];
  const int index = blockIdx.x, thread = threadIdx.x;
  const bool idle = index >= p.batch.counts[kVocabHeads];  // staged
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const LogitSummary* summaries =
      p.summaries + static_cast<size_t>(index) * p.summaries_per_head;
  const VocabHead head = p.batch.vocab_heads[index];
  const int count = ceil_div(head.ids, kHeadFeatures);
  LogitSummary summary = LogitSummary::none();
  for (int i = thread; i < count; i += kThreads) summary = merge(summary, summaries[i]);
  shared[thread] = summary;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] = merge(shared[thread], shared[thread + half]);
  }
  if (thread != 0) return;
  summary = shared[0];
  HeadResult result = {0.0f, 0, summary.non_finite, 0};
  if (head.kind == kArgmax) {
    result.value = summary.largest;
    result.id = summary.id;
  } else if (head.kind == kLogProb) {
    result.value =
        __fsub_rn(__fsub_rn(p.targets[index], summary.largest), logf(summary.sum));
  }
  p.results.heads[head.result] = result;
}

}  // namespace forerun

using forerun::HeadFinishParams;
using forerun::HeadParams;

// Size and offsets of HeadParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_head_layout[] = {
    sizeof(HeadParams),
    offsetof(HeadParams, batch),
    offsetof(HeadParams, weights),
    offsetof(HeadParams, rows),
    offsetof(HeadParams, logits),
    offsetof(HeadParams, summaries),
    offsetof(HeadParams, targets),
    offsetof(HeadParams, eps),
    offsetof(HeadParams, reserved),
};
// Dynamic shared memory of each entry, for the same test.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_head_shared_bytes[] = {
    forerun::WideTile<1>::kSharedBytes, forerun::WideTile<2>::kSharedBytes,
    forerun::WideTile<4>::kSharedBytes, forerun::WideTile<8>::kSharedBytes};

// Size and offsets of HeadFinishParams, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_head_finish_layout[] = {
    sizeof(HeadFinishParams),
    offsetof(HeadFinishParams, batch),
    offsetof(HeadFinishParams, results),
    offsetof(HeadFinishParams, summaries),
    offsetof(HeadFinishParams, targets),
    offsetof(HeadFinishParams, summaries_per_head),
    offsetof(HeadFinishParams, reserved),
};

extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_head_n8(const __grid_constant__ HeadParams p) {
  forerun::head<1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_head_n16(const __grid_constant__ HeadParams p) {
  forerun::head<2>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2)
    forerun_head_n32(const __grid_constant__ HeadParams p) {
  forerun::head<4>(p);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    forerun_head_n64(const __grid_constant__ HeadParams p) {
  forerun::head<8>(p);
}
extern "C" __global__ void __launch_bounds__(256)
    forerun_head_finish(const __grid_constant__ HeadFinishParams p) {
  forerun::head_finish(p);
}

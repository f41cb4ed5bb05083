// Draws one token a row by the rules of src/sample: the same token, to the bit, from the same
// logits.
//
//   edit by bias and penalties, mask, divide by the temperature, keep top-k, then top-p, then
//   min-p, draw by one uniform number in order of id; log-probability, entropy and top-1
//   probability are of the raw row at temperature 1.
//
// logits [rows, V] f32. Three launches, as everything is relative to the largest logit:
//   forerun_sample_top     (32 parts, samples) x 256   the largest logit of a part of the row
//   forerun_sample_weigh   (32 parts, samples) x 256   sums of masses; tokens that may survive
//   forerun_sample_draw    (samples)           x 512   cut-offs among those, and the draw
// A CTA beyond counts[kSamples] returns at once. Weights are integers (sample.cuh), so no order of
// addition matters, nor the order in which survivors are listed: a cut-off is a boundary in a
// histogram of keys (scan.cuh), and so is the drawn token, with ids as keys. If more than 3072
// tokens may survive, the last launch reads the row itself. Bytes: 8 V a sample; 0.6 MB a reading
// of 152,064 ids.
#include <cstddef>

#include "common/batch.cuh"
#include "common/dependent.cuh"
#include "common/tokens.cuh"

namespace forerun {

constexpr int kDrawThreads = 512;
typedef Scan<kDrawThreads> DrawScan;

struct SampleParams {
  Batch batch;
  SampleSource source;      // its samples are the batch's
  SampleScratch* scratch;   // one a sample
  SampleResult* results;    // one a sample
  Cut* cuts;                // one a sample, for accept.cu; null: not wanted
};

// One CTA's part of one row.
struct Part {
  int index;
  int begin;
  int end;

  __device__ __forceinline__ explicit Part(int vocab) {
    const int ids = part_ids(vocab);
    index = blockIdx.x;
    begin = min(index * ids, vocab);
    end = min(begin + ids, vocab);
  }
};

// The best token of all parts; the same in every lane.
__device__ __forceinline__ u64 best_of_parts(const u64 (&parts)[kParts]) {
  static_assert(kParts == 32, "a part a lane");
  return warp_max(parts[threadIdx.x % 32]);
}

__device__ __forceinline__ u64 sum_of_parts(const u64 (&parts)[kParts]) {
  return warp_sum(parts[threadIdx.x % 32]);
}

// A row with nothing cut off yet; `top` is its best token.
__device__ __forceinline__ Cut whole_row(const Sample& sample, u64 top) {
  Cut cut = {};
  cut.mass_min = 1;
  cut.max = logit_of_key(key_of_ranked(top));
  cut.inverse_temperature = sample.inverse_temperature;
  cut.top_last = kNoLimit;
  cut.nucleus_last = kNoLimit;
  cut.point = -1;
  if (sample.inverse_temperature == 0.0f || cut.max == -INFINITY) {
    cut.point = id_of_ranked(top);
    cut.total = kMassOne;
  }
  return cut;
}

__device__ __forceinline__ void find_top(const Row& row, SampleScratch& scratch,
                                         Reduce<kPartThreads>& reduce) {
  const Part part(row.vocab);
  u64 raw = 0;
  u64 top = 0;
#pragma unroll 4
  for (int id = part.begin + threadIdx.x; id < part.end; id += kPartThreads) {
    raw = max(raw, ranked(order_key(row.raw(id)), id));
    if (row.changed()) top = max(top, ranked(order_key(row.at(id)), id));
  }
  if (!row.changed()) top = raw;
  const unsigned warp_key = key_of_ranked(warp_max(top));
  if (threadIdx.x % 32 == 0)
    scratch.warp_keys[part.index * kPartWarps + threadIdx.x / 32] = warp_key;
  raw = reduce.max(raw);
  top = reduce.max(top);
  if (threadIdx.x == 0) {
    scratch.raw_top[part.index] = raw;
    scratch.top[part.index] = top;
    if (part.index == 0) scratch.count = 0;
  }
}

// The k-th largest of the warps' best keys: k tokens have it or more, and few others. 0 where there
// are fewer warps than k.
__device__ __forceinline__ unsigned top_k_bar(const SampleScratch& scratch, int k,
                                              unsigned (&keys)[kParts * kPartWarps],
                                              unsigned& bar) {
  static_assert(kParts * kPartWarps == kPartThreads, "a key a thread");
  if (k <= 0 || k > kPartThreads) return 0;
  const unsigned own = scratch.warp_keys[threadIdx.x];
  keys[threadIdx.x] = own;
  __syncthreads();
  int before = 0;
  for (int i = 0; i < kPartThreads; ++i) {
    const unsigned key = keys[i];
    before += key > own || (key == own && i < threadIdx.x);
  }
  if (before == k - 1) bar = own;
  __syncthreads();
  return bar;
}

// Adds a token to the list for every lane that wants to.
__device__ __forceinline__ void list(SampleScratch& scratch, bool wanted, Candidate candidate) {
  const unsigned lanes = __ballot_sync(~0u, wanted);
  if (lanes == 0) return;
  const int lane = threadIdx.x % 32;
  const int leader = __ffs(lanes) - 1;
  int at = lane == leader ? atomicAdd(&scratch.count, __popc(lanes)) : 0;
  at = __shfl_sync(~0u, at, leader) + __popc(lanes & ((1u << lane) - 1));
  if (wanted && at < kCandidatesMax) scratch.candidates[at] = candidate;
}

__device__ __forceinline__ void weigh(const Row& row, const Sample& sample,
                                      SampleScratch& scratch, unsigned key_bar,
                                      Reduce<kPartThreads>& reduce) {
  const Part part(row.vocab);
  const float raw_max = logit_of_key(key_of_ranked(best_of_parts(scratch.raw_top)));
  const Cut cut = whole_row(sample, best_of_parts(scratch.top));
  const bool draws = cut.point < 0;
  const bool lists = draws && truncates(sample);
  u64 total = 0;
  u64 spread = 0;
  u64 mass = 0;
  // Whole groups of kPartThreads, so that the lanes of a warp stay together.
#pragma unroll 2
  for (int base = part.begin; base < part.end; base += kPartThreads) {
    const int id = base + threadIdx.x;
    const bool inside = id < part.end;
    const float logit = inside ? row.raw(id) : -INFINITY;
    if (raw_max != -INFINITY) {
      const float difference = __fsub_rn(logit, raw_max);
      const float gap = difference > -88.0f ? -difference : 88.0f;
      const float weight = exp_nonpositive(-gap);
      total += mass_of(weight);
      spread += mass_of(__fmul_rn(weight, gap));
    }
    if (draws) {
      const float edited = inside && row.changed() ? row.at(id) : logit;
      const unsigned key = order_key(edited);
      const u64 own = cut.untruncated(edited);
      mass += own;
      if (lists) list(scratch, own > sample.mass_bar && key >= key_bar, {key, id});
    }
  }
  total = reduce.sum(total);
  spread = reduce.sum(spread);
  mass = reduce.sum(mass);
  if (threadIdx.x == 0) {
    scratch.total[part.index] = total;
    scratch.spread[part.index] = spread;
    scratch.mass[part.index] = mass;
    if (part.index == 0) scratch.key_bar = key_bar;
  }
}

// Top-k: the k largest logits, of equals the lower ids.
template <class Tokens>
__device__ __forceinline__ void cut_top_k(const Tokens& tokens, int k, unsigned key_bar, Cut& cut,
                                          DrawScan& scan) {
  u64 possible = 0;
  tokens.each([&](unsigned key, int) { possible += key >= key_bar; });
  // Whatever has a mass and is at the bar or above it is a candidate.
  cut.top_key = key_bar;
  if (scan.sum(possible) <= k) return;
  const Boundary last = scan.boundary(k, [&](auto count) {
    tokens.each([&](unsigned key, int) {
      if (key >= key_bar) count(key, 1);
    });
  });
  cut.top_key = last.key;
  if (last.missing == last.weight) return;
  cut.top_last = id_at(last.missing, scan, [&](auto count) {
    tokens.each([&](unsigned key, int id) {
      if (key == last.key) count(id, 1);
    });
  });
}

// Top-p: the fewest likeliest tokens whose masses reach a share of the `total`; of equals the lower
// ids.
template <class Tokens>
__device__ __forceinline__ void cut_top_p(const Tokens& tokens, float top_p, u64 total,
                                          const Sample& sample, Cut& cut, DrawScan& scan) {
  const double share = __dmul_rn(static_cast<double>(top_p), __ull2double_rn(total));
  const u64 target = min(max(__double2ull_rz(ceil(share)), 1ull), total);
  // Others are not in the nucleus, or min-p drops them.
  const auto likely = [&](auto add) {
    tokens.each([&](unsigned key, int id) {
      const u64 mass = cut.mass(key, id);
      if (mass > sample.mass_bar) add(mass, id);
    });
  };
  u64 sum = 0;
  likely([&](u64 mass, int) { sum += mass; });
  // Then min-p decides alone.
  if (scan.sum(sum) < target) return;
  const Boundary last = scan.boundary(target, [&](auto add) {
    // At most 24 bits of a mass are set, so it is exact as f32, and its bits order it.
    likely([&](u64 mass, int) { add(__float_as_uint(__ull2float_rn(mass)), mass); });
  });
  const u64 mass = __float2ull_rn(__uint_as_float(last.key));
  const u64 kept = (last.missing + mass - 1) / mass;
  int last_id = kNoLimit;
  if (kept * mass < last.weight)
    last_id = id_at(kept, scan, [&](auto count) {
      likely([&](u64 other, int id) {
        if (other == mass) count(id, 1);
      });
    });
  cut.nucleus_mass = mass;
  cut.nucleus_last = last_id;
}

// Truncates and draws; leaves in `cut` what was drawn from.
template <class Tokens>
__device__ __forceinline__ int draw(const Tokens& tokens, const Sample& sample,
                                    const SampleScratch& scratch, unsigned word, Cut& cut,
                                    DrawScan& scan) {
  u64 total = sum_of_parts(scratch.mass);
  if (sample.top_k > 0) {
    cut_top_k(tokens, sample.top_k, scratch.key_bar, cut, scan);
    total = 0;
    tokens.each([&](unsigned key, int id) { total += cut.mass(key, id); });
    total = scan.sum(total);
  }
  if (sample.top_p < 1.0f) cut_top_p(tokens, sample.top_p, total, sample, cut, scan);
  cut.mass_min = sample.mass_min;
  total = 0;
  tokens.each([&](unsigned key, int id) { total += cut.mass(key, id); });
  cut.total = scan.sum(total);
  return tokens.pick(draw_target(word, cut.total), scan,
                     [&](unsigned key, int id) { return cut.mass(key, id); });
}

// Draws from a row of which nothing is cut off: first the part, then the token in it.
__device__ __forceinline__ int draw_untruncated(const Row& row, const SampleScratch& scratch,
                                                unsigned word, Cut& cut, DrawScan& scan) {
  const u64 through = warp_running_sum(scratch.mass[threadIdx.x % 32]);
  cut.total = __shfl_sync(~0u, through, 31);
  const u64 target = draw_target(word, cut.total);
  const int part = __ffs(__ballot_sync(~0u, through > target)) - 1;
  const u64 before = part == 0 ? 0 : __shfl_sync(~0u, through, part - 1);
  const int begin = part * part_ids(row.vocab);
  const int count = min(part_ids(row.vocab), row.vocab - begin);
  return scan.position(
      begin, count, [&](int id) { return cut.mass(order_key(row.at(id)), id); },
      [&](u64) { return target - before; });
}

// What src/sample/stats.rs says of the raw row.
__device__ __forceinline__ SampleResult summary(const Row& row, const SampleScratch& scratch,
                                                int id) {
  const float max = logit_of_key(key_of_ranked(best_of_parts(scratch.raw_top)));
  if (max == -INFINITY) return {id, -INFINITY, 0.0f, 1.0f};
  const u64 total = sum_of_parts(scratch.total);
  const u64 spread = sum_of_parts(scratch.spread);
  const double log_total = log(ratio(total, kMassOne));
  const double logsumexp = static_cast<double>(max) + log_total;
  const float logit = row.raw(id);
  const float logprob = logit == -INFINITY
                            ? -INFINITY
                            : static_cast<float>(static_cast<double>(logit) - logsumexp);
  return {id, logprob, static_cast<float>(log_total + ratio(spread, total)),
          static_cast<float>(ratio(kMassOne, total))};
}

}  // namespace forerun

using forerun::SampleParams;

// Size and offsets of the parameters, then of what they point to, for the test that compares them
// with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_sample_layout[] = {
    sizeof(SampleParams),
    offsetof(SampleParams, batch),
    offsetof(SampleParams, source),
    offsetof(SampleParams, scratch),
    offsetof(SampleParams, results),
    offsetof(SampleParams, cuts),
    sizeof(forerun::SampleSource),
    offsetof(forerun::SampleSource, samples),
    offsetof(forerun::SampleSource, edits),
    offsetof(forerun::SampleSource, allowed),
    offsetof(forerun::SampleSource, logits),
    offsetof(forerun::SampleSource, vocab),
    offsetof(forerun::SampleSource, reserved),
    sizeof(forerun::Sample),
    offsetof(forerun::Sample, seed),
    offsetof(forerun::Sample, mass_min),
    offsetof(forerun::Sample, mass_bar),
    offsetof(forerun::Sample, logits_row),
    offsetof(forerun::Sample, branch),
    offsetof(forerun::Sample, position),
    offsetof(forerun::Sample, role),
    offsetof(forerun::Sample, inverse_temperature),
    offsetof(forerun::Sample, top_k),
    offsetof(forerun::Sample, top_p),
    offsetof(forerun::Sample, repetition),
    offsetof(forerun::Sample, frequency),
    offsetof(forerun::Sample, presence),
    offsetof(forerun::Sample, first_edit),
    offsetof(forerun::Sample, edits),
    offsetof(forerun::Sample, allowed),
    offsetof(forerun::Sample, ids),
    sizeof(forerun::SampleEdit),
    offsetof(forerun::SampleEdit, id),
    offsetof(forerun::SampleEdit, bias),
    offsetof(forerun::SampleEdit, seen),
    offsetof(forerun::SampleEdit, count),
    sizeof(forerun::Cut),
    sizeof(forerun::SampleScratch),
    sizeof(forerun::SampleResult),
};

extern "C" __global__ void __launch_bounds__(forerun::kPartThreads, 4)
    forerun_sample_top(const __grid_constant__ SampleParams p) {
  using namespace forerun;
  __shared__ Reduce<kPartThreads> reduce;
  __shared__ unsigned filter[kFilterWords];
  const int index = blockIdx.y;
  const bool idle = index >= p.batch.counts[kSamples];  // staged
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const Row row(p.source, p.source.samples[index], filter);
  if (row.edit_count > 0) row.fill_filter<kPartThreads>(filter);
  find_top(row, p.scratch[index], reduce);
}

extern "C" __global__ void __launch_bounds__(forerun::kPartThreads, 4)
    forerun_sample_weigh(const __grid_constant__ SampleParams p) {
  using namespace forerun;
  __shared__ Reduce<kPartThreads> reduce;
  __shared__ unsigned filter[kFilterWords];
  __shared__ unsigned keys[kParts * kPartWarps];
  __shared__ unsigned bar;
  const int index = blockIdx.y;
  const bool idle = index >= p.batch.counts[kSamples];  // staged
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const Sample sample = p.source.samples[index];
  const Row row(p.source, sample, filter);
  if (row.edit_count > 0) row.fill_filter<kPartThreads>(filter);
  SampleScratch& scratch = p.scratch[index];
  weigh(row, sample, scratch, top_k_bar(scratch, sample.top_k, keys, bar), reduce);
}

extern "C" __global__ void __launch_bounds__(forerun::kDrawThreads, 1)
    forerun_sample_draw(const __grid_constant__ SampleParams p) {
  using namespace forerun;
  __shared__ DrawScan scan;
  __shared__ unsigned filter[kFilterWords];
  __shared__ Candidate candidates[kCandidatesMax];
  const int index = blockIdx.x;
  const bool idle = index >= p.batch.counts[kSamples];  // staged
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const Sample sample = p.source.samples[index];
  const SampleScratch& scratch = p.scratch[index];
  const Row row(p.source, sample, filter);
  if (row.edit_count > 0) row.fill_filter<kDrawThreads>(filter);
  Cut cut = whole_row(sample, best_of_parts(scratch.top));
  const unsigned word =
      philox_word(sample.seed, sample.position, sample.branch, sample.role, kDraw);
  int id = cut.point;
  if (cut.point < 0 && !truncates(sample)) {
    id = draw_untruncated(row, scratch, word, cut, scan);
  } else if (cut.point < 0 && is_listed(sample, scratch)) {
    for (int i = threadIdx.x; i < scratch.count; i += kDrawThreads)
      candidates[i] = scratch.candidates[i];
    __syncthreads();
    id = draw(Listed<DrawScan>{candidates, scratch.count}, sample, scratch, word, cut, scan);
  } else if (cut.point < 0) {
    id = draw(Unlisted<DrawScan>{row}, sample, scratch, word, cut, scan);
  }
  const SampleResult result = summary(row, scratch, id);
  if (threadIdx.x == 0) {
    p.results[index] = result;
    if (p.cuts != nullptr) p.cuts[index] = cut;
  }
}

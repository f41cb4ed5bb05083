// Draws one token a row by the rules of src/sample: the same token, to the bit, from the same
// logits.
//
//   edit by bias and penalties, mask, divide by the temperature, keep top-k, then top-p, then
//   min-p, draw by one uniform number in order of id; log-probability, entropy and top-1
//   probability are of the raw row at temperature 1.
//
// logits [rows, V] f32. Grid: one CTA of 1024 threads a sample; beyond counts[kSamples], nothing.
// Weights are integers (sample.cuh), so a cut-off is a boundary in a histogram of keys (scan.cuh)
// and no order of addition matters. Bytes: 4 V a pass over the row, from L2 after the first: two
// passes for a greedy row, one more to draw, three for top-k, four for top-p; a row of 152,064
// ids is 0.6 MB.
#include <cstddef>

#include "common/batch.cuh"
#include "common/scan.cuh"

namespace forerun {

typedef Scan<1024> RowScan;

struct SampleParams {
  Batch batch;
  SampleSource source;     // its samples are the batch's
  SampleResult* results;   // one a sample
  Cut* cuts;               // one a sample, for accept.cu; null: not wanted
};

// The largest element of a row and the lowest id that has it.
struct Top {
  float logit;
  int id;
  unsigned own_key;  // the largest key among this thread's elements; 0: it has none

  template <class Logit>
  __device__ __forceinline__ Top(int vocab, RowScan& scan, Logit logit_of) {
    u64 best = 0;
    for (int i = threadIdx.x; i < vocab; i += RowScan::kThreads)
      best = max(best, static_cast<u64>(order_key(logit_of(i))) << 32 | (~0u - i));
    own_key = static_cast<unsigned>(best >> 32);
    best = scan.max(best);
    logit = logit_of_key(static_cast<unsigned>(best >> 32));
    id = static_cast<int>(~0u - static_cast<unsigned>(best));
  }
};

// The softmax of the raw row, summarised as src/sample/stats.rs does.
struct Stats {
  double logsumexp;
  float entropy_nats;
  float top1_prob;

  __device__ __forceinline__ Stats(const Row& row, float max, RowScan& scan) {
    if (max == -INFINITY) {
      logsumexp = -INFINITY;
      entropy_nats = 0;
      top1_prob = 1;
      return;
    }
    u64 total = 0;
    u64 spread = 0;
#pragma unroll 4
    for (int id = threadIdx.x; id < row.vocab; id += RowScan::kThreads) {
      const float difference = __fsub_rn(row.raw(id), max);
      const float gap = difference > -88.0f ? -difference : 88.0f;
      const float weight = exp_nonpositive(-gap);
      total += mass_of(weight);
      spread += mass_of(__fmul_rn(weight, gap));
    }
    total = scan.sum(total);
    spread = scan.sum(spread);
    const double log_total = log(ratio(total, kMassOne));
    logsumexp = static_cast<double>(max) + log_total;
    entropy_nats = static_cast<float>(log_total + ratio(spread, total));
    top1_prob = static_cast<float>(ratio(kMassOne, total));
  }

  __device__ __forceinline__ float logprob(float logit) const {
    if (logit == -INFINITY) return -INFINITY;
    return static_cast<float>(static_cast<double>(logit) - logsumexp);
  }
};

// Top-k: the k largest logits, of equals the lower ids.
__device__ __forceinline__ void cut_top_k(const Row& row, int k, const Top& top, Cut& cut,
                                          RowScan& scan) {
  unsigned bar = 0;
  if (k <= min(row.vocab, RowScan::kThreads)) {
    // The k-th largest of the threads' own maxima bounds the k-th largest of all from below, and
    // leaves few candidates to count.
    bar = scan.boundary(k, [&](auto count) {
            if (threadIdx.x < row.vocab) count(top.own_key, 1);
          }).key;
  }
  const Boundary last = scan.boundary(k, [&](auto count) {
    for (int id = threadIdx.x; id < row.vocab; id += RowScan::kThreads) {
      const unsigned key = order_key(row.at(id));
      if (key >= bar) count(key, 1);
    }
  });
  cut.top_key = last.key;
  if (last.missing < last.weight)
    cut.top_last = scan.position(
        row.vocab, [&](int id) -> u64 { return order_key(row.at(id)) == last.key; },
        [&](u64) { return last.missing - 1; });
}

// Top-p: the fewest likeliest tokens whose masses reach a share of the sum; of equals the lower
// ids.
__device__ __forceinline__ void cut_top_p(const Row& row, float top_p, Cut& cut,
                                          RowScan& scan) {
  u64 total = 0;
#pragma unroll 4
  for (int id = threadIdx.x; id < row.vocab; id += RowScan::kThreads) total += row.mass(cut, id);
  total = scan.sum(total);
  const double share = __dmul_rn(static_cast<double>(top_p), __ull2double_rn(total));
  const u64 target = min(max(__double2ull_rz(ceil(share)), 1ull), total);
  // Tokens at or below it sum to at most what the nucleus may leave out.
  const u64 bar = (total - target) / row.vocab;
  const Boundary last = scan.boundary(target, [&](auto add) {
    for (int id = threadIdx.x; id < row.vocab; id += RowScan::kThreads) {
      const u64 mass = row.mass(cut, id);
      // At most 24 bits of a mass are set, so it is exact as f32, and its bits order it.
      if (mass > bar) add(__float_as_uint(__ull2float_rn(mass)), mass);
    }
  });
  const u64 mass = __float2ull_rn(__uint_as_float(last.key));
  const u64 kept = (last.missing + mass - 1) / mass;
  int last_id = kNoLimit;
  if (kept * mass < last.weight)
    last_id = scan.position(
        row.vocab, [&](int id) -> u64 { return row.mass(cut, id) == mass; },
        [&](u64) { return kept - 1; });
  cut.nucleus_mass = mass;
  cut.nucleus_last = last_id;
}

// What the parameters leave of a row. `top` is of the edited row.
__device__ __forceinline__ Cut cut_row(const Row& row, const Sample& sample, const Top& top,
                                       RowScan& scan) {
  Cut cut = {};
  cut.mass_min = 1;
  cut.max = top.logit;
  cut.inverse_temperature = sample.inverse_temperature;
  cut.top_last = kNoLimit;
  cut.nucleus_last = kNoLimit;
  cut.point = -1;
  if (sample.inverse_temperature == 0.0f || top.logit == -INFINITY) {
    cut.point = top.id;
    cut.total = kMassOne;
    return cut;
  }
  if (sample.top_k > 0 && sample.top_k < row.vocab)
    cut_top_k(row, sample.top_k, top, cut, scan);
  if (sample.top_p < 1.0f) cut_top_p(row, sample.top_p, cut, scan);
  cut.mass_min = sample.mass_min;
  return cut;
}

// The token of a row, and into `cut` the sum of what it was drawn from.
__device__ __forceinline__ int draw(const Row& row, const Sample& sample, Cut& cut,
                                    RowScan& scan) {
  if (cut.point >= 0) return cut.point;
  const unsigned word =
      philox_word(sample.seed, sample.position, sample.branch, sample.role, kDraw);
  return scan.position(
      row.vocab, [&](int id) { return row.mass(cut, id); },
      [&](u64 total) {
        cut.total = total;
        return draw_target(word, total);
      });
}

}  // namespace forerun

using forerun::SampleParams;

// Size and offsets of the parameters, then of what they point to, for the test that compares them
// with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_sample_layout[] = {
    sizeof(SampleParams),
    offsetof(SampleParams, batch),
    offsetof(SampleParams, source),
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
    offsetof(forerun::Sample, reserved),
    sizeof(forerun::SampleEdit),
    offsetof(forerun::SampleEdit, id),
    offsetof(forerun::SampleEdit, bias),
    offsetof(forerun::SampleEdit, seen),
    offsetof(forerun::SampleEdit, count),
    sizeof(forerun::Cut),
    sizeof(forerun::SampleResult),
};

extern "C" __global__ void __launch_bounds__(forerun::RowScan::kThreads)
    forerun_sample(const __grid_constant__ SampleParams p) {
  using namespace forerun;
  __shared__ RowScan scan;
  __shared__ unsigned filter[kFilterWords];
  const int index = blockIdx.x;
  if (index >= p.batch.counts[kSamples]) return;
  const Sample sample = p.source.samples[index];
  const Row row(p.source, sample, filter);
  if (row.edit_count > 0) row.fill_filter<RowScan::kThreads>(filter);

  const Top raw(row.vocab, scan, [&](int id) { return row.raw(id); });
  const Stats stats(row, raw.logit, scan);
  Top top = raw;
  if (row.changed()) top = Top(row.vocab, scan, [&](int id) { return row.at(id); });
  Cut cut = cut_row(row, sample, top, scan);
  const int id = draw(row, sample, cut, scan);
  if (threadIdx.x == 0) {
    p.results[index] = {id, stats.logprob(row.raw(id)), stats.entropy_nats, stats.top1_prob};
    if (p.cuts != nullptr) p.cuts[index] = cut;
  }
}

// The rules of src/sample on the device, to the last bit: masses, edits, and what truncation keeps.
//
// A token's weight exp(x), x <= 0, is an integer of 2^-40 units, its mass (src/sample/
// distribution.rs). Sums of integers do not depend on their order, so a CTA that adds in parallel
// draws the token that the CPU's loops draw. Mirrored by src/device/cuda/ops/sample.rs.
#pragma once

#include "common/philox.cuh"

namespace forerun {

typedef unsigned long long u64;

// The mass of the likeliest token.
constexpr u64 kMassOne = 1ull << 40;
constexpr int kNoLimit = 0x7fffffff;

// How one row of logits becomes one token; 80 bytes.
struct Sample {
  u64 seed;
  u64 mass_min;             // min-p: masses below stay out; at least 1
  u64 mass_bar;             // what truncation leaves has more mass than this; 0 with top-k
  int logits_row;           // row of the logits buffer
  unsigned branch;          // the rest of the random number's name
  unsigned position;
  unsigned role;
  float inverse_temperature;  // 0: the likeliest token
  int top_k;                // 0: all
  float top_p;              // 1: all
  float repetition;         // penalties, applied to the edits that ask for them
  float frequency;
  float presence;
  int first_edit;           // in the edits of the pass, ascending by id
  int edits;
  int allowed;              // first word of the row's bitmask in `allowed`; -1: every id
  int ids;                  // the row's first ids that are looked at: V, or fewer
};

// A token whose logit changes before anything else; 16 bytes.
struct SampleEdit {
  int id;
  float bias;
  int seen;                 // 1: the repetition penalty applies
  int count;                // occurrences in the output: frequency and presence penalty
};

// The buffers that samples point into.
struct SampleSource {
  const Sample* samples;
  const SampleEdit* edits;
  const unsigned* allowed;  // bit id % 32 of word id / 32
  const float* logits;      // [rows, vocab]
  int vocab;
  int reserved;
};

// A row is read in kParts stretches by as many CTAs.
constexpr int kParts = 32;
constexpr int kPartThreads = 256;
constexpr int kPartWarps = kPartThreads / 32;
// Tokens that may survive truncation are listed, if there are no more than this.
constexpr int kCandidatesMax = 3072;

struct Candidate {
  unsigned key;             // order_key of its logit
  int id;
};

// What the parts of one row leave for the CTA that draws; 26,896 bytes.
struct SampleScratch {
  u64 raw_top[kParts];      // `ranked` of the part's best as the model said it
  u64 top[kParts];          // and after edits
  u64 total[kParts];        // masses of the raw row at temperature 1
  u64 spread[kParts];       // masses of weight * (max - logit) of the same
  u64 mass[kParts];         // masses under the temperature
  unsigned warp_keys[kParts * kPartWarps];  // largest key of each warp; 0: it has none
  unsigned key_bar;         // top-k: its tokens have this key or more
  int count;                // of candidates that wanted to be in the list
  int reserved[2];
  Candidate candidates[kCandidatesMax];     // in no order
};

// Whether anything but the temperature decides what may be drawn.
__device__ __forceinline__ bool truncates(const Sample& sample) {
  return sample.top_k > 0 || sample.top_p < 1.0f || sample.mass_min > 1;
}

// Whether the row's candidates are all on its list. Not for points.
__device__ __forceinline__ bool is_listed(const Sample& sample, const SampleScratch& scratch) {
  return truncates(sample) && scratch.count <= kCandidatesMax;
}

// Ids of one part: whole groups of kPartThreads.
__device__ __forceinline__ int part_ids(int vocab) {
  constexpr int kRound = kParts * kPartThreads;
  return (vocab + kRound - 1) / kRound * kPartThreads;
}

// exp(x) for x <= 0; zero below -87. Additions and multiplications of src/sample/distribution.rs
// in its order, none fused.
__device__ __forceinline__ float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;
  constexpr float kLog2E = 1.44269504088896340736f;
  constexpr float kLn2High = 355.0f / 512.0f;
  constexpr float kLn2Low = -2.1219444e-4f;
  const bool inside = x > -87.0f;
  const float clamped = inside ? x : -87.0f;
  const float shifted = __fadd_rn(__fmul_rn(clamped, kLog2E), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, kLn2High)), __fmul_rn(n, kLn2Low));
  float series = 1.0f / 5040.0f;
  series = __fadd_rn(__fmul_rn(series, r), 1.0f / 720.0f);
  series = __fadd_rn(__fmul_rn(series, r), 1.0f / 120.0f);
  series = __fadd_rn(__fmul_rn(series, r), 1.0f / 24.0f);
  series = __fadd_rn(__fmul_rn(series, r), 1.0f / 6.0f);
  series = __fadd_rn(__fmul_rn(series, r), 0.5f);
  series = __fadd_rn(__fmul_rn(series, r), 1.0f);
  series = __fadd_rn(__fmul_rn(series, r), 1.0f);
  const float power = __uint_as_float((__float_as_uint(shifted) + 127) << 23);
  return inside ? __fmul_rn(series, power) : 0.0f;
}

// round(weight * 2^40), ties to even; exact in f32 but for the rounding, as 2^40 is a power of two.
__device__ __forceinline__ u64 mass_of(float weight) {
  return __float2ull_rn(__fmul_rn(weight, static_cast<float>(kMassOne)));
}

// NaN as minus infinity, plus infinity as the largest finite number.
__device__ __forceinline__ float cleaned(float logit) {
  if (!(logit >= -INFINITY)) return -INFINITY;
  return fminf(logit, 3.402823466e+38f);
}

// Orders cleaned logits as unsigned numbers; both zeros are equal.
__device__ __forceinline__ unsigned order_key(float logit) {
  const unsigned bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of_key(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// What is left of a row; 56 bytes.
struct Cut {
  u64 total;                // sum of the masses that stay
  u64 mass_min;             // least mass that stays, at least 1
  u64 nucleus_mass;         // top-p: least mass of the nucleus; 0: all
  float max;                // the largest logit
  float inverse_temperature;
  unsigned top_key;         // top-k: least key that stays; 0: all
  int top_last;             // of the ids with that key, the last that stays
  int nucleus_last;         // of the ids with nucleus_mass, the last that stays
  int point;                // all mass is on this id; -1: see above
  int reserved[2];

  // The mass of a logit under the temperature.
  __device__ __forceinline__ u64 untruncated(float logit) const {
    return mass_of(exp_nonpositive(__fmul_rn(__fsub_rn(logit, max), inverse_temperature)));
  }

  // The mass of token `id` whose logit has that key; 0 if it is out. Not for points.
  __device__ __forceinline__ u64 mass(unsigned key, int id) const {
    if (key < top_key || (key == top_key && id > top_last)) return 0;
    const u64 m = untruncated(logit_of_key(key));
    if (m < nucleus_mass || (m == nucleus_mass && id > nucleus_last)) return 0;
    return m < mass_min ? 0 : m;
  }
};

// Orders tokens by logit, of equals the lower id first.
__device__ __forceinline__ u64 ranked(unsigned key, int id) {
  return static_cast<u64>(key) << 32 | ~static_cast<unsigned>(id);
}

__device__ __forceinline__ unsigned key_of_ranked(u64 rank) {
  return static_cast<unsigned>(rank >> 32);
}

__device__ __forceinline__ int id_of_ranked(u64 rank) {
  return static_cast<int>(~static_cast<unsigned>(rank));
}

// A filter in shared memory that says which ids are surely not edited.
constexpr int kFilterWords = 1024;

// One row of logits as a sampler sees it.
struct Row {
  const float* logits;
  int vocab;                // ids that are looked at
  const unsigned* allowed;  // null: every id
  const SampleEdit* edits;
  int edit_count;
  float repetition;
  float frequency;
  float presence;
  const unsigned* filter;

  __device__ __forceinline__ Row(const SampleSource& source, const Sample& sample,
                                 const unsigned* filter)
      : logits(source.logits + static_cast<long long>(sample.logits_row) * source.vocab),
        vocab(sample.ids),
        allowed(sample.allowed < 0 ? nullptr : source.allowed + sample.allowed),
        edits(source.edits + sample.first_edit),
        edit_count(sample.edits),
        repetition(sample.repetition),
        frequency(sample.frequency),
        presence(sample.presence),
        filter(filter) {}

  // Marks the edited ids in `bits`, the filter of this row, which every thread may then read.
  template <int kThreads>
  __device__ __forceinline__ void fill_filter(unsigned* bits) const {
    for (int word = threadIdx.x; word < kFilterWords; word += kThreads) bits[word] = 0;
    __syncthreads();
    for (int edit = threadIdx.x; edit < edit_count; edit += kThreads) {
      const int slot = edits[edit].id % (32 * kFilterWords);
      atomicOr(&bits[slot / 32], 1u << slot % 32);
    }
    __syncthreads();
  }

  // Whether `at` can differ from `raw`.
  __device__ __forceinline__ bool changed() const { return allowed != nullptr || edit_count > 0; }

  // What the model said, cleaned.
  __device__ __forceinline__ float raw(int id) const { return cleaned(logits[id]); }

  // What is sampled from: bias, then penalties, then the bitmask.
  __device__ __forceinline__ float at(int id) const {
    if (allowed != nullptr && !(allowed[id / 32] >> id % 32 & 1)) return -INFINITY;
    float logit = logits[id];
    const int slot = id % (32 * kFilterWords);
    if (edit_count > 0 && filter[slot / 32] >> slot % 32 & 1) {
      int low = 0;
      int high = edit_count;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (edits[middle].id < id) low = middle + 1;
        else high = middle;
      }
      if (low < edit_count && edits[low].id == id) logit = edited(logit, edits[low]);
    }
    return cleaned(logit);
  }

  // The order of src/sample/penalty.rs.
  __device__ __forceinline__ float edited(float logit, const SampleEdit& edit) const {
    if (edit.bias != 0.0f) logit = __fadd_rn(logit, edit.bias);
    if (edit.seen)
      logit = logit < 0.0f ? __fmul_rn(logit, repetition) : __fdiv_rn(logit, repetition);
    if (edit.count > 0) {
      logit = __fsub_rn(logit, __fmul_rn(frequency, __int2float_rn(edit.count)));
      logit = __fsub_rn(logit, presence);
    }
    return logit;
  }

  // The mass of token `id` in what `cut` leaves of this row; 0 if it is out.
  __device__ __forceinline__ u64 mass(const Cut& cut, int id) const {
    if (cut.point >= 0) return id == cut.point ? kMassOne : 0;
    return id < vocab ? cut.mass(order_key(at(id)), id) : 0;
  }
};

// floor(floor(u 2^24) total / 2^24) for the uniform number u of a random word: the running sum a
// drawn token must exceed.
__device__ __forceinline__ u64 draw_target(unsigned word, u64 total) {
  const u64 n = word >> 8;
  return __umul64hi(n, total) << 40 | n * total >> 24;
}

// mass / total, correctly rounded.
__device__ __forceinline__ double ratio(u64 mass, u64 total) {
  return __ddiv_rn(__ull2double_rn(mass), __ull2double_rn(total));
}

}  // namespace forerun

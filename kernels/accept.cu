// How much of a drafted window survives: chain acceptance by src/sample/accept.rs, the same tokens
// to the bit.
//
//   keep token i while u_i q_i(token) < p_i(token); replace the first that fails from
//   max(p - q, 0); after a window kept whole, the base model's own draw follows.
//
// p and q are what sample.cu left of the base's and the draft's rows (Cut); the base's rows have
// been drawn from by the same launch of sample.cu, so the token after a whole window is already
// there. A greedy row is a point: its token is kept if it is the drafted one, and q is not read.
// Grid: one CTA of 512 threads a chain; beyond `count`, nothing. Bytes: a window kept whole reads
// two logits a token; a rejection reads p's list of candidates, or else both rows twice, 16 V.
#include <cstddef>

#include "common/batch.cuh"
#include "common/dependent.cuh"
#include "common/tokens.cuh"

namespace forerun {

typedef Scan<512> ChainScan;

// One drafted window of K tokens. Both models number tokens alike.
struct Chain {
  int drafted;      // K
  int first_token;  // of the window in AcceptParams::tokens
  int first_base;   // of K + 1 base samples, cuts and results
  int first_draft;  // of K draft samples and cuts; not read where the base is greedy
};

struct AcceptResult {
  int prefix;  // drafted tokens that stay
  int next;    // the base model's token after them
};

struct AcceptParams {
  const int* count;                   // chains
  const Chain* chains;
  const int* tokens;                  // drafted ids
  SampleSource base;
  SampleSource draft;
  const Cut* base_cuts;
  const Cut* draft_cuts;
  const SampleScratch* base_scratch;  // as sample.cu left it
  const SampleResult* base_results;
  AcceptResult* results;
};

constexpr double kResidualOne = 4503599627370496.0;   // 2^52
constexpr u64 kResidualMin = 1ull << 22;              // less is rounding: p = q

// One row of a model and what sampling left of it. The two sides of a token lie in shared memory:
// they are the same for every thread, and registers are few.
struct Side {
  Row row;
  Cut cut;

  __device__ __forceinline__ Side(const SampleSource& source, const Cut* cuts, int index,
                                  const unsigned* filter)
      : row(source, source.samples[index], filter), cut(cuts[index]) {}

  __device__ __forceinline__ double probability(int id) const {
    return ratio(row.mass(cut, id), cut.total);
  }
};

// The token that replaces a rejected one. `tokens` hold all that p can give.
template <class Tokens>
__device__ __forceinline__ int replace(const Tokens& tokens, const Side& p, const Side& q,
                                       unsigned word, ChainScan& scan) {
  const auto residual = [&](unsigned key, int id) -> u64 {
    const u64 mass = p.cut.mass(key, id);
    if (mass == 0) return 0;
    const double more = __dsub_rn(ratio(mass, p.cut.total), q.probability(id));
    return more > 0 ? __double2ull_rz(__dmul_rn(more, kResidualOne)) : 0;
  };
  u64 total = 0;
  tokens.each([&](unsigned key, int id) { total += residual(key, id); });
  total = scan.sum(total);
  if (total >= kResidualMin) return tokens.pick(draw_target(word, total), scan, residual);
  return tokens.pick(draw_target(word, p.cut.total), scan,
                     [&](unsigned key, int id) { return p.cut.mass(key, id); });
}

}  // namespace forerun

using forerun::AcceptParams;

// Size and offsets of the parameters, then of what they point to, for the test that compares them
// with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_accept_layout[] = {
    sizeof(AcceptParams),
    offsetof(AcceptParams, count),
    offsetof(AcceptParams, chains),
    offsetof(AcceptParams, tokens),
    offsetof(AcceptParams, base),
    offsetof(AcceptParams, draft),
    offsetof(AcceptParams, base_cuts),
    offsetof(AcceptParams, draft_cuts),
    offsetof(AcceptParams, base_scratch),
    offsetof(AcceptParams, base_results),
    offsetof(AcceptParams, results),
    sizeof(forerun::Chain),
    offsetof(forerun::Chain, drafted),
    offsetof(forerun::Chain, first_token),
    offsetof(forerun::Chain, first_base),
    offsetof(forerun::Chain, first_draft),
    sizeof(forerun::AcceptResult),
    offsetof(forerun::AcceptResult, prefix),
    offsetof(forerun::AcceptResult, next),
};

extern "C" __global__ void __launch_bounds__(forerun::ChainScan::kThreads)
    forerun_accept(const __grid_constant__ AcceptParams p) {
  using namespace forerun;
  __shared__ ChainScan scan;
  __shared__ unsigned base_filter[kFilterWords];
  __shared__ unsigned draft_filter[kFilterWords];
  __shared__ __align__(8) char sides[2][sizeof(Side)];
  Side& base = *reinterpret_cast<Side*>(sides[0]);
  Side& draft = *reinterpret_cast<Side*>(sides[1]);
  const bool idle = blockIdx.x >= *p.count;  // staged
  wait_for_predecessors();
  let_dependents_launch();
  if (idle) return;
  const Chain chain = p.chains[blockIdx.x];
  int next = p.base_results[chain.first_base + chain.drafted].id;
  int kept = 0;
#pragma unroll 1
  for (; kept < chain.drafted; ++kept) {
    const int token = p.tokens[chain.first_token + kept];
    const int index = chain.first_base + kept;
    const int point = p.base_cuts[index].point;
    if (point >= 0) {
      if (token == point) continue;
      next = point;
      break;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      base = Side(p.base, p.base_cuts, index, base_filter);
      draft = Side(p.draft, p.draft_cuts, chain.first_draft + kept, draft_filter);
    }
    __syncthreads();
    if (base.row.edit_count > 0) base.row.fill_filter<ChainScan::kThreads>(base_filter);
    if (draft.row.edit_count > 0) draft.row.fill_filter<ChainScan::kThreads>(draft_filter);
    const Sample& sample = p.base.samples[index];
    const auto word = [&](Purpose purpose) {
      return philox_word(sample.seed, sample.position, sample.branch, sample.role, purpose);
    };
    const double u = static_cast<double>(word(kAccept) >> 8) * (1.0 / (1 << 24));
    const double q = draft.probability(token);
    if (q > 0 && __dmul_rn(u, q) < base.probability(token)) continue;
    const SampleScratch& scratch = p.base_scratch[index];
    const Listed<ChainScan> listed = {scratch.candidates, scratch.count};
    next = is_listed(sample, scratch)
               ? replace(listed, base, draft, word(kResidual), scan)
               : replace(Unlisted<ChainScan>{base.row}, base, draft, word(kResidual), scan);
    break;
  }
  if (threadIdx.x == 0) p.results[blockIdx.x] = {kept, next};
}

// Puts tokens that the pass before drew into rows of this one, so that passes follow one another
// without the host.
//
// fed: rows and where their tokens come from. Grid: 256 threads a CTA, one a fed row; beyond
// counts[kFed], nothing. Bytes: 16 a row.
#include <cstddef>

#include "common/batch.cuh"

namespace forerun {

constexpr int kThreads = 256;

// A row whose token the pass before drew.
struct Fed {
  int row;           // row of this batch
  int drawn;         // index of the head of the pass before, or ~index of its sample
};

struct FeedParams {
  Batch batch;                  // its tokens are written
  const Fed* fed;
  const HeadResult* heads;      // of the pass before
  const SampleResult* samples;  // of the pass before
  int vocab;
  int reserved;
};

}  // namespace forerun

using forerun::FeedParams;

// Size and offsets of the parameters, then of what they point to, for the test that compares them
// with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_feed_layout[] = {
    sizeof(FeedParams),
    offsetof(FeedParams, batch),
    offsetof(FeedParams, fed),
    offsetof(FeedParams, heads),
    offsetof(FeedParams, samples),
    offsetof(FeedParams, vocab),
    offsetof(FeedParams, reserved),
    sizeof(forerun::Fed),
    offsetof(forerun::Fed, row),
    offsetof(forerun::Fed, drawn),
};

extern "C" __global__ void __launch_bounds__(forerun::kThreads)
    forerun_feed(const __grid_constant__ FeedParams p) {
  const int i = blockIdx.x * forerun::kThreads + threadIdx.x;
  if (i >= p.batch.counts[forerun::kFed]) return;
  const forerun::Fed fed = p.fed[i];
  const int id = fed.drawn >= 0 ? p.heads[fed.drawn].id : p.samples[~fed.drawn].id;
  // A row that is not finite has no best token; the host will see it, but the embedding must not
  // be read out of bounds before.
  const_cast<int*>(p.batch.tokens)[fed.row] = min(max(id, 0), p.vocab - 1);
}

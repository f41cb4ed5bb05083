// Leaves tokens that the pass before drew for rows of this one, so that passes follow one another
// without the host.
//
// fed: rows and where their tokens come from; tokens [T]: where embed.cu looks for a row that has
// none in the batch. They do not go into the batch, which kernels that begin early read. Grid: 256
// threads a CTA, one a fed row; beyond counts[kFed], nothing. Bytes: 16 a row.
#include <cstddef>

#include "common/batch.cuh"
#include "common/dependent.cuh"

namespace forerun {

constexpr int kThreads = 256;

// A row whose token the pass before drew.
struct Fed {
  int row;           // row of this batch
  int drawn;         // index of the head of the pass before, or ~index of its sample
};

struct FeedParams {
  Batch batch;
  const Fed* fed;
  int* tokens;
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
    offsetof(FeedParams, tokens),
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
  const bool idle = i >= p.batch.counts[forerun::kFed];  // staged
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  if (idle) return;
  const forerun::Fed fed = p.fed[i];
  const int id = fed.drawn >= 0 ? p.heads[fed.drawn].id : p.samples[~fed.drawn].id;
  // A row that is not finite has no best token; the host will see it, but the embedding must not
  // be read out of bounds before.
  p.tokens[fed.row] = min(max(id, 0), p.vocab - 1);
}

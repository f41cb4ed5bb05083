// What every kernel may read about the pass and where results go.
//
// One blob a pass, filled by src/device/cuda/staging.rs and uploaded in one copy to a fixed place,
// so that the pointers below never change and a CUDA graph can be replayed for the next pass of the
// same shape. Whatever varies is a number in memory: grids may be larger than the work, and a CTA
// beyond `counts` returns at once. No kernel writes the blob, so all may read it early
// (dependent.cuh). Mirrored by src/device/cuda/layout.rs; a test compares both.
#pragma once

namespace forerun {

// Consecutive rows that share their page tables.
struct Group {
  int row_begin;     // first row of the batch
  int rows;          // rows of the group
  int prefix_pages;  // first entry of the prefix table in Batch::pages
  int prefix_len;    // keys every row sees
  int own_pages;     // first entry of the own table in Batch::pages
  int own_len;       // own keys before this pass; row i writes own index own_len + i
  int mask;          // first entry in Batch::masks, or -1: causal
  int reserved;      // 0
};

// One tile of attention: some rows of a group against one split of the keys.
struct AttentionWork {
  int group;         // index in Batch::groups
  int first_row;     // of the tile, counted in the group
  int rows;          // of the tile
  int first_key;     // of the split, a multiple of the split length
  int keys;          // of the split that the tile's last row sees, at most the split length
  int split;         // first_key / split length
  int reserved[2];   // 0
};

// A head over the whole vocabulary.
struct VocabHead {
  int row;           // row of the batch
  int kind;          // HeadKind
  int argument;      // LogProb: the id. Full: the row of the logits buffer
  int ids;           // V, or the first so many that it looks at: whole CTAs of head.cu
  int result;        // index in Results::heads
};

enum HeadKind : int { kArgmax = 0, kLogProb = 1, kFull = 2 };

// A head over a few labels, at most 32.
struct LabelHead {
  int row;           // row of the batch
  int first_label;   // in Batch::labels, and of the first probability in Results::probabilities
  int labels;        // how many
  int result;        // index in Results::heads, for `non_finite`
};

// Indices of Batch::counts.
enum Count : int {
  kRows = 0,
  kAttentionWork = 1,
  kVocabHeads = 2,
  kLabelHeads = 3,
  kSamples = 4,
  kFed = 5,
  kCounts = 8,
};

struct Sample;  // sample.cuh

struct Batch {
  const int* counts;             // [kCounts]
  const int* tokens;             // [T] rows of the embedding table; -1: see feed.cu
  const int* positions;          // [T] rotary positions
  const int* slots;              // [T] page * P + slot in the page: where the row's K and V go
  const Group* groups;
  const int* pages;              // page tables, one after another
  const unsigned long long* masks;
  const AttentionWork* work;
  const int* row_partials;       // [T] first partial of the row: see attention.cuh; -1: one split
  const VocabHead* vocab_heads;
  const LabelHead* label_heads;
  const int* labels;
  const Sample* samples;
};

// What one head left. 16 bytes.
struct HeadResult {
  float value;       // Argmax: the logit. LogProb: nats. Labels, Full: 0
  int id;            // Argmax: the id
  int non_finite;    // 1 when any logit of the row is NaN or infinite
  int reserved;
};

// What one draw left. 16 bytes; crate::sample::Sampled.
struct SampleResult {
  int id;
  float logprob;
  float entropy_nats;
  float top1_prob;
};

// Device memory that one copy brings to the host.
struct Results {
  HeadResult* heads;
  float* probabilities;          // one a label, in the order of Batch::labels
  SampleResult* samples;
};

}  // namespace forerun

// Weight matrices in device memory: the packed layout and how a warp turns it into A fragments.
//
// A matrix [N, K] is cut into panels of 16 rows, a panel into units of 128 columns, a unit into
// steps of 32 columns: one step is the A operand of two mma.m16n8k16. Rows beyond N, and columns
// beyond K up to a multiple of 32, are zeros (src/device/cuda/pack.rs writes all this).
//
// Which column a fragment's slot means is free as long as A and B agree. In a step, lane 4 g + t
// holds, for each of its rows g and g + 8, the eight columns
//     4t, 4t+1, 4t+2, 4t+3  (first mma: slots 2t, 2t+1, 2t+8, 2t+9) and
//     16+4t .. 16+4t+3      (second mma),
// so the first mma covers columns 0..16 and the second 16..32: a group of 16 or 32 quants with a
// common scale is a whole number of mmas. Quants enter the mma as exact integers in bf16; a group's
// partial sum is multiplied by its scale in f32.
//
// Bytes, in order of addresses; `lane[16]` is 16 bytes a lane, `pair` the 8 bytes of row g then the
// 8 bytes of row g + 8:
//   bf16: a step is 1024 bytes: lane[16] of row g (8 bf16), then lane[16] of row g + 8.
//   Q8_0: a unit is 2176 bytes: 8 pairs of four f16 scales (one a step), then four steps of
//         lane[pair of 8 signed bytes].
//   Q4_K: two units are 2304 bytes: 16 rows of {d, dmin: f16; scales: 12 bytes}, then for each
//         of four pairs of steps lane[pair of two words], one a step, each 8 nibbles.
//   Q6_K: two units are 3360 bytes: for each of four pairs of steps lane[pair of two words] (low
//         nibbles), for each unit lane[pair of two words] (high bits), for each unit 8 pairs of
//         eight signed scales (one a mma), 8 pairs of one f16 d.
// The last unit of a bf16 or Q8_0 panel ends after its last step. Except for the bits of K padded
// to 32 and of N to 16 this is as many bytes as the file has, and every load is 16 bytes a lane
// (the d of Q6_K: 4) from a contiguous piece, so that a warp's request has no idle sector.
#pragma once

#include "common/async.cuh"
#include "common/numeric.cuh"

namespace forerun {

enum Format : int { kBf16 = 0, kQ8_0 = 1, kQ4_K = 2, kQ6_K = 3 };

constexpr int kPanelRows = 16;
constexpr int kStepColumns = 32;
constexpr int kUnitSteps = 4;
constexpr int kUnitColumns = kUnitSteps * kStepColumns;

struct Matrix {
  const unsigned char* data;  // panels, one after another
  int rows;                   // N
  int columns;                // K
  int format;                 // Format
  unsigned panel_bytes;

  __device__ int panels() const { return ceil_div(rows, kPanelRows); }
  __device__ const unsigned char* panel(int index) const {
    return data + static_cast<size_t>(index) * panel_bytes;
  }
};

constexpr unsigned kBf16StepBytes = 1024;
constexpr unsigned kBf16UnitBytes = kUnitSteps * kBf16StepBytes;
constexpr unsigned kQ8ScaleBytes = 128;
constexpr unsigned kQ8StepBytes = 512;
constexpr unsigned kQ8UnitBytes = kQ8ScaleBytes + kUnitSteps * kQ8StepBytes;
constexpr unsigned kQ4ScaleBytes = 256;
constexpr unsigned kNibbleUnitBytes = 1024;
constexpr unsigned kQ4BlockBytes = kQ4ScaleBytes + 2 * kNibbleUnitBytes;
constexpr unsigned kQ6HighAt = 2 * kNibbleUnitBytes;
constexpr unsigned kQ6HighUnitBytes = 512;
constexpr unsigned kQ6ScalesAt = kQ6HighAt + 2 * kQ6HighUnitBytes;
constexpr unsigned kQ6ScaleUnitBytes = 128;
constexpr unsigned kQ6DAt = kQ6ScalesAt + 2 * kQ6ScaleUnitBytes;
constexpr unsigned kQ6BlockBytes = kQ6DAt + 32;

// The rows of one panel, in order.
struct PanelRows {
  const unsigned char* panel;

  // Opaque: otherwise a pointer for every kind of piece is computed before the K loop.
  __device__ static int lane() { return opaque(static_cast<int>(threadIdx.x) % 32); }
  // Each loads where `when` holds, and else leaves `v` as it is.
  // This lane's 16 bytes of a lane[pair] piece.
  __device__ void quants(uint4& v, unsigned at, bool when) const {
    load_weights_16(v, panel + at + lane() * 16, when);
  }
  // This lane's 16 bytes of a step of bf16: of row g, or with `high` of row g + 8.
  __device__ void floats(uint4& v, unsigned at, int high, bool when) const {
    load_weights_16(v, panel + at + high * 512 + lane() * 16, when);
  }
  // A pair of 8-byte pieces that the four lanes of a row share.
  __device__ void scale_pair(uint4& v, unsigned at, bool when) const {
    load_16(v, panel + at + lane() / 4 * 16, when);
  }
  // The 16 bytes of row g, or with `high` of row g + 8.
  __device__ void scale_row(uint4& v, unsigned at, int high, bool when) const {
    load_16(v, panel + at + (lane() / 4 + high * 8) * 16, when);
  }
  // A pair of f16 that the four lanes of a row share.
  __device__ void scale_word(unsigned& v, unsigned at, bool when) const {
    load_4(v, panel + at + lane() / 4 * 4, when);
  }
};

// Any 16 rows of a matrix: this lane's two of them, each by its panel and its place therein.
struct GatheredRows {
  const unsigned char* panel[2];
  int row[2];

  __device__ GatheredRows(const Matrix& matrix, int low, int high)
      : panel{matrix.panel(low / kPanelRows), matrix.panel(high / kPanelRows)},
        row{low % kPanelRows, high % kPanelRows} {}

  // The lane that holds row `which` of this lane in its own panel, and half of that lane's pair.
  __device__ unsigned lane_at(int which) const {
    return ((row[which] % 8) * 4 + threadIdx.x % 4) * 16;
  }
  __device__ unsigned half(int which) const { return row[which] / 8; }
  __device__ static uint4 join(uint2 low, uint2 high) {
    return make_uint4(low.x, low.y, high.x, high.y);
  }
  __device__ void quants(uint4& v, unsigned at, bool when) const {
    if (!when) return;
    v = join(load_8(panel[0] + at + lane_at(0) + half(0) * 8),
             load_8(panel[1] + at + lane_at(1) + half(1) * 8));
  }
  __device__ void floats(uint4& v, unsigned at, int high, bool when) const {
    load_16(v, panel[high] + at + half(high) * 512 + lane_at(high), when);
  }
  __device__ void scale_pair(uint4& v, unsigned at, bool when) const {
    if (!when) return;
    v = join(load_8(panel[0] + at + (row[0] % 8) * 16 + half(0) * 8),
             load_8(panel[1] + at + (row[1] % 8) * 16 + half(1) * 8));
  }
  __device__ void scale_row(uint4& v, unsigned at, int high, bool when) const {
    load_16(v, panel[high] + at + row[high] * 16, when);
  }
  __device__ void scale_word(unsigned& v, unsigned at, bool when) const {
    if (!when) return;
    v = load_2(panel[0] + at + (row[0] % 8) * 4 + half(0) * 2) |
        static_cast<unsigned>(load_2(panel[1] + at + (row[1] % 8) * 4 + half(1) * 2)) << 16;
  }
};

// Four signed bytes to two pairs.
__device__ inline uint2 expand_bytes(unsigned word) {
  const unsigned offset = word ^ 0x80808080u;
  unsigned f[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) f[i] = __float_as_uint(float_of_offset_byte(offset, i));
  // A whole number of at most eight bits: the upper half of its float is its bf16.
  return make_uint2(__byte_perm(f[0], f[1], 0x7632), __byte_perm(f[2], f[3], 0x7632));
}
__device__ inline uint4 expand_q8(unsigned first, unsigned second) {
  const uint2 a = expand_bytes(first), b = expand_bytes(second);
  return make_uint4(a.x, a.y, b.x, b.y);
}

// 128 as bf16, twice; its last mantissa bit is worth 1, so or-ing q < 128 in makes 128 + q.
constexpr unsigned kPair128 = 0x43004300u;
constexpr unsigned kPairMinus128 = 0xc300c300u;
constexpr unsigned kPairMinus160 = 0xc320c320u;

// Eight nibbles: nibble j and nibble j + 4 are elements 2j and 2j + 1. Values 0..16.
__device__ inline uint4 expand_q4(unsigned word) {
  unsigned p[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    p[j] = add_to_pair(((word >> (4 * j)) & 0x000f000fu) | kPair128, kPairMinus128);
  }
  return make_uint4(p[0], p[1], p[2], p[3]);
}

// Eight nibbles as above and their high bits: of `high`, bits 8s + 2j and 16 + 8s + 2j (two each)
// belong to elements 2j and 2j + 1, s = `odd_step`. Values -32..32.
__device__ inline uint4 expand_q6(unsigned low, unsigned high, int odd_step) {
  unsigned p[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int shift = 8 * odd_step + 2 * j - 4;
    const unsigned bits = shift < 0 ? high << -shift : high >> shift;
    const unsigned value = ((low >> (4 * j)) & 0x000f000fu) | (bits & 0x00300030u);
    p[j] = add_to_pair(value | kPair128, kPairMinus160);
  }
  return make_uint4(p[0], p[1], p[2], p[3]);
}

// The scales and minimums of four groups of a row of Q4_K, a byte each. `words` are the twelve
// bytes after d and dmin: for the groups of unit h of the block, byte i of words.x has the low
// nibble of scale i at bit 4h, words.y that of minimum i, and words.z the two high bits of the
// scale at bit 2h and of the minimum at bit 4 + 2h.
struct ByteScales {
  unsigned scales;
  unsigned minimums;
};
__device__ inline ByteScales expand_q4_scales(unsigned x, unsigned y, unsigned z, int unit) {
  const int h = unit & 1;
  return {((x >> (4 * h)) & 0x0f0f0f0fu) | (((z >> (2 * h)) & 0x03030303u) << 4),
          ((y >> (4 * h)) & 0x0f0f0f0fu) | (((z >> (4 + 2 * h)) & 0x03030303u) << 4)};
}

// Rows g and g + 8 of one step.
struct Fragments {
  uint4 low;
  uint4 high;
};

// A scale for row g and one for row g + 8.
struct RowScales {
  float low;
  float high;
};

// What a lane holds of a panel. The quants of kAhead steps, 2 or 4, as loaded: step s of a unit in
// slot s % kAhead. Behind them the scales of one unit as loaded, and behind those the scales of the
// unit in use. Each format needs a part of it; slots are constants for the compiler wherever they
// are used, so that all of this is registers.
template <int kAhead_>
struct Held {
  static constexpr int kAhead = kAhead_;
  uint4 v[kAhead == 2 ? 6 : 8];
};

// Each format says how its bytes are loaded, step by step and where `when` holds, so that those to
// come replace those used up, and what a step's fragments and scales are. Where two steps share a
// load it belongs to the second. The members:
//   kGroupsPerStep  0: no scales; 1: both mmas share one; 2: one a mma
//   kUnitsPerScales how many units, from one whose number is a multiple, the loaded scales are for
//   kMinimums       the group's minimum times the sum of its x is subtracted
//   take_scales     puts a unit's scales to use, so that the next ones may be loaded

struct Bf16Unit {
  static constexpr int kGroupsPerStep = 0;
  static constexpr int kUnitsPerScales = 1;
  static constexpr bool kMinimums = false;

  template <class Held, class Rows>
  __device__ static void load_scales(Held&, const Rows&, int, bool) {}
  template <class Held, class Rows>
  __device__ static void load_step(Held& held, const Rows& rows, int unit, int step, int slot,
                                   bool when) {
    const unsigned at = unit * kBf16UnitBytes + step * kBf16StepBytes;
    rows.floats(held.v[2 * slot], at, 0, when);
    rows.floats(held.v[2 * slot + 1], at, 1, when);
  }
  template <class Held>
  __device__ static void take_scales(Held&, int) {}
  template <class Held>
  __device__ static Fragments fragments(const Held& held, int, int slot) {
    return {held.v[2 * slot], held.v[2 * slot + 1]};
  }
  template <class Held>
  __device__ static RowScales scale(const Held&, int, int) {
    return {1.0f, 1.0f};
  }
  template <class Held>
  __device__ static RowScales minimum(const Held&, int) {
    return {0.0f, 0.0f};
  }
};

struct Q8Unit {
  static constexpr int kGroupsPerStep = 1;
  static constexpr int kUnitsPerScales = 1;
  static constexpr bool kMinimums = false;

  template <class Held, class Rows>
  __device__ static void load_scales(Held& held, const Rows& rows, int unit, bool when) {
    rows.scale_pair(held.v[Held::kAhead], unit * kQ8UnitBytes, when);
  }
  template <class Held, class Rows>
  __device__ static void load_step(Held& held, const Rows& rows, int unit, int step, int slot,
                                   bool when) {
    rows.quants(held.v[slot], unit * kQ8UnitBytes + kQ8ScaleBytes + step * kQ8StepBytes, when);
  }
  // In use: the pair of four f16.
  template <class Held>
  __device__ static void take_scales(Held& held, int) {
    held.v[Held::kAhead + 1] = held.v[Held::kAhead];
  }
  template <class Held>
  __device__ static Fragments fragments(const Held& held, int, int slot) {
    const uint4 q = held.v[slot];
    return {expand_q8(q.x, q.y), expand_q8(q.z, q.w)};
  }
  template <class Held>
  __device__ static RowScales scale(const Held& held, int step, int) {
    const uint4 pair = held.v[Held::kAhead + 1];
    const unsigned low = step < 2 ? pair.x : pair.y, high = step < 2 ? pair.z : pair.w;
    return step % 2 == 0 ? RowScales{low_of_f16_pair(low), low_of_f16_pair(high)}
                         : RowScales{high_of_f16_pair(low), high_of_f16_pair(high)};
  }
  template <class Held>
  __device__ static RowScales minimum(const Held&, int) {
    return {0.0f, 0.0f};
  }
};

struct Q4Unit {
  static constexpr int kGroupsPerStep = 1;
  static constexpr int kUnitsPerScales = 2;
  static constexpr bool kMinimums = true;

  __device__ static unsigned block(int unit) { return (unit / 2) * kQ4BlockBytes; }
  template <class Held, class Rows>
  __device__ static void load_scales(Held& held, const Rows& rows, int unit, bool when) {
    rows.scale_row(held.v[Held::kAhead / 2], block(unit), 0, when);
    rows.scale_row(held.v[Held::kAhead / 2 + 1], block(unit), 1, when);
  }
  template <class Held, class Rows>
  __device__ static void load_step(Held& held, const Rows& rows, int unit, int step, int slot,
                                   bool when) {
    if (slot % 2 == 0) return;
    const unsigned at = block(unit) + kQ4ScaleBytes + (unit % 2) * kNibbleUnitBytes;
    rows.quants(held.v[slot / 2], at + (step / 2) * 512, when);
  }
  // In use: the scales and minimums as bytes, of row g, then of row g + 8; and their {d, dmin}.
  template <class Held>
  __device__ static void take_scales(Held& held, int unit) {
    const uint4 a = held.v[Held::kAhead / 2], b = held.v[Held::kAhead / 2 + 1];
    const ByteScales low = expand_q4_scales(a.y, a.z, a.w, unit);
    const ByteScales high = expand_q4_scales(b.y, b.z, b.w, unit);
    held.v[Held::kAhead / 2 + 2] =
        make_uint4(low.scales, low.minimums, high.scales, high.minimums);
    held.v[Held::kAhead / 2 + 3].x = a.x;
    held.v[Held::kAhead / 2 + 3].y = b.x;
  }
  template <class Held>
  __device__ static Fragments fragments(const Held& held, int, int slot) {
    const uint4 q = held.v[slot / 2];
    return {expand_q4(slot % 2 == 0 ? q.x : q.y), expand_q4(slot % 2 == 0 ? q.z : q.w)};
  }
  template <class Held>
  __device__ static RowScales scale(const Held& held, int step, int) {
    const uint4 bytes = held.v[Held::kAhead / 2 + 2], d = held.v[Held::kAhead / 2 + 3];
    return {__fmul_rn(low_of_f16_pair(d.x), float_of_byte(bytes.x, step)),
            __fmul_rn(low_of_f16_pair(d.y), float_of_byte(bytes.z, step))};
  }
  template <class Held>
  __device__ static RowScales minimum(const Held& held, int step) {
    const uint4 bytes = held.v[Held::kAhead / 2 + 2], d = held.v[Held::kAhead / 2 + 3];
    return {__fmul_rn(high_of_f16_pair(d.x), float_of_byte(bytes.y, step)),
            __fmul_rn(high_of_f16_pair(d.y), float_of_byte(bytes.w, step))};
  }
};

struct Q6Unit {
  static constexpr int kGroupsPerStep = 2;
  static constexpr int kUnitsPerScales = 1;
  static constexpr bool kMinimums = false;

  __device__ static unsigned block(int unit) { return (unit / 2) * kQ6BlockBytes; }
  template <class Held, class Rows>
  __device__ static void load_scales(Held& held, const Rows& rows, int unit, bool when) {
    const unsigned at = block(unit), odd = unit % 2;
    rows.quants(held.v[Held::kAhead / 2], at + kQ6HighAt + odd * kQ6HighUnitBytes, when);
    rows.scale_pair(held.v[Held::kAhead / 2 + 1], at + kQ6ScalesAt + odd * kQ6ScaleUnitBytes, when);
    rows.scale_word(held.v[Held::kAhead / 2 + 2].x, at + kQ6DAt, when);
  }
  template <class Held, class Rows>
  __device__ static void load_step(Held& held, const Rows& rows, int unit, int step, int slot,
                                   bool when) {
    if (slot % 2 == 0) return;
    const unsigned at = block(unit) + (unit % 2) * kNibbleUnitBytes;
    rows.quants(held.v[slot / 2], at + (step / 2) * 512, when);
  }
  // In use: the pair of d, the pair of scales plus 128, the high bits of the quants.
  template <class Held>
  __device__ static void take_scales(Held& held, int) {
    const uint4 s = held.v[Held::kAhead / 2 + 1];
    constexpr unsigned k = 0x80808080u;
    held.v[Held::kAhead / 2 + 2].y = held.v[Held::kAhead / 2 + 2].x;
    held.v[Held::kAhead / 2 + 3] = make_uint4(s.x ^ k, s.y ^ k, s.z ^ k, s.w ^ k);
    held.v[Held::kAhead / 2 + 4] = held.v[Held::kAhead / 2];
  }
  template <class Held>
  __device__ static Fragments fragments(const Held& held, int step, int slot) {
    const uint4 q = held.v[slot / 2], high = held.v[Held::kAhead / 2 + 4];
    const int odd = slot % 2;
    return {expand_q6(odd == 0 ? q.x : q.y, step < 2 ? high.x : high.y, odd),
            expand_q6(odd == 0 ? q.z : q.w, step < 2 ? high.z : high.w, odd)};
  }
  template <class Held>
  __device__ static RowScales scale(const Held& held, int step, int mma) {
    const uint4 pair = held.v[Held::kAhead / 2 + 3];
    const unsigned d = held.v[Held::kAhead / 2 + 2].y;
    const int i = (2 * step + mma) % 4;
    return {__fmul_rn(low_of_f16_pair(d), float_of_offset_byte(step < 2 ? pair.x : pair.y, i)),
            __fmul_rn(high_of_f16_pair(d), float_of_offset_byte(step < 2 ? pair.z : pair.w, i))};
  }
  template <class Held>
  __device__ static RowScales minimum(const Held&, int) {
    return {0.0f, 0.0f};
  }
};

}  // namespace forerun

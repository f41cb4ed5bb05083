// Numbers: bf16 and f16 as bits, exact conversions, reductions over a warp in a fixed order.
//
// A bf16 is kept as the 16 bits it is (`bf16`) and a pair as 32 bits, low half first, because that
// is what mma and vector loads take. Sums whose order matters use the intrinsics with a rounding
// mode in their name, which the compiler may neither fuse nor reorder: the bits of a row must not
// depend on which instantiation of a template computed it.
#pragma once

namespace forerun {

using bf16 = unsigned short;
using f16 = unsigned short;

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr unsigned kPairOnes = 0x3f803f80u;  // two ones

// Of numbers that are not negative: unsigned, a power of two divides by one shift.
__host__ __device__ constexpr int ceil_div(int a, int b) {
  return static_cast<int>((static_cast<unsigned>(a) + b - 1) / static_cast<unsigned>(b));
}
__host__ __device__ constexpr int max_of(int a, int b) { return a > b ? a : b; }
// The same number, but nothing follows from it before this point: what is computed from it is not
// computed early, to be kept in registers through a loop that has none to spare.
__device__ inline int opaque(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

__device__ inline int min_of(int a, int b) { return a < b ? a : b; }

__device__ inline float float_of_bf16(bf16 bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ inline float low_of_pair(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_of_pair(unsigned pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// Rounds two floats to the nearest bf16, ties to even; `low` goes to the low half.
__device__ inline unsigned round_to_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline bf16 round_to_bf16(float value) {
  return static_cast<bf16>(round_to_pair(value, 0.0f));
}

__device__ inline float float_of_f16(f16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ inline float low_of_f16_pair(unsigned pair) {
  return float_of_f16(static_cast<f16>(pair & 0xffffu));
}
__device__ inline float high_of_f16_pair(unsigned pair) {
  return float_of_f16(static_cast<f16>(pair >> 16));
}

// 2^23 as bits: a byte put in the lowest place of this float is the float 2^23 + byte.
constexpr unsigned kByteFloat = 0x4b000000u;
constexpr float kByteFloatBase = 8388608.0f;

// 2^23 + byte `i` of `word`; subtract kByteFloatBase (and a bias) for the value. Exact.
__device__ inline float biased_float_of_byte(unsigned word, int i) {
  return __uint_as_float(__byte_perm(word, kByteFloat, 0x7440u | static_cast<unsigned>(i)));
}
// The unsigned byte `i` of `word`.
__device__ inline float float_of_byte(unsigned word, int i) {
  return __fsub_rn(biased_float_of_byte(word, i), kByteFloatBase);
}
// Byte `i` of `word` less 128, where the word was xored with 0x80808080: the signed byte it was.
__device__ inline float float_of_offset_byte(unsigned word, int i) {
  return __fsub_rn(biased_float_of_byte(word, i), kByteFloatBase + 128.0f);
}

// a * 1 + c for both halves of a pair, rounded to bf16; exact for the small integers used here.
__device__ inline unsigned add_to_pair(unsigned a, unsigned c) {
  unsigned sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(kPairOnes), "r"(c));
  return sum;
}

// Sums over `kLanes` neighbouring lanes (a power of two); every lane gets the same bits: lanes
// combine with the one whose number differs in bit 0, then bit 1, and addition commutes.
template <int kLanes>
__device__ inline float sum_lanes(float value) {
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) {
    value = __fadd_rn(value, __shfl_xor_sync(kFullWarp, value, mask));
  }
  return value;
}

// True for NaN and both infinities.
__device__ inline bool is_not_finite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u;
}

// 1 / sqrt(squares / count + eps): the scale of an RMS norm.
__device__ inline float rms_scale(float squares, int count, float eps) {
  const float mean = __fdiv_rn(squares, static_cast<float>(count));
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
}

}  // namespace forerun

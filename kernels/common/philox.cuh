// Counter-based random numbers: Philox4x32-10, packed as src/sample/philox.rs documents.
//
// A number is a function of what it is for, so it does not depend on batch, slot or replay.
#pragma once

namespace forerun {

// Bits 8 to 15 of the third counter word; src/sample/philox.rs.
enum Purpose : unsigned { kDraw = 0, kAccept = 1, kResidual = 2 };

// The first word of the block that (seed, position, branch, role, purpose) names. Its upper 24 bits
// are the uniform number in [0, 1).
__device__ __forceinline__ unsigned philox_word(unsigned long long seed, unsigned position,
                                                unsigned branch, unsigned role,
                                                Purpose purpose) {
  unsigned c0 = position;
  unsigned c1 = branch;
  unsigned c2 = role | purpose << 8;
  unsigned c3 = 0;
  unsigned k0 = static_cast<unsigned>(seed);
  unsigned k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned first_high = __umulhi(0xD2511F53u, c0);
    const unsigned first_low = 0xD2511F53u * c0;
    const unsigned second_high = __umulhi(0xCD9E8D57u, c2);
    const unsigned second_low = 0xCD9E8D57u * c2;
    c0 = second_high ^ c1 ^ k0;
    c1 = second_low;
    c2 = first_high ^ c3 ^ k1;
    c3 = first_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

}  // namespace forerun

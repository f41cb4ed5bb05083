// Finds the first of `rows` rows of a buffer that holds a NaN or an infinity: the error path.
//
// buffer [rows, width], f32 or bf16. Grid: x strides over the rows, 256 threads over a row. `first`
// must hold a number no row has, such as INT_MAX, before the launch; it keeps it if all is finite.
// Bytes: the buffer once. The minimum is of integers, so its order does not matter.
#include <cstddef>

#include "common/dependent.cuh"

namespace forerun {

constexpr int kThreads = 256;

struct FirstNonFiniteParams {
  const void* buffer;
  int* first;
  int rows;
  int width;
  int f32;       // 1: f32, 0: bf16
  int reserved;
};

}  // namespace forerun

using forerun::FirstNonFiniteParams;

// Size and offsets of the parameters, for the test that compares them with the Rust side.
extern "C" __device__ __attribute__((used)) const unsigned int forerun_first_non_finite_layout[] = {
    sizeof(FirstNonFiniteParams),
    offsetof(FirstNonFiniteParams, buffer),
    offsetof(FirstNonFiniteParams, first),
    offsetof(FirstNonFiniteParams, rows),
    offsetof(FirstNonFiniteParams, width),
    offsetof(FirstNonFiniteParams, f32),
    offsetof(FirstNonFiniteParams, reserved),
};

extern "C" __global__ void __launch_bounds__(forerun::kThreads)
    forerun_first_non_finite(const __grid_constant__ FirstNonFiniteParams p) {
  forerun::wait_for_predecessors();
  forerun::let_dependents_launch();
  // Both types have eight exponent bits below the sign; all set means NaN or infinity.
  constexpr unsigned kExponent = 0x7f800000u;
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const long long begin = static_cast<long long>(row) * p.width;
    bool bad = false;
    for (int i = threadIdx.x; i < p.width; i += forerun::kThreads) {
      const unsigned bits =
          p.f32 ? static_cast<const unsigned*>(p.buffer)[begin + i]
                : static_cast<const unsigned short*>(p.buffer)[begin + i] << 16;
      bad |= (bits & kExponent) == kExponent;
    }
    if (bad) atomicMin(p.first, row);
  }
}

// The hardware's approximations, one instruction each, for where rounding to 16 bits or a
// recurrence's tolerance follows. Subnormals are zero; infinities and NaN come through.
#pragma once

namespace fm {

// 2^x within 2 ulp.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / (1 + e^-x). Flushing subnormals saves four instructions: where e^-x is one, the result is 1
// to the last bit.
__device__ __forceinline__ float sigmoid_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + exp2_approx(-1.4426950408889634f * x)));
  return y;
}

}  // namespace fm

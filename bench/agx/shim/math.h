// Scalar functions as the GPU's fast ones are: one instruction and a multiplication or two.
#pragma once
#include <instructions.h>

namespace msl {
inline float exp(float x) { return exp2(x * M_LOG2E_F); }
inline float log(float x) { return log2(x) * M_LN2_F; }
}  // namespace msl

// What elementwise.h calls.
#define __builtin_elementwise_exp(x) decltype(x)(msl::exp(float(x)))
#define __builtin_elementwise_exp2(x) decltype(x)(msl::exp2(float(x)))
#define __builtin_elementwise_log(x) decltype(x)(msl::log(float(x)))
#define __builtin_elementwise_log2(x) decltype(x)(msl::log2(float(x)))
#define __builtin_elementwise_sin(x) decltype(x)(msl::opencl_sin(float(x)))
#define __builtin_elementwise_cos(x) decltype(x)(msl::opencl_cos(float(x)))
#define __builtin_elementwise_min(a, b) ((a) < (b) ? (a) : (b))  // one selection each, where SPIR-V's minimum minds NaN
#define __builtin_elementwise_max(a, b) ((a) > (b) ? (a) : (b))
#include "elementwise.h"

namespace metal {
inline float rsqrt(float x) { return msl::rsqrt(x); }
namespace precise {
using metal::rsqrt;
}
namespace fast = precise;
}  // namespace metal

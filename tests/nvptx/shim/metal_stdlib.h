// <metal_stdlib> for NVIDIA's GPUs: types and scalar functions are the emulator's (tests/msl/shim), and what threads do
// together is one or two instructions. A warp is a simdgroup. All lanes must be active in a simd operation.
#pragma once
#include "simdgroup_matrix.h"

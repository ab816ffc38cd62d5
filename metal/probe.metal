// What a GPU makes of single operations, for `mlx-delta selfcheck`: see csrc/ops/probe.cpp. A simdgroup takes 32 values;
// result r of value i is y[r * count + i].
#include <metal_simdgroup_matrix>

#include "common.h"
#include "params.h"

// Times nothing: a few thousand values, one thread each.
template <typename T>
[[kernel]] void probe(
    device const T* values [[buffer(0)]], device T* y [[buffer(1)]], constant ProbeParams& p [[buffer(2)]],
    uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const float x = values[i];
  simdgroup_float8x8 tile = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  tile.thread_elements()[0] = float(lane);
  tile.thread_elements()[1] = float(lane + 32);
  threadgroup float laid_out[64];
  simdgroup_store(tile, laid_out);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const half low = as_type<vec<half, 2>>(as_type<uint>(x))[0];
  const float results[] = {
      precise::exp(x),
      fast::exp(x),
      precise::log(x),
      fast::log(x),
      precise::cos(x),
      fast::cos(x),
      precise::sin(x),
      fast::sin(x),
      precise::rsqrt(x),
      1.0f / x,
      float(low),
      float(bfloat(x)),
      float(half(x)),
      x * x - 1.0f,
      fma(x, x, -1.0f),
      simd_sum(x),
      laid_out[lane],
      laid_out[lane + 32],
  };
  for (uint r = 0; r < MLX_DELTA_PROBES; r++) {
    y[r * uint(p.count) + i] = results[r];
  }
}

// The launch of delta_mixer on a GPU. Inputs: projection, conv weight, A_log, dt_bias, norm, conv state, delta state
// [, mask] [, pending]; outputs: y, conv state, delta state.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

struct DeltaMixerShape {
  std::string type;
  int B;
  int T;
  int P;  // pending tokens
  int Hk;
  int Hv;
  int Dk;
  int Dv;
  bool keep;
  float eps;
  int mask;     // index of the input, or -1
  int pending;  // likewise
};

inline Plan plan(const DeltaMixerShape& shape) {
  check_head_dims("delta_mixer", {shape.Dk, shape.Dv});
  const int64_t width = 2 * shape.Hk * shape.Dk + 2 * shape.Hv * (shape.Dv + 1);  // of the projection
  const int64_t values =
      shape.B * std::max(int64_t(shape.Hv) * shape.Dv * shape.Dk, std::max(shape.T, shape.P) * width);
  if (values >= int64_t(1) << 32)
    throw std::invalid_argument(
        "delta_mixer on a GPU: expected states and projections of fewer than 2^32 values, found " +
        std::to_string(values));
  constexpr int rows = 8;  // of a simdgroup: see metal/delta_mixer.metal
  return {{{"delta_mixer",
            "delta_mixer",
            {shape.type, std::to_string(shape.Dk), std::to_string(shape.Dv), std::to_string(rows),
             metal_bool(shape.mask >= 0), metal_bool(shape.T == 1 && shape.P == 0 && shape.keep)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             {Buffer::input, 2},
             {Buffer::input, 3},
             {Buffer::input, 4},
             {Buffer::input, 5},
             {Buffer::input, 6},
             optional_input(shape.mask),
             optional_input(shape.pending),
             {Buffer::output, 0},
             {Buffer::output, 1},
             {Buffer::output, 2}},
            bytes_of(DeltaMixerParams{shape.T, shape.P, shape.keep ? shape.P + shape.T : shape.P, shape.Hk, shape.Hv,
                                      shape.eps}),
            {shape.Hv, shape.B, 1},
            {32 * (shape.Dv / rows), 1, 1}}},
          {},
          // The delta state's every value is read and written by one thread alone. The conv state of a key head is read
          // by the threadgroups of all its value heads: in place, one would overwrite what another has yet to read.
          {{2, 6, false}}};
}

}  // namespace mlx_delta::gpu

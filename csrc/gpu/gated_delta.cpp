#include "gpu/gated_delta.h"

#include "params.h"

namespace mlx_delta::gpu {

Plan plan(const GatedDeltaShape& shape) {
  constexpr int kSimdgroups = 4, kRows = 4;
  check_head_dims("gated_delta", {shape.Dk, shape.Dv});
  return {{{"gated_delta",
            "gated_delta",
            {shape.type, std::to_string(shape.Dk), std::to_string(shape.Dv), metal_bool(shape.mask >= 0)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             {Buffer::input, 2},
             {Buffer::input, 3},
             {Buffer::input, 4},
             {Buffer::input, 5},
             {Buffer::input, 6},
             {Buffer::input, 7},
             optional_input(shape.mask),
             {Buffer::output, 0},
             {Buffer::output, 1}},
            bytes_of(GatedDeltaParams{shape.T, shape.Hk, shape.Hv}),
            {ceil_div(shape.Dv, kSimdgroups * kRows), shape.Hv, shape.B},
            {32 * kSimdgroups, 1, 1}}},
          {},
          {{1, 7, false}}};
}

}  // namespace mlx_delta::gpu

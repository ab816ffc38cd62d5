// The launches of attention on a GPU. Inputs: q, projection, keys, values [, start]; output: y.
#pragma once

#include <algorithm>

#include "gpu/launch.h"
#include "gpu/plans/kv_rows.h"
#include "params.h"

namespace mlx_delta::gpu {

struct AttentionShape {
  std::string type;
  bool eight_bits;  // keys and values
  int B;
  int T;
  int Hq;
  int Hkv;
  int D;
  int S;
  int length;
  int width;  // columns of projection
  float scale;
  int start;  // index of the input, or -1
};

// Query heads of one key head that a simdgroup serves at once: its registers hold four.
inline int head_tile(int group) {
  for (int tile : {4, 3, 2})
    if (group % tile == 0) return tile;
  return 1;
}

namespace attention {

constexpr int kSimdgroups = 4;      // a core has registers for three such threadgroups, or for one of eight
constexpr int kThreadgroups = 256;  // of one sequence: enough for the widest GPU

}  // namespace attention

inline Plan plan(const AttentionShape& shape) {
  using attention::kSimdgroups;
  check_cached_head_dim("attention", shape.D, shape.eight_bits);
  const int tile = head_tile(shape.Hq / shape.Hkv);
  const int heads = shape.Hq / tile, tokens = shape.B * shape.T;
  // Whatever the batch is, so that a sequence has the bits that it has alone.
  const int splits =
      std::min(ceil_div(attention::kThreadgroups, heads * shape.T), ceil_div(shape.length, MLX_DELTA_LEAST_SPLIT_ROWS));
  const std::vector<char> params =
      bytes_of(AttentionParams{shape.T, shape.Hq, shape.Hkv, shape.S, shape.length, shape.width, splits, shape.scale});
  const Buffer y{Buffer::output, 0}, partial{Buffer::scratch, 0};
  return {{{"attention",
            "attention",
            {shape.type, cached_type(shape.type, shape.eight_bits), std::to_string(shape.D), std::to_string(tile),
             std::to_string(kSimdgroups), metal_bool(shape.start >= 0)},
            {{Buffer::input, 0}, {Buffer::input, 2}, {Buffer::input, 3}, optional_input(shape.start), partial},
            params,
            {splits, heads, tokens},
            {32 * kSimdgroups, 1, 1}},
           {"attention",
            "attention_combine",
            {shape.type, std::to_string(shape.D)},
            {{Buffer::input, 1}, partial, y},
            params,
            {shape.Hq, tokens, 1},
            {shape.D, 1, 1}}},
          {int64_t(tokens) * shape.Hq * splits * (shape.D + 2) * 4},
          {}};
}

}  // namespace mlx_delta::gpu

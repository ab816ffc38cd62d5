#include "gpu/attention.h"

#include <algorithm>

#include "params.h"

namespace mlx_delta::gpu {
namespace {

// Query heads of one key head that a simdgroup serves at once: its registers hold four.
int head_tile(int group) {
  for (int tile : {4, 3, 2})
    if (group % tile == 0) return tile;
  return 1;
}

}  // namespace

Plan plan(const AttentionShape& shape) {
  constexpr int kSimdgroups = 8;
  constexpr int kLeastRows = 128;     // of a split: less does not pay for its part of the second launch
  constexpr int kThreadgroups = 256;  // enough for the widest GPU
  check_head_dims("attention", {shape.D});
  const int tile = head_tile(shape.Hq / shape.Hkv);
  const int heads = shape.Hq / tile, tokens = shape.B * shape.T;
  const int wanted = std::clamp(ceil_div(kThreadgroups, heads * tokens), 1, ceil_div(shape.length, kLeastRows));
  const int split_rows = ceil_div(shape.length, wanted);
  const int splits = ceil_div(shape.length, split_rows);
  const std::vector<char> params = bytes_of(AttentionParams{shape.T, shape.Hq, shape.Hkv, shape.S, shape.length,
                                                            shape.width, splits, split_rows, shape.scale});
  const bool split = splits > 1;
  const Buffer y{Buffer::output, 0}, partial{Buffer::scratch, 0};
  Plan result{{{"attention",
                "attention",
                {shape.type, split ? "float" : shape.type, std::to_string(shape.D), std::to_string(tile),
                 std::to_string(kSimdgroups), metal_bool(shape.start >= 0), metal_bool(split)},
                {{Buffer::input, 0},
                 {Buffer::input, 1},
                 {Buffer::input, 2},
                 {Buffer::input, 3},
                 optional_input(shape.start),
                 split ? partial : y},
                params,
                {splits, heads, tokens},
                {32 * kSimdgroups, 1, 1}}},
              {},
              {}};
  if (split) {
    result.launches.push_back({"attention",
                               "attention_combine",
                               {shape.type, std::to_string(shape.D)},
                               {{Buffer::input, 1}, partial, y},
                               params,
                               {shape.Hq, tokens, 1},
                               {shape.D, 1, 1}});
    result.scratch_bytes.push_back(int64_t(tokens) * shape.Hq * splits * (shape.D + 2) * 4);
  }
  return result;
}

}  // namespace mlx_delta::gpu

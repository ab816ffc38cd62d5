// The launch of gated_delta on a GPU. Inputs: q, k, v, a, b, A_log, dt_bias, state [, mask]; outputs: y, state.
#pragma once

#include "decode_tokens.h"
#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

struct GatedDeltaShape {
  std::string type;
  int B;
  int T;
  int Hk;
  int Hv;
  int Dk;
  int Dv;
  int mask;  // index of the input, or -1
};

// Token after token: for few of them.
inline Plan sequential(const GatedDeltaShape& shape) {
  constexpr int kSimdgroups = 4, kRows = 4;
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

// In chunks of 64 tokens: first what needs no state, of all chunks at once, then the states from chunk to chunk.
inline Plan chunked(const GatedDeltaShape& shape) {
  constexpr int kTokens = 64, kThreads = 256;
  const int columns = shape.Dk <= 128 ? 32 : 16;  // bounded by threadgroup memory: see metal/gated_delta_chunked.metal
  const int chunks = ceil_div(shape.T, kTokens);
  const int64_t floats = kTokens * int64_t(shape.Dk + shape.Dv + kTokens + 2) + 4;  // ChunkLayout there
  const std::vector<char> params = bytes_of(GatedDeltaParams{shape.T, shape.Hk, shape.Hv});
  const std::string Dk = std::to_string(shape.Dk), Dv = std::to_string(shape.Dv);
  const Buffer between{Buffer::scratch, 0};
  return {{{"gated_delta_chunked",
            "gated_delta_wy",
            {shape.type, Dk, Dv, metal_bool(shape.mask >= 0)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             {Buffer::input, 2},
             {Buffer::input, 3},
             {Buffer::input, 4},
             {Buffer::input, 5},
             {Buffer::input, 6},
             optional_input(shape.mask),
             between},
            params,
            {chunks, shape.Hv, shape.B},
            {kThreads, 1, 1}},
           {"gated_delta_chunked",
            "gated_delta_chunks",
            {shape.type, Dk, Dv, std::to_string(columns), metal_bool(shape.mask >= 0)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             between,
             {Buffer::input, 7},
             optional_input(shape.mask),
             {Buffer::output, 0},
             {Buffer::output, 1}},
            params,
            {shape.Dv / columns, shape.Hv, shape.B},
            {kThreads, 1, 1}}},
          {int64_t(shape.B) * shape.Hv * chunks * floats * int64_t(sizeof(float))},
          {{1, 7, false}}};
}

inline Plan plan(const GatedDeltaShape& shape) {
  check_head_dims("gated_delta", {shape.Dk, shape.Dv});
  return shape.T <= kDecodeTokens ? sequential(shape) : chunked(shape);
}

}  // namespace mlx_delta::gpu

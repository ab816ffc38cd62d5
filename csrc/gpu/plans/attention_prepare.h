// The launch of attention_prepare on a GPU. Inputs: projection, q_norm, k_norm, keys, values [, positions]; outputs: q,
// keys, values.
#pragma once

#include <cmath>

#include "gpu/launch.h"
#include "gpu/plans/kv_rows.h"
#include "params.h"

namespace mlx_delta::gpu {

struct AttentionPrepareShape {
  std::string type;
  bool eight_bits;  // keys and values
  int B;
  int T;
  int Hq;
  int Hkv;
  int D;
  int S;
  int offset;
  float rope_theta;
  int rope_dim;
  std::array<int, 3> rope_sections;
  float eps;
  int positions;  // index of the input, or -1
};

// What the host computes of the rotation: theta^(-2i / rope_dim).
template <typename P>
void set_frequencies(P& params, float rope_theta, int rope_dim) {
  for (int i = 0; i < rope_dim / 2; ++i)
    params.frequencies[i] = float(std::pow(double(rope_theta), -2.0 * i / rope_dim));
}

inline Plan plan(const AttentionPrepareShape& shape) {
  check_cached_head_dim("attention_prepare", shape.D, shape.eight_bits);
  AttentionPrepareParams params{shape.T,
                                shape.Hq,
                                shape.Hkv,
                                shape.S,
                                shape.offset,
                                shape.rope_dim / 2,
                                {shape.rope_sections[0], shape.rope_sections[1], shape.rope_sections[2]},
                                shape.eps,
                                {}};
  set_frequencies(params, shape.rope_theta, shape.rope_dim);
  return {{{"attention_prepare",
            "attention_prepare",
            {shape.type, cached_type(shape.type, shape.eight_bits), std::to_string(shape.D),
             metal_bool(shape.positions >= 0)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             {Buffer::input, 2},
             optional_input(shape.positions),
             {Buffer::output, 0},
             {Buffer::output, 1},
             {Buffer::output, 2}},
            bytes_of(params),
            {shape.Hq + 2 * shape.Hkv, shape.T, shape.B},
            {32, 1, 1}}},
          {},
          {{1, 3, true}, {2, 4, true}}};
}

}  // namespace mlx_delta::gpu

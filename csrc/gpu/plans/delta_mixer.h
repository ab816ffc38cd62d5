// The launches of delta_mixer on a GPU. Inputs: projection, conv weight, A_log, dt_bias, norm, and of each part its
// conv state, delta state [, pending]; outputs: y, each part's conv state, each part's delta state.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

// Sequences that go in step, each as many tokens: a batch, or one that has states of its own.
struct DeltaMixerPart {
  int first;  // its tokens are [first, first + B T) of all
  int B;
  int T;
  int P;  // pending tokens
  bool keep;
  int states;   // index of the input that is its conv state; its delta state is the next
  int pending;  // index of the input, or -1
};

struct DeltaMixerShape {
  std::string type;
  int Hk;
  int Hv;
  int Dk;
  int Dv;
  float eps;
  int mask;  // index of the input, or -1; of one part alone
  std::vector<DeltaMixerPart> parts;
};

namespace delta_mixer {

constexpr int kRows = 8;  // of a simdgroup: see metal/delta_mixer.metal

inline bool one(const DeltaMixerPart& part) { return part.T == 1 && part.P == 0 && part.keep; }

inline Launch of_part(const DeltaMixerShape& shape, const DeltaMixerPart& part) {
  return {
      "delta_mixer",
      "delta_mixer",
      {shape.type, std::to_string(shape.Dk), std::to_string(shape.Dv), std::to_string(kRows),
       metal_bool(shape.mask >= 0), metal_bool(one(part))},
      {{Buffer::input, 0},
       {Buffer::input, 1},
       {Buffer::input, 2},
       {Buffer::input, 3},
       {Buffer::input, 4},
       {Buffer::input, part.states},
       {Buffer::input, part.states + 1},
       optional_input(shape.mask),
       optional_input(part.pending),
       {Buffer::output, 0},
       {Buffer::output, 1},
       {Buffer::output, 2}},
      bytes_of(DeltaMixerParams{part.T, part.P, part.keep ? part.P + part.T : part.P, shape.Hk, shape.Hv, shape.eps}),
      {shape.Hv, part.B, 1},
      {32 * (shape.Dv / kRows), 1, 1}};
}

// Sequences with states of their own, by their numbers: as many as a kernel has buffers for, or fewer.
inline Launch of_sequences(const DeltaMixerShape& shape, const std::vector<int>& numbers, bool one_token) {
  const int parts = int(shape.parts.size());
  const int most = one_token ? MLX_DELTA_MIXER_ROWS : MLX_DELTA_MIXER_SPANS;
  Launch launch{"delta_mixer_rows",
                one_token ? "delta_mixer_rows" : "delta_mixer_spans",
                {shape.type, std::to_string(shape.Dk), std::to_string(shape.Dv), std::to_string(kRows)},
                {{Buffer::input, 0},
                 {Buffer::input, 1},
                 {Buffer::input, 2},
                 {Buffer::input, 3},
                 {Buffer::input, 4},
                 {Buffer::output, 0}},
                {},
                {shape.Hv, int(numbers.size()), 1},
                {32 * (shape.Dv / kRows), 1, 1}};
  // Buffers that no sequence of this launch has are given those of the last, which the kernel does not touch for them.
  const auto number = [&](int i) { return numbers[std::min(size_t(i), numbers.size() - 1)]; };
  const auto part = [&](int i) -> const DeltaMixerPart& { return shape.parts[size_t(number(i))]; };
  for (int i = 0; i < most; ++i) launch.buffers.push_back({Buffer::input, part(i).states});
  for (int i = 0; i < most; ++i) launch.buffers.push_back({Buffer::output, 1 + number(i)});
  for (int i = 0; i < most; ++i) launch.buffers.push_back({Buffer::output, 1 + parts + number(i)});
  if (one_token) {
    DeltaMixerRowsParams params{shape.Hk, shape.Hv, shape.eps, {}};
    for (int i = 0; i < most; ++i) params.first[i] = part(i).first;
    launch.params = bytes_of(params);
    return launch;
  }
  DeltaMixerSpansParams params{shape.Hk, shape.Hv, shape.eps, {}, {}, {}, {}};
  for (int i = 0; i < most; ++i) {
    const DeltaMixerPart& of = part(i);
    launch.buffers.push_back(optional_input(of.pending));
    params.first[i] = of.first;
    params.T[i] = of.T;
    params.P[i] = of.P;
    params.kept[i] = of.keep ? of.P + of.T : of.P;
  }
  launch.params = bytes_of(params);
  return launch;
}

// Kernels index in 32 bits.
inline void check_sizes(const DeltaMixerShape& shape) {
  const int64_t width = 2 * shape.Hk * shape.Dk + 2 * shape.Hv * (shape.Dv + 1);  // of the projection
  const int64_t state = int64_t(shape.Hv) * shape.Dv * shape.Dk;
  for (const DeltaMixerPart& part : shape.parts) {
    const int64_t tokens = std::max(part.first + int64_t(part.B) * part.T, int64_t(part.B) * part.P);
    if (const int64_t values = std::max(part.B * state, tokens * width); values >= int64_t(1) << 32)
      throw std::invalid_argument(
          "delta_mixer on a GPU: expected states and projections of fewer than 2^32 values, found " +
          std::to_string(values));
  }
}

}  // namespace delta_mixer

inline Plan plan(const DeltaMixerShape& shape) {
  check_head_dims("delta_mixer", {shape.Dk, shape.Dv});
  delta_mixer::check_sizes(shape);
  if (shape.parts.size() == 1)
    return {{delta_mixer::of_part(shape, shape.parts.front())},
            {},
            // The delta state's every value is read and written by one thread alone. The conv state of a key head is
            // read by the threadgroups of all its value heads: in place, one would overwrite what another has yet to
            // read.
            {{2, shape.parts.front().states + 1, false}}};
  Plan plan;
  for (const bool one_token : {true, false}) {
    std::vector<int> numbers;
    for (int i = 0; i < int(shape.parts.size()); ++i)
      if (delta_mixer::one(shape.parts[size_t(i)]) == one_token) numbers.push_back(i);
    const size_t most = one_token ? MLX_DELTA_MIXER_ROWS : MLX_DELTA_MIXER_SPANS;
    for (size_t first = 0; first < numbers.size(); first += most)
      plan.launches.push_back(delta_mixer::of_sequences(
          shape, {numbers.begin() + long(first), numbers.begin() + long(std::min(first + most, numbers.size()))},
          one_token));
  }
  // One buffer a state, so that there are buffers for more sequences: what is not taken over is copied first.
  const int parts = int(shape.parts.size());
  for (int i = 0; i < parts; ++i) plan.in_place.push_back({1 + parts + i, shape.parts[size_t(i)].states + 1, true});
  return plan;
}

}  // namespace mlx_delta::gpu

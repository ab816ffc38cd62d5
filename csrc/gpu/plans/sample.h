// The launches of sample on a GPU.
#pragma once

#include <algorithm>
#include <cmath>

#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

struct SampleShape {
  std::string type;  // of the logits
  int B;
  int V;
  int N;       // columns that are tokens
  int random;  // index of the input, or -1, as the others
  int allowed, prompt, generated;
  int allowed_stride, prompt_stride, generated_stride;
  float temperature;
  float presence_penalty, repetition_penalty;
  int top_k;
  double top_p, min_p;
};

inline Plan plan(const SampleShape& shape) {
  constexpr int kReaders = 256, kChoosers = 512;  // threads
  const bool greedy = shape.random < 0;
  const int blocks = ceil_div(shape.N, MLX_DELTA_SAMPLE_BLOCK);
  const auto top_p = shape.top_p < 1 ? uint64_t(std::ldexp(shape.top_p, 64)) : 0;
  const SampleParams params{shape.V,
                            shape.N,
                            blocks,
                            shape.allowed >= 0,
                            shape.prompt >= 0,
                            shape.generated >= 0,
                            shape.allowed_stride,
                            shape.prompt_stride,
                            shape.generated_stride,
                            greedy ? 1.0f : shape.temperature,
                            shape.presence_penalty,
                            shape.repetition_penalty,
                            shape.top_k < shape.N ? shape.top_k : 0,
                            shape.top_p < 1,
                            uint32_t(top_p >> 32),
                            uint32_t(top_p),
                            float(std::log((1 - shape.top_p) / shape.N)),
                            float(std::log(shape.min_p))};
  const Buffer x{Buffer::scratch, 0}, largest{Buffer::scratch, 1}, first{Buffer::scratch, 2}, list{Buffer::scratch, 3};
  const int64_t of_blocks = int64_t(shape.B) * blocks * 4, of_columns = greedy ? 4 : of_blocks * MLX_DELTA_SAMPLE_BLOCK;
  return {{{"sample",
            "sample_read",
            {shape.type, metal_bool(greedy)},
            {{Buffer::input, 0},
             optional_input(shape.allowed),
             optional_input(shape.prompt),
             optional_input(shape.generated),
             x,
             largest,
             first},
            bytes_of(params),
            {blocks, shape.B, 1},
            {kReaders, 1, 1}},
           {"sample",
            "sample_choose",
            {metal_bool(greedy)},
            {x, largest, first, optional_input(shape.random), list, {Buffer::output, 0}},
            bytes_of(params),
            {1, shape.B, 1},
            {kChoosers, 1, 1}}},
          {of_columns, of_blocks, greedy ? of_blocks : 4, of_columns},
          {}};
}

}  // namespace mlx_delta::gpu

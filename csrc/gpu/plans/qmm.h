// The launch of qmm on a GPU.
#pragma once

#include <bit>
#include <optional>
#include <stdexcept>

#include "decode_tokens.h"
#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

inline constexpr int kMaxQmmSegments = 4;

struct QmmSegment {
  std::string type;  // of the weights if plain, else of scales and biases
  int bits;          // 0: plain
  int group_size;
  int rows;
  int input;  // index of its first input: weight [, scales, biases]
};

struct QmmShape {
  std::string type;  // of x, residual and y
  int M;             // 1 .. kDecodeTokens
  int K;
  int N;
  float eps;
  bool swiglu;
  int norm;                          // index of the input, or -1
  int residual;                      // likewise
  std::vector<QmmSegment> segments;  // 1 .. kMaxQmmSegments
};

// Simdgroups of a threadgroup. More of them share one staged row of x; but a matrix of few rows needs more, smaller
// threadgroups than that, so that the last round of them keeps all cores of a wide GPU busy.
inline int simdgroups(const QmmShape& shape, int R) {
  constexpr int kThreadgroups = 512;  // a dozen for each of 40 cores
  int rows = 0;
  for (const QmmSegment& segment : shape.segments) rows += segment.rows;
  if (shape.swiglu) rows /= 2;
  return rows >= kThreadgroups * 4 * R ? 4 : 2;
}

inline std::string format(const QmmSegment& segment, int K) {
  if (segment.bits == 0) return "Plain<" + segment.type + ", " + metal_bool(K % 8 == 0) + ">";
  return "Affine<" + segment.type + ", " + std::to_string(segment.bits) + ", " + std::to_string(segment.group_size) +
         ">";
}

inline Plan plan(const QmmShape& shape) {
  const int count = int(shape.segments.size());
  if (shape.M < 1 || shape.M > kDecodeTokens || count < 1 || count > kMaxQmmSegments)
    throw std::invalid_argument("qmm: no kernel for " + std::to_string(shape.M) + " rows, " + std::to_string(count) +
                                " segments");
  const int tile = int(std::bit_ceil(unsigned(shape.M)));
  const int R = tile * (shape.swiglu ? 2 : 1) <= 8 ? 4 : 2;  // bounded by registers: see metal/qmm.metal
  const int simdgroups_each = simdgroups(shape, R);
  QmmParams params{shape.M, shape.N, shape.eps, count, {}, {}, {}};
  std::vector<std::string> types{shape.type,
                                 std::to_string(tile),
                                 std::to_string(R),
                                 std::to_string(shape.K),
                                 std::to_string(simdgroups_each),
                                 metal_bool(shape.norm >= 0),
                                 metal_bool(shape.residual >= 0),
                                 metal_bool(shape.swiglu)};
  std::vector<Buffer> buffers{{Buffer::input, 0}, optional_input(shape.norm), optional_input(shape.residual)};
  int threadgroups = 0, column = 0;
  for (int s = 0; s < kMaxQmmSegments; ++s) {
    if (s >= count) {
      types.push_back("None");
      buffers.insert(buffers.end(), 3, optional_input(-1));
      continue;
    }
    const QmmSegment& segment = shape.segments[size_t(s)];
    types.push_back(format(segment, shape.K));
    for (int i = 0; i < 3; ++i) buffers.push_back(optional_input(i == 0 || segment.bits ? segment.input + i : -1));
    params.rows[s] = segment.rows;
    params.first_threadgroup[s] = shape.swiglu ? 0 : threadgroups;
    params.first_column[s] = shape.swiglu ? 0 : column;
    column += segment.rows;
    if (s == 0 || !shape.swiglu) threadgroups += ceil_div(segment.rows, simdgroups_each * R);
  }
  buffers.push_back({Buffer::output, 0});
  return {
      {{"qmm", "qmm", types, buffers, bytes_of(params), {threadgroups, 1, 1}, {32 * simdgroups_each, 1, 1}}}, {}, {}};
}

}  // namespace mlx_delta::gpu

// The launch of qmm on a GPU.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <stdexcept>
#include <utility>

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

inline int64_t bytes_of_row(const QmmSegment& segment, int K) {
  const int64_t groups = segment.bits ? K / segment.group_size : 0;
  return segment.bits ? int64_t(K) * segment.bits / 8 + 4 * groups : int64_t(K) * (segment.type == "float" ? 4 : 2);
}

inline int rows_of(const QmmShape& shape) {
  int rows = 0;
  for (const QmmSegment& segment : shape.segments) rows += segment.rows;
  return rows;
}

inline bool any_packed(const QmmShape& shape) {
  return std::any_of(shape.segments.begin(), shape.segments.end(), [](auto& segment) { return segment.bits != 0; });
}

// In place of what plan() chooses, where selfcheck compares choices, in a process of its own; 0: as it chooses.
struct QmmVariant {
  int rows = 0;        // of weights of a simdgroup
  int simdgroups = 0;  // more than 8 stage more than a threadgroup's memory
};
inline QmmVariant qmm_variant;

inline void set_qmm_variant(QmmVariant variant) {
  for (const auto& [name, value] : {std::pair{"rows", variant.rows}, {"simdgroups", variant.simdgroups}})
    if (value < 0 || value > 8 || (value & (value - 1)) != 0)
      throw std::invalid_argument(std::string("set_qmm_variant: ") + name + ": expected 0, 1, 2, 4 or 8, found " +
                                  std::to_string(value));
  qmm_variant = variant;
}

// Rows of x that go together, as many as registers hold without spilling: more are threadgroups of their own.
inline int rows_of_x(const QmmShape& shape) {
  return std::min(int(std::bit_ceil(unsigned(shape.M))), any_packed(shape) ? 4 : 8);
}

// Rows of weights of a simdgroup, with SwiGLU half of them of either matrix: no more than any matrix has.
inline int rows_of_weights(const QmmShape& shape) {
  int least = qmm_variant.rows ? qmm_variant.rows : 4;
  for (const QmmSegment& segment : shape.segments) least = std::min(least, segment.rows);
  return shape.swiglu ? (least >= 2 ? 4 : 2) : int(std::bit_floor(unsigned(least)));
}

// Simdgroups of a threadgroup. What it costs to stage x is shared by all of them, and several rows of x cost more; but
// a matrix of few rows needs more, smaller threadgroups, so that the last ones keep all cores of a wide GPU busy.
inline int simdgroups(const QmmShape& shape, int M, int R) {
  if (qmm_variant.simdgroups) return qmm_variant.simdgroups;
  constexpr int kFew = 256, kMany = 512;  // threadgroups: 6 and 12 for each of 40 cores
  const int rows = rows_of(shape) * ceil_div(shape.M, M) / R;
  if (!any_packed(shape)) return rows >= kMany * 4 ? 4 : 2;
  return rows >= (M == 1 ? kMany : kFew) * 8 ? 8 : 4;
}

// How often a simdgroup takes R rows, with x staged once: of a vocabulary's rows, and x that fits.
inline int turns(const QmmShape& shape, int simdgroups_each, int R) {
  constexpr int kThreadgroups = 1024, kMost = 8;
  return shape.swiglu ? 1 : std::clamp(rows_of(shape) / (kThreadgroups * simdgroups_each * R), 1, kMost);
}

inline std::string format(const QmmSegment& segment, int K) {
  if (segment.bits == 0) return "Plain<" + segment.type + ", " + metal_bool(K % 8 == 0) + ">";
  return "Affine<" + segment.type + ", " + std::to_string(segment.bits) + ", " + std::to_string(segment.group_size) +
         ">";
}

// The buffers of a matrix: weights, and scales and biases where it has them.
inline void push_segment(std::vector<Buffer>& buffers, const QmmSegment& segment) {
  for (int i = 0; i < 3; ++i) buffers.push_back(optional_input(i == 0 || segment.bits ? segment.input + i : -1));
}

// What the kernel takes for granted, which plan()'s own choices keep. A lane has the sum of one row of x and one of
// weights at least; staged x has a block for each of a simdgroup's lanes only if there are as many simdgroups as rows.
inline void check_variant(const QmmShape& shape, int M, int R, int simdgroups_each) {
  const auto refused = [M](const std::string& what, const std::string& wanted, int found) {
    return std::invalid_argument("qmm: a variant's " + what + " with " + std::to_string(M) + " rows of x: expected " +
                                 wanted + ", found " + std::to_string(found));
  };
  if (M * R > 32) throw refused("rows", "at most " + std::to_string(32 / M), R);
  if (any_packed(shape) && simdgroups_each < M)
    throw refused("simdgroups", "at least " + std::to_string(M), simdgroups_each);
}

inline Plan plan(const QmmShape& shape) {
  const int count = int(shape.segments.size());
  if (shape.M < 1 || shape.M > kDecodeTokens || count < 1 || count > kMaxQmmSegments)
    throw NoKernel("qmm: no kernel for " + std::to_string(shape.M) + " rows, " + std::to_string(count) + " segments");
  for (const QmmSegment& segment : shape.segments)
    if (int64_t(segment.rows) * shape.K >= int64_t(1) << 32)
      throw std::invalid_argument("qmm: a matrix on a GPU: expected fewer than 2^32 weights, found " +
                                  std::to_string(segment.rows) + " x " + std::to_string(shape.K));
  const int M = rows_of_x(shape), R = rows_of_weights(shape);
  const int simdgroups_each = simdgroups(shape, M, R), turns_each = turns(shape, simdgroups_each, R);
  check_variant(shape, M, R, simdgroups_each);
  const int rows_each = simdgroups_each * turns_each * R / (shape.swiglu ? 2 : 1);  // of a threadgroup
  QmmParams params{shape.M, shape.N, shape.eps, {}, {}, {}};
  std::vector<std::string> types{shape.type,
                                 std::to_string(M),
                                 std::to_string(R),
                                 std::to_string(shape.K),
                                 std::to_string(simdgroups_each),
                                 std::to_string(turns_each),
                                 metal_bool(shape.norm >= 0),
                                 metal_bool(shape.residual >= 0),
                                 metal_bool(shape.swiglu)};
  std::vector<Buffer> buffers{{Buffer::input, 0}, optional_input(shape.norm), optional_input(shape.residual)};
  // Small segments first: few threadgroups that start late would be waited for.
  std::vector<int> order(static_cast<size_t>(count)), first_column(static_cast<size_t>(count));
  for (int s = 0, column = 0; s < count; column += shape.segments[size_t(s++)].rows) {
    order[size_t(s)] = s;
    first_column[size_t(s)] = column;
  }
  if (!shape.swiglu)
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      const QmmSegment &left = shape.segments[size_t(a)], &right = shape.segments[size_t(b)];
      return left.rows * bytes_of_row(left, shape.K) < right.rows * bytes_of_row(right, shape.K);
    });
  int threadgroups = 0;
  for (int s = 0; s < kMaxQmmSegments; ++s) {
    if (s >= count) {
      types.push_back("None");
      buffers.insert(buffers.end(), 3, optional_input(-1));
      continue;
    }
    const QmmSegment& segment = shape.segments[size_t(order[size_t(s)])];
    types.push_back(format(segment, shape.K));
    push_segment(buffers, segment);
    params.rows[s] = segment.rows;
    params.first_threadgroup[s] = shape.swiglu ? 0 : threadgroups;
    params.first_column[s] = shape.swiglu ? 0 : first_column[size_t(order[size_t(s)])];
    if (s == 0 || !shape.swiglu) threadgroups += ceil_div(segment.rows, rows_each);
  }
  buffers.push_back({Buffer::output, 0});
  return {{{"qmm",
            "qmm",
            types,
            buffers,
            bytes_of(params),
            {ceil_div(shape.M, M), threadgroups, 1},
            {32 * simdgroups_each, 1, 1}}},
          {},
          {}};
}

}  // namespace mlx_delta::gpu

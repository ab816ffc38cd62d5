// The launches of route on a GPU.
#pragma once

#include "gpu/plans/qmm.h"

namespace mlx_delta::gpu {

struct RouteShape {
  std::string type;  // of x
  int M;             // 1 .. kDecodeTokens
  int K;
  int k;
  float eps;
  QmmSegment router, shared_gate;
};

inline constexpr int kMostChosen = 31;  // of one simdgroup's lanes, one is the shared expert's

inline Plan plan(const RouteShape& shape) {
  constexpr int kSimdgroups = 4;
  const int E = shape.router.rows, R = std::min(4, int(std::bit_floor(unsigned(E))));
  const RouteParams params{E, shape.eps, shape.k};
  const Buffer logits{Buffer::scratch, 0};
  std::vector<Buffer> buffers{{Buffer::input, 0}, {Buffer::input, 1}};
  for (const QmmSegment* segment : {&shape.router, &shape.shared_gate}) push_segment(buffers, *segment);
  buffers.push_back(logits);
  return {{{"route",
            "route_logits",
            {shape.type, std::to_string(R), std::to_string(shape.K), std::to_string(kSimdgroups),
             format(shape.router, shape.K), format(shape.shared_gate, shape.K)},
            buffers,
            bytes_of(params),
            {shape.M, ceil_div(E, R * kSimdgroups) + 1, 1},
            {32 * kSimdgroups, 1, 1}},
           {"route",
            "route_choose",
            {},
            {logits, {Buffer::output, 0}, {Buffer::output, 1}},
            bytes_of(params),
            {shape.M, 1, 1},
            {32, 1, 1}}},
          {int64_t(shape.M) * (E + 1) * 4},
          {}};
}

}  // namespace mlx_delta::gpu

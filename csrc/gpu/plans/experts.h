// The launches of experts on a GPU.
#pragma once

#include "gpu/plans/qmm.h"

namespace mlx_delta::gpu {

struct ExpertsShape {
  std::string type;  // of x and y
  int M;             // 1 .. kDecodeTokens
  int K;
  int k;
  int E;
  float eps;
  QmmSegment matrices[3], shared[3];  // gate, up, down; rows are those of all experts
};

// Whether the kernels have what each simdgroup takes: two rows of gate and up, four of down, and numbers of 32 bits.
inline bool has_kernel(const ExpertsShape& shape) {
  return shape.M <= kDecodeTokens && shape.matrices[0].rows / shape.E >= 2 && shape.shared[0].rows >= 2 &&
         shape.K >= 4 && int64_t(shape.matrices[0].rows) * shape.K < int64_t(1) << 32;
}

inline Plan plan(const ExpertsShape& shape) {
  constexpr int kSimdgroups = 4;
  constexpr int kDownSimdgroups = 8;  // so many stage 4096 columns at once, all that 8 experts of 512 have
  const int I = shape.matrices[0].rows / shape.E, shared_I = shape.shared[0].rows, M = shape.M, k = shape.k;
  const int stride = k * ceil_div(I, 8) * 8 + ceil_div(shared_I, 8) * 8;  // of what a token has between its products
  const ExpertsParams gate_up{M, k, shape.E, I, shared_I, stride, shape.eps};
  const ExpertsParams down{M, k, shape.E, shape.K, shape.K, stride, shape.eps};
  const Buffer x{Buffer::input, 0}, chosen{Buffer::input, 1}, weights{Buffer::input, 2}, norm{Buffer::input, 3};
  const Buffer inner{Buffer::scratch, 0};
  std::vector<Buffer> first{x, chosen, norm}, second{x, chosen, weights, inner};
  for (const auto* of : {&shape.matrices, &shape.shared}) {
    push_segment(first, (*of)[0]);
    push_segment(first, (*of)[1]);
    push_segment(second, (*of)[2]);
  }
  first.push_back(inner);
  second.push_back({Buffer::output, 0});
  return {{{"experts",
            "experts_gate_up",
            {shape.type, std::to_string(shape.K), std::to_string(kSimdgroups), format(shape.matrices[0], shape.K),
             format(shape.matrices[1], shape.K), format(shape.shared[0], shape.K), format(shape.shared[1], shape.K)},
            first,
            bytes_of(gate_up),
            {M * (k + 1), ceil_div(std::max(I, shared_I), 2 * kSimdgroups), 1},
            {32 * kSimdgroups, 1, 1}},
           {"experts",
            "experts_down",
            {shape.type, std::to_string(I), std::to_string(k), std::to_string(shared_I),
             std::to_string(kDownSimdgroups), format(shape.matrices[2], I), format(shape.shared[2], shared_I)},
            second,
            bytes_of(down),
            {M, ceil_div(shape.K, 4 * kDownSimdgroups), 1},
            {32 * kDownSimdgroups, 1, 1}}},
          {int64_t(M) * stride * 4},
          {}};
}

}  // namespace mlx_delta::gpu

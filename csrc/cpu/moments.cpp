#include "cpu/moments.h"

#include "cpu/gemm.h"
#include "cpu/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kBlock = 64;  // rows and columns of a tile

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// One tile, from sums of the inputs as they came to moments of the inputs as they are used.
void scale_and_order(const FactorMomentsArgs& args, int64_t i0, int64_t j0) {
  const int64_t n = args.cols, rows = least(kBlock, n - i0), cols = least(kBlock, n - j0);
  float tile[kBlock * kBlock];
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(tile + i * kBlock, args.sums + (i0 + i) * n + j0, size_t(cols) * sizeof(float));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t a = args.order[i0 + i], b = args.order[j0 + j];
      args.sums[(i0 + i) * n + j0 + j] =
          tile[(a - i0) * kBlock + b - j0] * (args.factor / (args.scales[a] * args.scales[b]));
    }
}

// U D U^T of the last `n` <= kBlock columns and rows of what is left: a[n, n] (stride lda) is the upper triangle.
void factor_block(float* a, int64_t lda, int64_t n, float floor, float* d) {
  for (int64_t j = n - 1; j >= 0; --j) {
    d[j] = most(a[j * lda + j], floor);  // exactly, no pivot is below what damping added
    for (int64_t i = 0; i < j; ++i) {
      const float u = a[i * lda + j] / d[j];
      for (int64_t k = 0; k <= i; ++k) a[k * lda + i] -= a[k * lda + j] * u;
    }
    for (int64_t i = 0; i < j; ++i) a[i * lda + j] /= d[j];
  }
}

}  // namespace

void add_moments(DType, const AddMomentsArgs& args) {
  const int64_t n = args.cols, rows = args.rows, blocks = blocks_of(n);
  float* turned = scratch_of<float>(0, n * rows);
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      transpose(args.x + b * kBlock, n, rows, least(kBlock, n - b * kBlock), turned + b * kBlock * rows, rows);
  });
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    float* panel = scratch_of<float>(1, rows * kBlock);
    for (int64_t b = blocks - 1 - first; b > blocks - 1 - last; --b) {  // the longest first
      const int64_t j = b * kBlock, width = least(kBlock, n - j);
      for (int64_t t = 0; t < rows; ++t)
        std::memcpy(panel + t * width, args.x + t * n + j, size_t(width) * sizeof(float));
      for (int64_t i = 0; i <= j; i += kBlock)
        gemm(turned + i * rows, rows, panel, width, args.sums + i * n + j, n, least(kBlock, n - i), width, rows);
    }
  });
}

// Blocks of columns from the last: the block's own factors, the columns above it, and what they leave of the rest.
void factor_moments(DType, const FactorMomentsArgs& args) {
  const int64_t n = args.cols, blocks = blocks_of(n);
  float* h = args.sums;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      for (int64_t c = b; c < blocks; ++c) scale_and_order(args, b * kBlock, c * kBlock);
  });
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += h[i * n + i];
  const float added = trace > 0 ? args.damping * float(trace / double(n)) : 1;
  for (int64_t i = 0; i < n; ++i) h[i * n + i] += added;

  float* above = scratch_of<float>(0, n * kBlock);   // - U D of the columns above a block, [rows, width]
  float* turned = scratch_of<float>(1, n * kBlock);  // U^T of them, [width, rows]
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const int64_t c = block * kBlock, width = least(kBlock, n - c);
    factor_block(h + c * n + c, n, width, added, args.diagonal + c);
    alignas(64) float own[kBlock * kBlock];
    transpose(h + c * n + c, n, width, width, own, width);
    parallel_for(block, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first * kBlock; i < last * kBlock; ++i) {
        float* row = h + i * n + c;
        for (int64_t j = width - 1; j >= 0; --j) {
          const float y = row[j];
          for (int64_t k = 0; k < j; ++k) row[k] -= y * own[j * width + k];
          above[i * width + j] = -y;
          row[j] = y / args.diagonal[c + j];
          turned[j * c + i] = row[j];
        }
      }
    });
    parallel_for(block, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first * kBlock; i < last * kBlock; i += kBlock)
        gemm(above + i * width, width, turned + i, c, h + i * n + i, n, kBlock, c - i, width);
    });
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

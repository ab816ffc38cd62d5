#include "cpu/moments.h"

#include "cpu/runtime/threads.h"
#include "cpu/simd/gemm.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kBlock = 64;   // rows and columns of a tile
constexpr int64_t kDepth = 512;  // rows of a panel, so that it stays in L2

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// One tile, from sums of the inputs as they came to moments of the inputs in order.
void scale_and_order(const FactorMomentsArgs& args, int64_t i0, int64_t j0) {
  const int64_t n = args.cols, rows = least(kBlock, n - i0), cols = least(kBlock, n - j0);
  float tile[kBlock * kBlock];
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(tile + i * kBlock, args.sums + (i0 + i) * n + j0, size_t(cols) * sizeof(float));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t a = args.order[i0 + i], b = args.order[j0 + j];
      args.sums[(i0 + i) * n + j0 + j] = tile[(a - i0) * kBlock + b - j0] * args.factor;
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

// x[rows, c : c + width] -= x[rows, from : to] times those rows and columns of U, or of its transpose, by panels.
void subtract_solved(const SolveMomentsArgs& args, float* x, int64_t rows, int64_t c, int64_t width, int64_t from,
                     int64_t to, bool turned) {
  const int64_t n = args.cols;
  float* panel = scratch_of<float>(1, kDepth * kBlock);
  for (int64_t k0 = from; k0 < to; k0 += kDepth) {
    const int64_t depth = least(kDepth, to - k0);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < width; ++j)
        panel[k * width + j] = -args.upper[turned ? (c + j) * n + k0 + k : (k0 + k) * n + c + j];
    gemm(x + k0, n, panel, width, x + c, n, rows, width, depth);
  }
}

// X (U D U^T)^-1 of some rows: Z U^T = X from the last column on, then Y U = Z D^-1 from the first.
void solve_rows(const SolveMomentsArgs& args, int64_t first_row, int64_t rows) {
  const int64_t n = args.cols;
  float* x = scratch_of<float>(0, kBlock * n);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < n; ++k) x[r * n + k] = args.values[(first_row + r) * n + args.order[k]];
  for (int64_t c = (blocks_of(n) - 1) * kBlock; c >= 0; c -= kBlock) {
    const int64_t width = least(kBlock, n - c);
    subtract_solved(args, x, rows, c, width, c + width, n, true);
    alignas(64) float own[kBlock * kBlock];
    transpose(args.upper + c * n + c, n, width, width, own, width);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = width - 1; j >= 0; --j)
        for (int64_t k = 0; k < j; ++k) x[r * n + c + k] -= x[r * n + c + j] * own[j * width + k];
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < n; ++k) x[r * n + k] /= args.diagonal[k];
  for (int64_t c = 0; c < n; c += kBlock) {
    const int64_t width = least(kBlock, n - c);
    subtract_solved(args, x, rows, c, width, 0, c, false);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < width; ++j)
        for (int64_t k = j + 1; k < width; ++k) x[r * n + c + k] -= x[r * n + c + j] * args.upper[(c + j) * n + c + k];
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < n; ++k) args.values[(first_row + r) * n + args.order[k]] = x[r * n + k];
}

}  // namespace

void add_moments(DType, const AddMomentsArgs& args) {
  const int64_t n = args.cols, m = args.outputs, rows = args.rows, blocks = blocks_of(n);
  const float* y = args.y ? args.y : args.x;
  float* turned = scratch_of<float>(0, m * rows);
  parallel_for(blocks_of(m), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      transpose(y + b * kBlock, m, rows, least(kBlock, m - b * kBlock), turned + b * kBlock * rows, rows);
  });
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    float* panel = scratch_of<float>(1, rows * kBlock);
    for (int64_t b = blocks - 1 - first; b > blocks - 1 - last; --b) {  // the longest first
      const int64_t j = b * kBlock, width = least(kBlock, n - j);
      for (int64_t t = 0; t < rows; ++t)
        std::memcpy(panel + t * width, args.x + t * n + j, size_t(width) * sizeof(float));
      for (int64_t i = 0; i < (args.y ? m : j + 1); i += kBlock)
        gemm(turned + i * rows, rows, panel, width, args.sums + i * n + j, n, least(kBlock, m - i), width, rows);
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
  for (int64_t i = 0; i < n; ++i) h[i * n + i] += args.damping;

  float* above = scratch_of<float>(0, n * kBlock);   // - U D of the columns above a block, [rows, width]
  float* turned = scratch_of<float>(1, n * kBlock);  // U^T of them, [width, rows]
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const int64_t c = block * kBlock, width = least(kBlock, n - c);
    factor_block(h + c * n + c, n, width, args.damping, args.diagonal + c);
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

void solve_moments(DType, const SolveMomentsArgs& args) {
  parallel_for(blocks_of(args.rows), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      solve_rows(args, block * kBlock, least(kBlock, args.rows - block * kBlock));
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

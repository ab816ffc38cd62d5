#include "cpu/fit_affine.h"

#include "cpu/fit_group.h"
#include "cpu/runtime/threads.h"
#include "cpu/simd/gemm.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kRows = 128;   // that share a panel of the feedback matrix
constexpr int64_t kDepth = 512;  // columns of a panel, so that it stays in L2

// fed[rows, n] = errors[rows, 0 : first] U[0 : first, first : first + n]: what the columns before this group left over.
void feed_forward(const FitAffineArgs& args, const float* errors, int64_t rows, int64_t first, float* fed) {
  const int64_t n = args.group_size;
  float* panel = scratch_of<float>(2, kDepth * n);
  fill(fed, rows * n, 0.f);
  for (int64_t k0 = 0; k0 < first; k0 += kDepth) {
    const int64_t depth = least(kDepth, first - k0);
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(panel + k * n, args.feedback + (k0 + k) * args.cols + first, size_t(n) * sizeof(float));
    gemm(errors + k0, args.cols, panel, n, fed, n, rows, n, depth);
  }
}

// The inverse of a group's own part of U, [n, n], whose diagonal is 1.
void invert(const FitAffineArgs& args, int64_t first, float* inverse) {
  const int64_t n = args.group_size;
  fill(inverse, n * n, 0.f);
  for (int64_t i = n - 1; i >= 0; --i) {
    const float* row = args.feedback + (first + i) * args.cols + first;
    inverse[i * n + i] = 1;
    for (int64_t k = i + 1; k < n; ++k)
      for (int64_t j = k / W * W; j < n; j += W)
        store(load(inverse + i * n + j) - load(inverse + k * n + j) * row[k], inverse + i * n + j);
  }
}

// Rounds one group again, column by column: the columns after each make up for what it leaves over, by `shares` [n, n].
// `target` [n] is changed, g.q filled.
void round_in_turn(Group& g, const Line& line, const float* shares, float* target) {
  const float inverse = inverse_of(line.scale), offset = line.bias * inverse;
  for (int j = 0; j < g.n; ++j) {
    const int from = j / W * W;
    const F q = g.quantize(load(target + from) * g.gain, inverse, offset);
    g.q[j] = q[j - from];
    const float at = target[j], left = at - (g.q[j] * line.scale + line.bias);
    for (int k = from; k < g.n; k += W) store(load(target + k) - load(shares + j * g.n + k) * left, target + k);
    target[j] = at;
  }
}

template <typename T>
void fit_rows(const FitAffineArgs& args, int64_t first_row, int64_t rows) {
  const int n = args.group_size;
  const int64_t groups = args.cols / n;
  float* weights = scratch_of<float>(0, kRows * n);
  float* targets = scratch_of<float>(1, kRows * n);
  // With feedback: what is fed to the group, how it is shared out in it, and all that was left over so far.
  float* fed = scratch_of<float>(3, kRows * n);
  float* shares = scratch_of<float>(4, int64_t(n) * n);
  float* errors = args.feedback ? scratch_of<float>(5, kRows * args.cols) : nullptr;
  Group g;
  g.n = n;
  g.top = float((1 << args.bits) - 1);
  for (int64_t i = 0; i < groups; ++i) {
    g.h = args.importance + i * n;
    F total{};
    for (int k = 0; k < n; k += W) total += load(g.h + k);
    g.total = sum(total);
    int column[kMostWeights];  // of the group, at each place
    for (int k = 0; k < n; ++k) column[k] = args.order ? int(args.order[i * n + k] - i * n) : k;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = static_cast<const T*>(args.weight) + (first_row + r) * args.cols + i * n;
      for (int k = 0; k < n; ++k) weights[r * n + k] = to_float(row[column[k]]);
    }
    std::memcpy(targets, weights, size_t(rows * n) * sizeof(float));
    if (args.feedback) {
      feed_forward(args, errors, rows, i * n, fed);
      invert(args, i * n, shares);
      gemm(fed, n, shares, n, targets, n, rows, n, n);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (first_row + r) * groups + i;
      float* target = targets + r * n;
      std::memcpy(g.w, target, size_t(n) * sizeof(float));
      const Line line = fit(g, args.bits);
      if (args.feedback) {
        round_in_turn(g, line, shares, target);
        for (int k = 0; k < n; ++k)
          errors[r * args.cols + i * n + k] = weights[r * n + k] - (g.q[k] * line.scale + line.bias);
      }
      F error{};
      for (int k = 0; k < n; k += W) {
        const F rest = load(target + k) - load(g.q + k) * line.scale - line.bias;
        error += load(g.h + k) * rest * rest;
      }
      args.errors[at] = sum(error);
      args.scales[at] = from_float<bf16>(line.scale);
      args.biases[at] = from_float<bf16>(line.bias);
      float q[kMostWeights];
      for (int k = 0; k < n; ++k) q[column[k]] = g.q[k];
      pack(q, n, args.bits, reinterpret_cast<unsigned char*>(args.packed) + at * n * args.bits / 8);
    }
  }
}

template <typename T>
void run(const FitAffineArgs& args) {
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      fit_rows<T>(args, block * kRows, least(kRows, args.rows - block * kRows));
  });
}

}  // namespace

void fit_affine(DType type, const FitAffineArgs& args) { MLX_DELTA_DISPATCH(type, run, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#include "ops/moments.h"

#include "cpu/kernels.h"
#include "mlx/allocator.h"

namespace mlx_delta {
namespace {

constexpr int kOrderBlock = 64;  // the kernel's tile

void check_sums(const char* op, const mx::array& sums) {
  check_same_dtype(op, "sums", sums, mx::float32);
  check_rank(op, "sums", sums, 2, "[K, K]");
  check_shape(op, "sums", sums, {sums.shape(0), sums.shape(0)});
  check_ready(op, "sums", sums);
}

}  // namespace

void check_ready(const char* op, const char* argument, const mx::array& a) {
  if (!a.is_available() || !a.flags().row_contiguous) fail(op, argument, "an evaluated, contiguous array", "another");
}

void check_order(const char* op, const mx::array& order, int block) {
  const int* columns = order.data<int>();
  const int n = order.shape(0);
  std::vector<bool> seen(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    const int column = columns[i];
    if (column < 0 || column >= n || column / block != i / block || seen[size_t(column)])
      fail(op, "order", "each block of " + std::to_string(block) + " a permutation of itself",
           std::to_string(column) + " at " + std::to_string(i));
    seen[size_t(column)] = true;
  }
}

void add_moments(const mx::array& sums, const mx::array& x) {
  constexpr const char* kOp = "add_moments";
  check_sums(kOp, sums);
  check_same_dtype(kOp, "x", x, mx::float32);
  check_rank(kOp, "x", x, 2, "[M, K]");
  check_shape(kOp, "x", x, {-1, sums.shape(0)});
  check_ready(kOp, "x", x);
  mx::array target = sums;  // another handle on the same memory
  cpu::kernels().add_moments(cpu::DType::f32, {target.data<float>(), x.data<float>(), x.shape(0), x.shape(1)});
}

mx::array factor_moments(const mx::array& sums, const mx::array& scales, const mx::array& order, float factor,
                         float damping) {
  constexpr const char* kOp = "factor_moments";
  check_sums(kOp, sums);
  const int n = sums.shape(0);
  check_same_dtype(kOp, "scales", scales, mx::float32);
  check_shape(kOp, "scales", scales, {n});
  check_ready(kOp, "scales", scales);
  check_same_dtype(kOp, "order", order, mx::int32);
  check_shape(kOp, "order", order, {n});
  check_ready(kOp, "order", order);
  check_order(kOp, order, kOrderBlock);
  check_positive(kOp, "factor", factor);
  check_positive(kOp, "damping", damping);
  mx::array target = sums;
  mx::array diagonal(mx::allocator::malloc(size_t(n) * sizeof(float)), {n}, mx::float32);
  cpu::kernels().factor_moments(cpu::DType::f32, {target.data<float>(), scales.data<float>(), order.data<int>(),
                                                  diagonal.data<float>(), n, factor, damping});
  return diagonal;
}

}  // namespace mlx_delta

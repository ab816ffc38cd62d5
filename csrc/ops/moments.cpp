#include "ops/moments.h"

#include "cpu/kernels.h"
#include "mlx/allocator.h"

namespace mlx_delta {
namespace {

constexpr int kOrderBlock = 64;  // the kernel's tile

void check_ready_matrix(const char* op, const char* argument, const mx::array& a) {
  check_same_dtype(op, argument, a, mx::float32);
  check_rank(op, argument, a, 2, "[rows, columns]");
  check_ready(op, argument, a);
}

void check_ready_order(const char* op, const mx::array& order, int n) {
  check_same_dtype(op, "order", order, mx::int32);
  check_shape(op, "order", order, {n});
  check_ready(op, "order", order);
  check_order(op, order, kOrderBlock);
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

void add_moments(const mx::array& sums, const mx::array& x, const std::optional<mx::array>& y) {
  constexpr const char* kOp = "add_moments";
  check_ready_matrix(kOp, "x", x);
  const int cols = x.shape(1);
  if (y) {
    check_ready_matrix(kOp, "y", *y);
    check_shape(kOp, "y", *y, {x.shape(0), -1});
  }
  const int outputs = y ? y->shape(1) : cols;
  check_ready_matrix(kOp, "sums", sums);
  check_shape(kOp, "sums", sums, {outputs, cols});
  mx::array target = sums;  // another handle on the same memory
  cpu::kernels().add_moments(cpu::DType::f32, {target.data<float>(), x.data<float>(), y ? y->data<float>() : nullptr,
                                               x.shape(0), cols, outputs});
}

mx::array factor_moments(const mx::array& sums, const mx::array& order, float factor, float damping) {
  constexpr const char* kOp = "factor_moments";
  check_ready_matrix(kOp, "sums", sums);
  const int n = sums.shape(0);
  check_shape(kOp, "sums", sums, {n, n});
  check_ready_order(kOp, order, n);
  check_positive(kOp, "factor", factor);
  check_positive(kOp, "damping", damping);
  mx::array target = sums;
  mx::array diagonal(mx::allocator::malloc(size_t(n) * sizeof(float)), {n}, mx::float32);
  cpu::kernels().factor_moments(cpu::DType::f32,
                                {target.data<float>(), order.data<int>(), diagonal.data<float>(), n, factor, damping});
  return diagonal;
}

void solve_moments(const mx::array& values, const mx::array& upper, const mx::array& diagonal, const mx::array& order) {
  constexpr const char* kOp = "solve_moments";
  check_ready_matrix(kOp, "values", values);
  const int n = values.shape(1);
  check_ready_matrix(kOp, "upper", upper);
  check_shape(kOp, "upper", upper, {n, n});
  check_same_dtype(kOp, "diagonal", diagonal, mx::float32);
  check_shape(kOp, "diagonal", diagonal, {n});
  check_ready(kOp, "diagonal", diagonal);
  check_ready_order(kOp, order, n);
  mx::array target = values;
  cpu::kernels().solve_moments(cpu::DType::f32, {target.data<float>(), upper.data<float>(), diagonal.data<float>(),
                                                 order.data<int>(), values.shape(0), n});
}

}  // namespace mlx_delta

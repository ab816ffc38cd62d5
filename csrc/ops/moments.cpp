// The second moments E[x x^T] of a matrix's inputs, and the factors by which rounding feeds its errors forward. Like
// fit_affine no nodes of a graph: they work on evaluated arrays at once, and in place, for a moment matrix of a 9B is
// 604 MB. mlx_delta.conversion.moments is the interface.
#include "cpu/moments.h"

#include "cpu/kernels.h"
#include "mlx/allocator.h"
#include "ops/binding.h"
#include "ops/checks.h"

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

// sums[K, K] += x^T x for x [M, K], in the upper triangle; with y [M, N] sums[N, K] += y^T x, all of it. All float32.
// The sums' bits do not depend on the threads, nor do those of what follows.
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

// With H = sums * factor, its rows and columns put in order (int32 [K], which of them comes at each place; every block
// of 64 is a permutation of itself), and damping added to its diagonal: the factors U, upper triangular with ones on
// its diagonal, and D, diagonal, of
//     H = U D U^T.
// U replaces sums above the diagonal, what else is there means nothing; returns D, float32 [K].
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

// values[N, K] becomes values H^-1, of which upper, diagonal and order are factors; values by column, H's by place.
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

const Binding binding([](nb::module_& m) {
  m.def("add_moments", &add_moments, "sums"_a, "x"_a, "y"_a = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Add x^T x to the upper triangle of an evaluated array, or y^T x to all of it, in place.");
  m.def("factor_moments", &factor_moments, "sums"_a, "order"_a, "factor"_a, "damping"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Factor moments into U D U^T in place; returns D.");
  m.def("solve_moments", &solve_moments, "values"_a, "upper"_a, "diagonal"_a, "order"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Multiply by the inverse of factored moments, in place.");
});

}  // namespace
}  // namespace mlx_delta

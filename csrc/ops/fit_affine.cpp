// Affine quantization by least squares, for conversion: not a node of a graph, it works on evaluated arrays at once.
#include "cpu/fit_affine.h"

#include "cpu/kernels.h"
#include "mlx/allocator.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "fit_affine";

mx::array allocated(mx::Shape shape, mx::Dtype dtype) {
  size_t size = mx::size_of(dtype);
  for (const auto n : shape) size *= size_t(n);
  return mx::array(mx::allocator::malloc(size), std::move(shape), dtype);
}

void check_feedback(const mx::array& feedback, const std::optional<mx::array>& order, int cols, int group_size) {
  check_same_dtype(kOp, "feedback", feedback, mx::float32);
  check_shape(kOp, "feedback", feedback, {cols, cols});
  check_ready(kOp, "feedback", feedback);
  if (!order) fail(kOp, "order", "one with feedback", "none");
  check_same_dtype(kOp, "order", *order, mx::int32);
  check_shape(kOp, "order", *order, {cols});
  check_ready(kOp, "order", *order);
  check_order(kOp, *order, group_size);
}

// weight [N, K], evaluated, row-contiguous, float32, float16 or bfloat16; importance float32 [K], positive. Per group
// of 32, 64 or 128 along K the s, b (bfloat16 values) and q in [0, 2^bits - 1] that minimise sum h_k (w_k - s q_k -
// b)^2 as mlx_delta.conversion.fit describes it.
// feedback (float32 [K, K]) and order (int32 [K], within groups): importance and feedback are by place, and order says
// which column is there; feedback's upper triangle is U of factor_moments, importance its D. Columns are rounded by
// place, each after the errors of those before it, times U, were added to it, and errors add up to trace(dW H dW^T).
// Returns packed uint32 [N, K * bits / 32] (MLX's packing), scales and biases bfloat16 [N, K / group], and each
// group's error float32 [N, K / group].
std::tuple<mx::array, mx::array, mx::array, mx::array> fit_affine(const mx::array& weight, const mx::array& importance,
                                                                  int bits, int group_size,
                                                                  const std::optional<mx::array>& feedback,
                                                                  const std::optional<mx::array>& order) {
  check_float(kOp, "weight", weight);
  check_rank(kOp, "weight", weight, 2, "[N, K]");
  const int rows = weight.shape(0), cols = weight.shape(1);
  if (bits < 2 || bits > 8 || bits == 7) fail(kOp, "bits", "2, 3, 4, 5, 6 or 8", std::to_string(bits));
  if (group_size != 32 && group_size != 64 && group_size != 128)
    fail(kOp, "group_size", "32, 64 or 128", std::to_string(group_size));
  if (cols % group_size != 0)
    fail(kOp, "weight", "K a multiple of the group size " + std::to_string(group_size), describe(weight));
  check_same_dtype(kOp, "importance", importance, mx::float32);
  check_shape(kOp, "importance", importance, {cols});
  check_ready(kOp, "weight", weight);
  check_ready(kOp, "importance", importance);
  if (feedback) check_feedback(*feedback, order, cols, group_size);
  const int groups = cols / group_size;
  mx::array packed = allocated({rows, cols * bits / 32}, mx::uint32);
  mx::array scales = allocated({rows, groups}, mx::bfloat16), biases = allocated({rows, groups}, mx::bfloat16);
  mx::array errors = allocated({rows, groups}, mx::float32);
  cpu::kernels().fit_affine(
      kernel_dtype(weight.dtype()),
      {weight.data<void>(), importance.data<float>(), feedback ? feedback->data<float>() : nullptr,
       feedback ? order->data<int>() : nullptr, packed.data<uint32_t>(), scales.data<cpu::bf16>(),
       biases.data<cpu::bf16>(), errors.data<float>(), rows, cols, bits, group_size});
  return {packed, scales, biases, errors};
}

const Binding binding([](nb::module_& m) {
  m.def("fit_affine", &fit_affine, "weight"_a, "importance"_a, "bits"_a, "group_size"_a, "feedback"_a = nb::none(),
        "order"_a = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Quantize an evaluated matrix by weighted least squares.");
});

}  // namespace
}  // namespace mlx_delta

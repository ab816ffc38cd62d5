#include "ops/qmm_mlx.h"

#include "mlx/compile.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace mlx_delta {
namespace {

mx::array multiply(const mx::array& x, const Matrix& w, mx::Stream s) {
  const mx::Dtype dtype = x.dtype();
  if (!w.quantized()) return mx::matmul(x, mx::transpose(mx::astype(w.weight, dtype, s), s), s);
  // MLX computes in the wider of the two types; a scale keeps its own values that way.
  return mx::astype(mx::quantized_matmul(x, w.weight, *w.scales, w.biases, true, w.group_size, w.bits, "affine", s),
                    dtype, s);
}

// silu(gate) * up in float32, as one kernel of the stream that is the default one.
std::vector<mx::array> gated(const std::vector<mx::array>& gate_up) {
  const mx::array gate = mx::astype(gate_up[0], mx::float32), up = mx::astype(gate_up[1], mx::float32);
  return {mx::astype(mx::multiply(mx::multiply(gate, mx::sigmoid(gate)), up), gate_up[0].dtype())};
}

}  // namespace

mx::array qmm_mlx(const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm,
                  float eps, const std::optional<mx::array>& residual, bool swiglu, mx::Stream stream) {
  static const auto fused_gate = mx::compile(gated, /*shapeless=*/true);
  // The norm's weight stays float32: near 1, half types would round away what it has learned.
  const mx::array h =
      norm ? mx::astype(mx::fast::rms_norm(x, mx::astype(*norm, mx::float32, stream), eps, stream), x.dtype(), stream)
           : x;
  std::vector<mx::array> products;
  for (const Matrix& segment : segments) products.push_back(multiply(h, segment, stream));
  if (swiglu) {
    const mx::StreamContext on(stream);
    products = fused_gate(products);
  }
  const mx::array y = products.size() == 1 ? products.front() : mx::concatenate(std::move(products), -1, stream);
  return residual ? mx::add(y, *residual, stream) : y;
}

}  // namespace mlx_delta

#include "ops/experts_mlx.h"

#include "mlx/compile.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "ops/qmm_mlx.h"

namespace mlx_delta {
namespace {

mx::array in_float(const mx::array& a, mx::Stream s) { return mx::astype(a, mx::float32, s); }

// x [P, 1, K] times, for each of the P, the matrix of expert[p]: [P, 1, N]; the experts are in order.
mx::array multiply(const mx::array& x, const Matrix& w, int experts, const mx::array& expert, mx::Stream s) {
  const auto stacked = [&](const mx::array& a) {
    return mx::reshape(a, {experts, a.shape(0) / experts, a.shape(1)}, s);
  };
  if (!w.quantized())
    return mx::gather_mm(x, mx::swapaxes(mx::astype(stacked(w.weight), x.dtype(), s), -1, -2, s), std::nullopt, expert,
                         true, s);
  const mx::array y = mx::gather_qmm(x, stacked(w.weight), stacked(*w.scales), stacked(*w.biases), std::nullopt, expert,
                                     true, w.group_size, w.bits, "affine", std::nullopt, true, s);
  return mx::astype(y, x.dtype(), s);
}

// silu(gate) * up in float32, as one kernel of the stream that is the default one.
std::vector<mx::array> gated(const std::vector<mx::array>& gate_up) {
  const mx::array gate = mx::astype(gate_up[0], mx::float32), up = mx::astype(gate_up[1], mx::float32);
  return {mx::astype(mx::multiply(mx::multiply(gate, mx::sigmoid(gate)), up), gate_up[0].dtype())};
}

}  // namespace

std::vector<mx::array> route_mlx(const mx::array& x, const Matrix& router, const Matrix& shared_gate,
                                 const mx::array& norm, int chosen, float eps, mx::Stream s) {
  const mx::array logits = qmm_mlx(in_float(x, s), {router, shared_gate}, norm, eps, std::nullopt, false, s);
  // Columns from .. to of the last axis.
  const auto columns = [&](const mx::array& a, int from, int to) {
    mx::Shape begin(a.ndim(), 0), end = a.shape();
    begin.back() = from;
    end.back() = to;
    return mx::slice(a, begin, end, s);
  };
  const mx::array of_experts = columns(logits, 0, router.rows);
  const mx::array of_shared = columns(logits, router.rows, router.rows + 1);
  // The k largest by their order: sorting some hundred values is what MLX has for it.
  const mx::array order = mx::argsort(mx::negative(of_experts, s), -1, s);
  const mx::array experts = columns(order, 0, chosen);
  const mx::array weights = mx::softmax(mx::take_along_axis(of_experts, experts, -1, s), -1, true, s);
  return {mx::astype(experts, mx::uint32, s), mx::concatenate({weights, mx::sigmoid(of_shared, s)}, -1, s)};
}

mx::array experts_mlx(const mx::array& x, const mx::array& chosen, const mx::array& weights,
                      const std::vector<Matrix>& matrices, const std::vector<Matrix>& shared, const mx::array& norm,
                      float eps, mx::Stream s) {
  static const auto fused_gate = mx::compile(gated, /*shapeless=*/true);
  const int K = x.shape(-1), k = chosen.shape(-1), M = int(x.size()) / K, experts = matrices[2].rows / K;
  const mx::array h = mx::astype(mx::fast::rms_norm(x, in_float(norm, s), eps, s), x.dtype(), s);
  // Pairs of a token and an expert, sorted by expert, so that one expert's are together.
  const mx::array flat = mx::reshape(chosen, {M * k}, s);
  const mx::array order = mx::argsort(flat, s), expert = mx::take(flat, order, s);
  const mx::array token = mx::floor_divide(order, mx::array(k, order.dtype()), s);
  const mx::array rows = mx::expand_dims(mx::take(mx::reshape(h, {M, K}, s), token, 0, s), 1, s);
  std::vector<mx::array> gate_up{multiply(rows, matrices[0], experts, expert, s),
                                 multiply(rows, matrices[1], experts, expert, s)};
  const mx::array inner = [&] {
    const mx::StreamContext on(s);
    return fused_gate(gate_up)[0];
  }();
  const mx::array down = mx::reshape(multiply(inner, matrices[2], experts, expert, s), {M * k, K}, s);
  const mx::array products = mx::reshape(mx::take(down, mx::argsort(order, s), 0, s), {M, k, K}, s);
  const mx::array of_shared = qmm_mlx(qmm_mlx(h, {shared[0], shared[1]}, std::nullopt, eps, std::nullopt, true, s),
                                      {shared[2]}, std::nullopt, eps, std::nullopt, false, s);
  const mx::array all = mx::concatenate({products, mx::reshape(of_shared, {M, 1, K}, s)}, 1, s);
  const mx::array weighted = mx::multiply(in_float(all, s), mx::reshape(weights, {M, k + 1, 1}, s), s);
  const mx::array sum = mx::reshape(mx::sum(weighted, 1, false, s), x.shape(), s);
  return mx::astype(mx::add(in_float(x, s), sum, s), x.dtype(), s);
}

}  // namespace mlx_delta

#include "ops/delta_inputs.h"

#include "cpu/conv1d.h"
#include "mlx/ops.h"
#include "ops/checks.h"
#include "ops/inputs.h"

namespace mlx_delta {

mx::array conv_taps(const char* op, const mx::array& weight, int C, mx::Stream stream) {
  check_float(op, "weight", weight);
  const mx::Shape taps{C, cpu::kConvWidth};
  const bool stored = weight.ndim() == 3 && weight.shape(0) == C && weight.shape(1) * weight.shape(2) == taps[1] &&
                      (weight.shape(1) == 1 || weight.shape(2) == 1);
  if (!stored) check_shape(op, "weight", weight, taps);
  return float_parameter(stored ? mx::reshape(weight, taps, stream) : weight, stream);
}

mx::array conv_state(const char* op, const std::optional<mx::array>& state, int B, int C, mx::Dtype dtype,
                     mx::Stream stream) {
  const mx::Shape shape{B, cpu::kConvState, C};
  if (!state) return contiguous(mx::zeros(shape, dtype, stream), stream);
  check_shape(op, "conv state", *state, shape);
  check_same_dtype(op, "conv state", *state, dtype);
  return contiguous(*state, stream);
}

mx::array delta_state(const char* op, const std::optional<mx::array>& state, int B, int Hv, int Dv, int Dk,
                      mx::Stream stream) {
  const mx::Shape shape{B, Hv, Dv, Dk};
  if (!state) return contiguous(mx::zeros(shape, mx::float32, stream), stream);
  check_shape(op, "delta state", *state, shape);
  check_same_dtype(op, "delta state", *state, mx::float32);
  return contiguous(*state, stream);
}

void check_delta_heads(const char* op, int Hk, int Hv, const mx::array& A_log, const mx::array& dt_bias) {
  if (Hk <= 0 || Hv % Hk != 0)
    fail(op, "heads", "value heads a multiple of key heads", std::to_string(Hv) + " and " + std::to_string(Hk));
  check_shape(op, "A_log", A_log, {Hv});
  check_float(op, "A_log", A_log);
  check_shape(op, "dt_bias", dt_bias, {Hv});
  check_float(op, "dt_bias", dt_bias);
}

}  // namespace mlx_delta

#include "ops/conv1d.h"

#include "cpu/kernels.h"
#include "gpu/conv1d.h"
#include "mlx/ops.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "conv1d";

class Conv1d : public Primitive {
 public:
  Conv1d(mx::Stream stream, int mask) : Primitive(kOp, stream), mask_(mask) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    const mx::array& x = inputs[0];
    mx::array &y = outputs[0], &state = outputs[1];
    allocate(y);
    donate_or_copy(inputs[2], state, stream());
    const cpu::Conv1dArgs args{rows_of(x, 1, stream()),
                               inputs[1].data<float>(),
                               data_or_null<bool>(inputs, mask_),
                               state.data<void>(),
                               state.data<void>(),
                               y.data<void>(),
                               x.shape(0),
                               x.shape(1),
                               x.shape(2)};
    run_kernel(stream(), cpu::kernels().conv1d, x.dtype(), args);
    note_states(inputs, outputs, {}, {1}, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array& x = inputs[0];
    return gpu::plan(gpu::Conv1dShape{metal_type(x.dtype()), x.shape(0), x.shape(1), x.shape(2), mask_});
  }

 private:
  int mask_;
};

}  // namespace

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

std::pair<mx::array, mx::array> conv1d(const mx::array& x, const mx::array& weight,
                                       const std::optional<mx::array>& state, const std::optional<mx::array>& mask,
                                       mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "x", x);
  check_rank(kOp, "x", x, 3, "[B, T, C]");
  const int B = x.shape(0), T = x.shape(1), C = x.shape(2);
  std::vector<mx::array> inputs{sliced(x, s), conv_taps(kOp, weight, C, s), conv_state(kOp, state, B, C, x.dtype(), s)};
  int mask_index = -1;
  if (mask) mask_index = push_optional(inputs, token_mask(kOp, *mask, B, T, s));
  auto out = mx::array::make_arrays({x.shape(), inputs[2].shape()}, {x.dtype(), x.dtype()},
                                    std::make_shared<Conv1d>(s, mask_index), inputs);
  return {out[0], out[1]};
}

}  // namespace mlx_delta

// conv1d: depthwise causal convolution of width 4 over T tokens, then SiLU.
//
//   h = concat(state, x)                                                     [B, 3 + T, C]
//   y[b, t, c] = silu(sum_j weight[c, j] h[b, t + j, c])                     [B, T, C]
//   new state = the last three rows of h                                     [B, 3, C], oldest first
//
// mask [B, T]: a token whose mask is false is not there: the window skips it, its y is 0.
// x, state, y: one float dtype. Sums are float32. Without a state: zeros. The state is updated in place where possible.
#include "cpu/conv1d.h"

#include "cpu/kernels.h"
#include "gpu/plans/conv1d.h"
#include "mlx/ops.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/delta_inputs.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/primitive.h"

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

const Binding binding([](nb::module_& m) {
  m.def("conv1d", &conv1d, "x"_a, "weight"_a, "state"_a = nb::none(), nb::kw_only(), "mask"_a = nb::none(),
        "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

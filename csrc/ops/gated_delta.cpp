// gated_delta: the gated delta rule (Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464), per value
// head h with key head h // (Hv / Hk), state S [Dv, Dk]:
//
//   q = q * rsqrt(sum(q^2) + 1e-6) * Dk^-0.5,  k = k * rsqrt(sum(k^2) + 1e-6)
//   g = exp(-exp(A_log) * softplus(a + dt_bias)),  beta = sigmoid(b)
//   S = g S;  S += beta (v - S k) k^T;  y = S q                              for each token
//
// q, k [B, T, Hk, Dk]; v, y [B, T, Hv, Dv]; a, b [B, T, Hv]: one float dtype. A_log, dt_bias [Hv]: any float dtype.
// state float32 [B, Hv, Dv, Dk] (none: zeros), updated in place where possible. T > 16 runs in chunks of 64 tokens,
// counted from the first token that is there.
// mask [B, T]: a token whose mask is false is not there: it leaves the state alone, its y is 0.
#include "cpu/gated_delta.h"

#include "cpu/kernels.h"
#include "gpu/plans/gated_delta.h"
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

constexpr const char* kOp = "gated_delta";

class GatedDelta : public Primitive {
 public:
  GatedDelta(mx::Stream stream, int mask) : Primitive(kOp, stream), mask_(mask) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    const mx::array &q = inputs[0], &v = inputs[2];
    mx::array &y = outputs[0], &state = outputs[1];
    allocate(y);
    donate_or_copy(inputs[7], state, stream());
    const auto rows = [&](int input) { return rows_of(inputs[size_t(input)], input < 3 ? 2 : 1, stream()); };
    const cpu::GatedDeltaArgs args{rows(0),
                                   rows(1),
                                   rows(2),
                                   rows(3),
                                   rows(4),
                                   inputs[5].data<float>(),
                                   inputs[6].data<float>(),
                                   data_or_null<bool>(inputs, mask_),
                                   state.data<float>(),
                                   y.data<void>(),
                                   v.shape(0),
                                   v.shape(1),
                                   q.shape(2),
                                   v.shape(2),
                                   q.shape(3),
                                   v.shape(3)};
    run_kernel(stream(), cpu::kernels().gated_delta, q.dtype(), args);
    note_states(inputs, outputs, {}, {1}, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array &q = inputs[0], &v = inputs[2];
    return gpu::plan(gpu::GatedDeltaShape{metal_type(q.dtype()), v.shape(0), v.shape(1), q.shape(2), v.shape(2),
                                          q.shape(3), v.shape(3), mask_});
  }

 private:
  int mask_;
};

std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v,
                                            const mx::array& a, const mx::array& b, const mx::array& A_log,
                                            const mx::array& dt_bias, const std::optional<mx::array>& state,
                                            const std::optional<mx::array>& mask, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "q", q);
  check_rank(kOp, "q", q, 4, "[B, T, Hk, Dk]");
  check_rank(kOp, "v", v, 4, "[B, T, Hv, Dv]");
  const int B = q.shape(0), T = q.shape(1), Hk = q.shape(2), Dk = q.shape(3), Hv = v.shape(2), Dv = v.shape(3);
  check_shape(kOp, "k", k, q.shape());
  check_shape(kOp, "v", v, {B, T, Hv, Dv});
  check_shape(kOp, "a", a, {B, T, Hv});
  check_shape(kOp, "b", b, {B, T, Hv});
  check_same_dtype(kOp, "k", k, q.dtype());
  check_same_dtype(kOp, "v", v, q.dtype());
  check_same_dtype(kOp, "a", a, q.dtype());
  check_same_dtype(kOp, "b", b, q.dtype());
  check_delta_heads(kOp, Hk, Hv, A_log, dt_bias);
  if (on_gpu(s)) gpu::check_head_dims(kOp, {Dk, Dv});

  std::vector<mx::array> inputs;
  for (const mx::array* input : {&q, &k, &v, &a, &b}) inputs.push_back(sliced(*input, s));
  inputs.push_back(float_parameter(A_log, s));
  inputs.push_back(float_parameter(dt_bias, s));
  inputs.push_back(delta_state(kOp, state, B, Hv, Dv, Dk, s));
  int mask_index = -1;
  if (mask) mask_index = push_optional(inputs, token_mask(kOp, *mask, B, T, s));
  auto out = mx::array::make_arrays({v.shape(), inputs[7].shape()}, {q.dtype(), mx::float32},
                                    std::make_shared<GatedDelta>(s, mask_index), inputs);
  return {out[0], out[1]};
}

const Binding binding([](nb::module_& m) {
  m.def("gated_delta", &gated_delta, "q"_a, "k"_a, "v"_a, "a"_a, "b"_a, "A_log"_a, "dt_bias"_a, "state"_a = nb::none(),
        nb::kw_only(), "mask"_a = nb::none(), "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

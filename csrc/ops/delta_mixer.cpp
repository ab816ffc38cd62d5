// delta_mixer: everything between the two projections of a gated-delta layer, for decoding (T small).
//
//   projection = [q | k | v | z | b | a]                     [B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv]
//   q, k, v = conv1d([q | k | v])                            as ops/conv1d.cpp
//   y = gated_delta(q, k, v, a, b)                           as ops/gated_delta.cpp, token by token
//   y = norm * y * rsqrt(mean(y^2) + eps) * silu(z)          per value head
//
// Returns y [B, T, Hv Dv] and the new conv state [B, 3, C] and delta state float32 [B, Hv, Dv, Dk], both updated in
// place where possible; C = 2 Hk Dk + Hv Dv. projection, conv state and y: one float dtype; nothing between is rounded.
// mask [B, T]: a token whose mask is false is not there: it leaves both states alone, its y is 0.
//
// For tokens that may be taken back (speculation): with keep = false the states returned are those before them. Which
// ones count is known later; their projections come again as `pending` [B, P, ..] of the next call, which takes the
// states through them first. So states are read and written once a call, however many tokens come, and no copy of them
// is made; bit for bit they are what those tokens alone leave.
#include "cpu/delta_mixer.h"

#include "cpu/kernels.h"
#include "gpu/plans/delta_mixer.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/delta_inputs.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "delta_mixer";

class DeltaMixer : public Primitive {
 public:
  DeltaMixer(mx::Stream stream, int mask, int pending, bool keep, float eps)
      : Primitive(kOp, stream), mask_(mask), pending_(pending), keep_(keep), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    const mx::array &projection = inputs[0], &norm = inputs[4];
    mx::array &y = outputs[0], &conv = outputs[1], &delta = outputs[2];
    allocate(y);
    donate_or_copy(inputs[5], conv, stream());
    donate_or_copy(inputs[6], delta, stream());
    const int64_t Hv = delta.shape(1), Dv = delta.shape(2), Dk = delta.shape(3);
    const int64_t Hk = (conv.shape(2) - Hv * Dv) / (2 * Dk);
    const cpu::DeltaMixerArgs args{projection.data<void>(),
                                   data_or_null<void>(inputs, pending_),
                                   inputs[1].data<float>(),
                                   inputs[2].data<float>(),
                                   inputs[3].data<float>(),
                                   norm.data<float>(),
                                   data_or_null<bool>(inputs, mask_),
                                   conv.data<void>(),
                                   conv.data<void>(),
                                   delta.data<float>(),
                                   y.data<void>(),
                                   projection.shape(0),
                                   pending_tokens(inputs),
                                   projection.shape(1),
                                   Hk,
                                   Hv,
                                   Dk,
                                   Dv,
                                   keep_,
                                   eps_};
    run_kernel(stream(), cpu::kernels().delta_mixer, y.dtype(), args);
    note_states(inputs, outputs, {}, {1, 2}, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::array &projection = inputs[0], &delta = inputs[6];
    const int Hv = delta.shape(1), Dv = delta.shape(2), Dk = delta.shape(3);
    const int Hk = (inputs[5].shape(2) - Hv * Dv) / (2 * Dk);
    return gpu::plan(gpu::DeltaMixerShape{metal_type(projection.dtype()), projection.shape(0), projection.shape(1),
                                          pending_tokens(inputs), Hk, Hv, Dk, Dv, keep_, eps_, mask_, pending_});
  }

 private:
  int pending_tokens(const std::vector<mx::array>& inputs) const {
    return pending_ < 0 ? 0 : inputs[size_t(pending_)].shape(1);
  }

  int mask_;     // index of the input, or -1
  int pending_;  // likewise
  bool keep_;
  float eps_;
};

std::tuple<mx::array, mx::array, mx::array> delta_mixer(const mx::array& projection, const mx::array& conv_weight,
                                                        const mx::array& A_log, const mx::array& dt_bias,
                                                        const mx::array& norm, const std::optional<mx::array>& conv,
                                                        const std::optional<mx::array>& delta, int key_heads,
                                                        int key_dim, float eps, const std::optional<mx::array>& mask,
                                                        const std::optional<mx::array>& pending, bool keep,
                                                        mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "projection", projection);
  check_rank(kOp, "projection", projection, 3, "[B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv]");
  check_rank(kOp, "A_log", A_log, 1, "[Hv]");
  check_rank(kOp, "norm", norm, 1, "[Dv]");
  check_float(kOp, "norm", norm);
  check_positive(kOp, "key_dim", key_dim);
  check_positive(kOp, "eps", eps);
  const int B = projection.shape(0), T = projection.shape(1), Hv = A_log.shape(0), Dv = norm.shape(0);
  check_delta_heads(kOp, key_heads, Hv, A_log, dt_bias);
  const int C = 2 * key_heads * key_dim + Hv * Dv;
  check_shape(kOp, "projection", projection, {B, T, C + Hv * Dv + 2 * Hv});
  if (pending) {
    check_rank(kOp, "pending", *pending, 3, "[B, P, 2 Hk Dk + 2 Hv Dv + 2 Hv]");
    check_shape(kOp, "pending", *pending, {B, pending->shape(1), projection.shape(2)});
    check_same_dtype(kOp, "pending", *pending, projection.dtype());
  }
  if (on_gpu(s)) gpu::check_head_dims(kOp, {key_dim, Dv});

  std::vector<mx::array> inputs{contiguous(projection, s),
                                conv_taps(kOp, conv_weight, C, s),
                                float_parameter(A_log, s),
                                float_parameter(dt_bias, s),
                                float_parameter(norm, s),
                                conv_state(kOp, conv, B, C, projection.dtype(), s),
                                delta_state(kOp, delta, B, Hv, Dv, key_dim, s)};
  int mask_index = -1;
  if (mask) mask_index = push_optional(inputs, token_mask(kOp, *mask, B, T, s));
  int pending_index = -1;
  if (pending) pending_index = push_optional(inputs, contiguous(*pending, s));
  auto out = mx::array::make_arrays({{B, T, Hv * Dv}, inputs[5].shape(), inputs[6].shape()},
                                    {projection.dtype(), projection.dtype(), mx::float32},
                                    std::make_shared<DeltaMixer>(s, mask_index, pending_index, keep, eps), inputs);
  return {out[0], out[1], out[2]};
}

const Binding binding([](nb::module_& m) {
  m.def("delta_mixer", &delta_mixer, "projection"_a, "conv_weight"_a, "A_log"_a, "dt_bias"_a, "norm"_a,
        "conv_state"_a.none(), "delta_state"_a.none(), nb::kw_only(), "key_heads"_a, "key_dim"_a, "eps"_a = 1e-6,
        "mask"_a = nb::none(), "pending"_a = nb::none(), "keep"_a = true, "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

// attention_prepare: from the projection of an attention layer to its query, with keys and values in the cache.
//
//   projection = [(q | gate) per query head | k | v]         [B, T, (2 Hq + 2 Hkv) D]
//   q = rope(q * rsqrt(mean(q^2) + eps) * q_norm)            per head; k likewise with k_norm
//   keys[:, :, offset : offset + T] = k, values likewise     keys, values [B, Hkv, S, D], or in 8 bits: uint8
//                                                            [B, Hkv, S, kv_row_bytes(D)] (kv_layout.h)
//
// rope turns the pairs (i, i + rope_dim / 2) of the first rope_dim values of a head by position * theta^(-2i/rope_dim).
// positions int [B, T], or [3, B, T] for M-RoPE (T, H, W; interleaved: frequency i follows H where i % 3 = 1 and
// i / 3 < sections[1], W where i % 3 = 2 and i / 3 < sections[2], else T); none: offset + t.
// Returns q [B, Hq, T, D], keys, values. The cache is updated in place where possible. One float dtype.
#include "cpu/attention_prepare.h"

#include "cpu/kernels.h"
#include "gpu/plans/attention_prepare.h"
#include "mlx/ops.h"
#include "ops/attention_inputs.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/kv_rows.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "attention_prepare";

class AttentionPrepare : public Primitive {
 public:
  AttentionPrepare(mx::Stream stream, int positions, int offset, Rope rope, float eps)
      : Primitive(kOp, stream), positions_(positions), offset_(offset), rope_(rope), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    mx::array &q = outputs[0], &keys = outputs[1], &values = outputs[2];
    allocate(q);
    donate_or_copy(inputs[3], keys, stream());
    donate_or_copy(inputs[4], values, stream());
    const int B = q.shape(0), T = q.shape(2);
    const cpu::AttentionPrepareArgs args{inputs[0].data<void>(),
                                         inputs[1].data<float>(),
                                         inputs[2].data<float>(),
                                         data_or_null<int32_t>(inputs, positions_),
                                         q.data<void>(),
                                         q.shape(1),
                                         keys.shape(1),
                                         q.shape(3),
                                         int64_t(B) * T,
                                         rope_.dim,
                                         {rope_.sections[0], rope_.sections[1], rope_.sections[2]},
                                         rope_.theta,
                                         eps_,
                                         in_eight_bits(keys),
                                         1,
                                         {{keys.data<void>(), values.data<void>(), 0, B, T, keys.shape(2), offset_}}};
    run_kernel(stream(), cpu::kernels().attention_prepare, q.dtype(), args);
    note_states(inputs, outputs, {}, {1, 2}, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array &projection = inputs[0], &keys = inputs[3];
    const int Hkv = keys.shape(1), D = inputs[1].shape(0);
    return gpu::plan(gpu::AttentionPrepareShape{metal_type(projection.dtype()), in_eight_bits(keys),
                                                projection.shape(0), projection.shape(1),
                                                projection.shape(2) / (2 * D) - Hkv, Hkv, D, keys.shape(2), offset_,
                                                rope_.theta, rope_.dim, rope_.sections, eps_, positions_});
  }

 private:
  int positions_;
  int offset_;
  Rope rope_;
  float eps_;
};

std::tuple<mx::array, mx::array, mx::array> attention_prepare(const mx::array& projection, const mx::array& q_norm,
                                                              const mx::array& k_norm, const mx::array& keys,
                                                              const mx::array& values, int offset, const Rope& rope,
                                                              float eps, const std::optional<mx::array>& positions,
                                                              mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  const AttentionHeads heads = attention_heads(kOp, projection, q_norm, k_norm, keys, rope, eps, s);
  const int B = projection.shape(0), T = projection.shape(1);
  check_room(kOp, keys, values, heads, projection.dtype(), B, T, offset, "offset");

  std::vector<mx::array> inputs{contiguous(projection, s), float_parameter(q_norm, s), float_parameter(k_norm, s),
                                contiguous(keys, s), contiguous(values, s)};
  int positions_index = -1;
  if (positions) positions_index = push_optional(inputs, position_axes(kOp, *positions, {B, T}, s));
  auto out = mx::array::make_arrays({{B, heads.Hq, T, heads.D}, keys.shape(), values.shape()},
                                    {projection.dtype(), keys.dtype(), keys.dtype()},
                                    std::make_shared<AttentionPrepare>(s, positions_index, offset, rope, eps), inputs);
  return {out[0], out[1], out[2]};
}

const Binding binding([](nb::module_& m) {
  m.def(
      "attention_prepare",
      [](const mx::array& projection, const mx::array& q_norm, const mx::array& k_norm, const mx::array& keys,
         const mx::array& values, int offset, float rope_theta, int rope_dim, std::tuple<int, int, int> rope_sections,
         float eps, const std::optional<mx::array>& positions, mx::StreamOrDevice stream) {
        const auto [t, h, w] = rope_sections;
        return attention_prepare(projection, q_norm, k_norm, keys, values, offset, {rope_theta, rope_dim, {t, h, w}},
                                 eps, positions, stream);
      },
      "projection"_a, "q_norm"_a, "k_norm"_a, "keys"_a, "values"_a, nb::kw_only(), "offset"_a, "rope_theta"_a,
      "rope_dim"_a, "rope_sections"_a, "eps"_a = 1e-6, "positions"_a = nb::none(), "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

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

struct Rope {
  float theta;
  int dim;
  std::array<int, 3> sections;
};

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
    const cpu::AttentionPrepareArgs args{inputs[0].data<void>(),
                                         inputs[1].data<float>(),
                                         inputs[2].data<float>(),
                                         data_or_null<int32_t>(inputs, positions_),
                                         q.data<void>(),
                                         keys.data<void>(),
                                         values.data<void>(),
                                         q.shape(0),
                                         q.shape(2),
                                         q.shape(1),
                                         keys.shape(1),
                                         q.shape(3),
                                         keys.shape(2),
                                         offset_,
                                         rope_.dim,
                                         {rope_.sections[0], rope_.sections[1], rope_.sections[2]},
                                         rope_.theta,
                                         eps_,
                                         in_eight_bits(keys)};
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

void check_rope(const Rope& rope, int D) {
  if (rope.dim <= 0 || rope.dim % 2 != 0 || rope.dim > D)
    fail(kOp, "rope_dim", "an even number up to head_dim = " + std::to_string(D), std::to_string(rope.dim));
  check_positive(kOp, "rope_theta", rope.theta);
  int sum = 0;
  for (int section : rope.sections) sum += section < 0 ? rope.dim : section;
  if (sum != rope.dim / 2)
    fail(kOp, "rope_sections", "three counts adding up to rope_dim / 2 = " + std::to_string(rope.dim / 2),
         std::to_string(sum));
}

mx::array position_axes(const mx::array& positions, int B, int T, mx::Stream s) {
  if (!mx::issubdtype(positions.dtype(), mx::integer)) fail(kOp, "positions", "integers", describe(positions));
  if (positions.ndim() == 2)
    check_shape(kOp, "positions", positions, {B, T});
  else
    check_shape(kOp, "positions", positions, {3, B, T});
  const mx::array as_int = positions.dtype() == mx::int32 ? positions : mx::astype(positions, mx::int32, s);
  return contiguous(positions.ndim() == 2 ? mx::broadcast_to(as_int, {3, B, T}, s) : as_int, s);
}

std::tuple<mx::array, mx::array, mx::array> attention_prepare(const mx::array& projection, const mx::array& q_norm,
                                                              const mx::array& k_norm, const mx::array& keys,
                                                              const mx::array& values, int offset, const Rope& rope,
                                                              float eps, const std::optional<mx::array>& positions,
                                                              mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "projection", projection);
  check_rank(kOp, "projection", projection, 3, "[B, T, (2 Hq + 2 Hkv) D]");
  check_rank(kOp, "keys", keys, 4, "[B, Hkv, S, D]");
  if (in_eight_bits(keys)) check_rank(kOp, "q_norm", q_norm, 1, "[D]");
  const int B = projection.shape(0), T = projection.shape(1), Hkv = keys.shape(1), S = keys.shape(2),
            D = in_eight_bits(keys) ? q_norm.shape(0) : keys.shape(3);
  const int Hq = projection.shape(2) / (2 * D) - Hkv;
  if (projection.shape(2) % (2 * D) != 0 || Hq <= 0 || Hq % Hkv != 0)
    fail(kOp, "projection",
         "[B, T, (2 Hq + 2 Hkv) D], Hq a multiple of Hkv = " + std::to_string(Hkv) + ", D = " + std::to_string(D),
         describe(projection));
  check_kept(kOp, keys, values, B, D, projection.dtype());
  for (const auto& [name, norm] : {std::pair{"q_norm", &q_norm}, std::pair{"k_norm", &k_norm}}) {
    check_shape(kOp, name, *norm, {D});
    check_float(kOp, name, *norm);
  }
  if (offset < 0 || offset > S - T)
    fail(kOp, "offset", "0 to " + std::to_string(S - T) + " (cache rows less new tokens)", std::to_string(offset));
  check_rope(rope, D);
  check_positive(kOp, "eps", eps);
  if (on_gpu(s)) gpu::check_cached_head_dim(kOp, D, in_eight_bits(keys));

  std::vector<mx::array> inputs{contiguous(projection, s), float_parameter(q_norm, s), float_parameter(k_norm, s),
                                contiguous(keys, s), contiguous(values, s)};
  int positions_index = -1;
  if (positions) positions_index = push_optional(inputs, position_axes(*positions, B, T, s));
  auto out = mx::array::make_arrays({{B, Hq, T, D}, keys.shape(), values.shape()},
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

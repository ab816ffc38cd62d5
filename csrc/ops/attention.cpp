// attention: causal grouped-query attention over the KV cache, times the sigmoid of the output gate.
//
//   p = softmax_s(scale q . keys[s])      s from start[b] to length - T + t, for new token t
//   y = (p @ values) * sigmoid(gate)      [B, T, Hq D]
//
// q [B, Hq, T, D]; keys, values [B, Hkv, S, D] with `length` valid rows, the T new ones last, or in 8 bits uint8
// [B, Hkv, S, kv_row_bytes(D)] (kv_layout.h); head h reads key head h // (Hq / Hkv). The gate is read in place from
// projection [B, T, (q | gate) per query head | ...]. start int [B]: the first row of a left-padded sequence (none: 0);
// a token before it gives 0. Sums are float32. One float dtype.
#include "cpu/attention.h"

#include "cpu/kernels.h"
#include "decode_tokens.h"
#include "gpu/plans/attention.h"
#include "mlx/ops.h"
#include "ops/attention_mlx.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/kv_rows.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "attention";

class Attention : public Primitive {
 public:
  Attention(mx::Stream stream, int start, int length, float scale)
      : Primitive(kOp, stream), start_(start), length_(length), scale_(scale) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array &q = inputs[0], &projection = inputs[1], &keys = inputs[2];
    mx::array& y = outputs[0];
    allocate(y);
    const int B = q.shape(0), T = q.shape(2);
    const cpu::AttentionArgs args{
        q.data<void>(),
        projection.data<void>(),
        data_or_null<int32_t>(inputs, start_),
        y.data<void>(),
        q.shape(1),
        keys.shape(1),
        q.shape(3),
        projection.shape(2),
        scale_,
        in_eight_bits(keys),
        T <= kDecodeTokens,  // whatever the heads are: several tokens at once have the bits of each
        1,
        {{const_cast<void*>(keys.data<void>()), const_cast<void*>(inputs[3].data<void>()), 0, B, T, keys.shape(2),
          length_ - T}}};
    run_kernel(stream(), cpu::kernels().attention, q.dtype(), args);
    note_states(inputs, outputs, state_inputs(), {}, stream());
  }

  std::vector<int> state_inputs() const override { return {2, 3}; }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array &q = inputs[0], &projection = inputs[1], &keys = inputs[2];
    return gpu::plan(gpu::AttentionShape{metal_type(q.dtype()), in_eight_bits(keys), q.shape(0), q.shape(2), q.shape(1),
                                         keys.shape(1), q.shape(3), keys.shape(2), length_, projection.shape(2), scale_,
                                         start_});
  }

 private:
  int start_;
  int length_;
  float scale_;
};

mx::array attention(const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values,
                    int length, float scale, const std::optional<mx::array>& start, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "q", q);
  check_rank(kOp, "q", q, 4, "[B, Hq, T, D]");
  check_rank(kOp, "keys", keys, 4, "[B, Hkv, S, D]");
  const int B = q.shape(0), Hq = q.shape(1), T = q.shape(2), D = q.shape(3), Hkv = keys.shape(1), S = keys.shape(2);
  check_kept(kOp, keys, values, B, D, q.dtype());
  if (Hq % Hkv != 0) fail(kOp, "q", "query heads a multiple of Hkv = " + std::to_string(Hkv), describe(q));
  check_rank(kOp, "projection", projection, 3, "[B, T, (q | gate) per query head | ...]");
  check_shape(kOp, "projection", projection, {B, T, -1});
  if (projection.shape(2) < 2 * Hq * D)
    fail(kOp, "projection", "at least 2 Hq D = " + std::to_string(2 * Hq * D) + " columns", describe(projection));
  check_same_dtype(kOp, "projection", projection, q.dtype());
  if (length < T || length > S)
    fail(kOp, "length", std::to_string(T) + " to " + std::to_string(S), std::to_string(length));
  check_positive(kOp, "scale", scale);
  if (start) {
    check_shape(kOp, "start", *start, {B});
    if (!mx::issubdtype(start->dtype(), mx::integer)) fail(kOp, "start", "integers", describe(*start));
  }
  if (on_gpu(s)) {
    if (T > kDecodeTokens) return attention_mlx(q, projection, keys, values, length, scale, start, s);
    gpu::check_cached_head_dim(kOp, D, in_eight_bits(keys));
  }

  std::vector<mx::array> inputs{contiguous(q, s), contiguous(projection, s), contiguous(keys, s),
                                contiguous(values, s)};
  int start_index = -1;
  if (start)
    start_index =
        push_optional(inputs, contiguous(start->dtype() == mx::int32 ? *start : mx::astype(*start, mx::int32, s), s));
  return mx::array({B, T, Hq * D}, q.dtype(), std::make_shared<Attention>(s, start_index, length, scale),
                   std::move(inputs));
}

const Binding binding([](nb::module_& m) {
  m.def("attention", &attention, "q"_a, "projection"_a, "keys"_a, "values"_a, nb::kw_only(), "length"_a, "scale"_a,
        "start"_a = nb::none(), "stream"_a = nb::none());
  m.def(
      "attention_mlx",
      [](const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values, int length,
         float scale, const std::optional<mx::array>& start, mx::StreamOrDevice stream) {
        return attention_mlx(q, projection, keys, values, length, scale, start, mx::to_stream(stream));
      },
      "q"_a, "projection"_a, "keys"_a, "values"_a, nb::kw_only(), "length"_a, "scale"_a, "start"_a = nb::none(),
      "stream"_a = nb::none(), "For tests: what attention of many tokens is on a GPU, anywhere.");
});

}  // namespace
}  // namespace mlx_delta

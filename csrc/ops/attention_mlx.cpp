#include "ops/attention_mlx.h"

#include "mlx/compile.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "ops/kv_rows.h"

namespace mlx_delta {
namespace {

// y * sigmoid(gate) in float32, as one kernel of the stream that is the default one.
std::vector<mx::array> gated(const std::vector<mx::array>& y_gate) {
  const mx::array y = mx::astype(y_gate[0], mx::float32), gate = mx::astype(y_gate[1], mx::float32);
  return {mx::astype(mx::multiply(y, mx::sigmoid(gate)), y_gate[0].dtype())};
}

// The first `length` rows of the cache, [B, Hkv, length, D] of dtype.
mx::array cached(const mx::array& rows, int length, int D, mx::Dtype dtype) {
  const int B = rows.shape(0), Hkv = rows.shape(1), width = rows.shape(3);
  const mx::array valid = mx::slice(rows, {0, 0, 0, 0}, {B, Hkv, length, width});
  if (!in_eight_bits(rows)) return valid;
  const mx::array q = mx::view(mx::contiguous(mx::slice(valid, {0, 0, 0, 0}, {B, Hkv, length, D})), mx::int8);
  const mx::array scales =
      mx::view(mx::contiguous(mx::slice(valid, {0, 0, 0, D}, {B, Hkv, length, width})), mx::bfloat16);
  const mx::array of_columns =
      mx::slice(mx::repeat(mx::astype(scales, mx::float32), kKvGroup, 3), {0, 0, 0, 0}, {B, Hkv, length, D});
  return mx::astype(mx::multiply(mx::astype(q, mx::float32), of_columns), dtype);
}

}  // namespace

mx::array attention_mlx(const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values,
                        int length, float scale, const std::optional<mx::array>& start, mx::Stream stream) {
  static const auto fused_gate = mx::compile(gated, /*shapeless=*/true);
  const int B = q.shape(0), Hq = q.shape(1), T = q.shape(2), D = q.shape(3);
  const mx::StreamContext on(stream);
  const mx::array k = cached(keys, length, D, q.dtype()), v = cached(values, length, D, q.dtype());
  mx::array y = mx::zeros({0});
  if (start) {
    const mx::array rows = mx::arange(length, mx::int32);
    const mx::array last = mx::reshape(mx::arange(length - T, length, mx::int32), {1, 1, T, 1});
    const mx::array first = mx::reshape(mx::astype(*start, mx::int32), {B, 1, 1, 1});
    const mx::array visible = mx::logical_and(mx::less_equal(rows, last), mx::greater_equal(rows, first));
    y = mx::fast::scaled_dot_product_attention(q, k, v, scale, "array", visible);
    y = mx::where(mx::greater_equal(last, first), y, mx::zeros({1}, q.dtype()));  // a padding token sees nothing
  } else {
    y = mx::fast::scaled_dot_product_attention(q, k, v, scale, "causal");
  }
  const mx::array heads = mx::reshape(mx::slice(projection, {0, 0, 0}, {B, T, 2 * Hq * D}), {B, T, Hq, 2, D});
  const mx::array gate = mx::squeeze(mx::slice(heads, {0, 0, 0, 1, 0}, {B, T, Hq, 2, D}), 3);
  return mx::reshape(fused_gate({mx::transpose(y, {0, 2, 1, 3}), gate})[0], {B, T, Hq * D});
}

}  // namespace mlx_delta

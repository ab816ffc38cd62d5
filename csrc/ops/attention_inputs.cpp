#include "ops/attention_inputs.h"

#include "gpu/plans/kv_rows.h"
#include "mlx/ops.h"
#include "ops/checks.h"
#include "ops/inputs.h"
#include "ops/kv_rows.h"

namespace mlx_delta {
namespace {

void check_rope(const char* op, const Rope& rope, int D) {
  if (rope.dim <= 0 || rope.dim % 2 != 0 || rope.dim > D)
    fail(op, "rope_dim", "an even number up to head_dim = " + std::to_string(D), std::to_string(rope.dim));
  check_positive(op, "rope_theta", rope.theta);
  int64_t sum = 0;
  for (int section : rope.sections) sum += section < 0 ? rope.dim : section;
  if (sum != rope.dim / 2)
    fail(op, "rope_sections", "three counts adding up to rope_dim / 2 = " + std::to_string(rope.dim / 2),
         std::to_string(sum));
}

}  // namespace

AttentionHeads attention_heads(const char* op, const mx::array& projection, const mx::array& q_norm,
                               const mx::array& k_norm, const mx::array& keys, const Rope& rope, float eps,
                               mx::Stream s) {
  check_float(op, "projection", projection);
  check_rank(op, "projection", projection, 3, "[B, T, (2 Hq + 2 Hkv) D]");
  check_rank(op, "keys", keys, 4, "[B, Hkv, S, D]");
  if (in_eight_bits(keys)) check_rank(op, "q_norm", q_norm, 1, "[D]");
  const int Hkv = keys.shape(1), D = in_eight_bits(keys) ? q_norm.shape(0) : keys.shape(3);
  const int Hq = projection.shape(2) / (2 * D) - Hkv;
  if (projection.shape(2) % (2 * D) != 0 || Hq <= 0 || Hq % Hkv != 0)
    fail(op, "projection",
         "[B, T, (2 Hq + 2 Hkv) D], Hq a multiple of Hkv = " + std::to_string(Hkv) + ", D = " + std::to_string(D),
         describe(projection));
  for (const auto& [name, norm] : {std::pair{"q_norm", &q_norm}, std::pair{"k_norm", &k_norm}}) {
    check_shape(op, name, *norm, {D});
    check_float(op, name, *norm);
  }
  check_rope(op, rope, D);
  check_positive(op, "eps", eps);
  if (on_gpu(s)) gpu::check_cached_head_dim(op, D, in_eight_bits(keys));
  return {Hq, Hkv, D};
}

void check_room(const char* op, const mx::array& keys, const mx::array& values, const AttentionHeads& heads,
                mx::Dtype dtype, int B, int T, int offset, const char* name) {
  check_kept(op, keys, values, B, heads.D, dtype);
  const int S = keys.shape(2);
  if (offset < 0 || offset > S - T)
    fail(op, name, "0 to " + std::to_string(S - T) + " (cache rows less new tokens)", std::to_string(offset));
}

mx::array position_axes(const char* op, const mx::array& positions, const mx::Shape& shape, mx::Stream s) {
  if (!mx::issubdtype(positions.dtype(), mx::integer)) fail(op, "positions", "integers", describe(positions));
  mx::Shape axes{3};
  axes.insert(axes.end(), shape.begin(), shape.end());
  const bool one = positions.ndim() == shape.size();
  check_shape(op, "positions", positions, one ? shape : axes);
  const mx::array as_int = positions.dtype() == mx::int32 ? positions : mx::astype(positions, mx::int32, s);
  return contiguous(one ? mx::broadcast_to(as_int, axes, s) : as_int, s);
}

}  // namespace mlx_delta

// attention: causal grouped-query attention over the KV cache, times the sigmoid of the output gate.
//
//   p = softmax_s(scale q . keys[s])      s from start[b] to length - T + t, for new token t
//   y = (p @ values) * sigmoid(gate)      [B, T, Hq D]
//
// q [B, Hq, T, D]; keys, values [B, Hkv, S, D] with `length` valid rows, the T new ones last; head h reads key head
// h // (Hq / Hkv). The gate is read in place from projection [B, T, (q | gate) per query head | ...]. start int [B]:
// the first row of a left-padded sequence (none: 0); a token before it gives 0. Sums are float32. One float dtype.
#pragma once

#include "ops/common.h"

namespace mlx_delta {

mx::array attention(const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values,
                    int length, float scale, const std::optional<mx::array>& start, mx::StreamOrDevice stream);

}  // namespace mlx_delta

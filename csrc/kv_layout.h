// A token's keys or values of one head in 8 bits: a row of bytes in the cache, on which CPU, GPU and Python agree.
//
//   D int8 q, then ceil(D / 64) bfloat16 scales, one for each 64 of them:  x ~ q scale,  scale = max |x| / 127
#pragma once

#include <cstdint>

namespace mlx_delta {

inline constexpr int kKvGroup = 64;

inline constexpr int64_t kv_row_bytes(int64_t D) { return D + 2 * ((D + kKvGroup - 1) / kKvGroup); }

}  // namespace mlx_delta

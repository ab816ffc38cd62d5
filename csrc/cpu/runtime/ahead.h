// How far ahead a stream of weights is asked for, in bytes: `near` into L1, `far` into L2.
//
// The hardware's prefetchers stop at every 4 KB page. Cores with 48 KB of L1 (Zen 5, Golden Cove and later) keep enough
// lines in flight from there, and a second stage costs them 2-6 %: `far` is `near`. With 32 KB (Zen 4) L2 has to ask
// far ahead, and L1 a little: L1 alone is 3-15 % slower.
//
// Nothing here is compiled per instruction set.
#pragma once

#include <cstdint>

namespace mlx_delta::cpu {

struct Ahead {
  int64_t near, far;
};

Ahead stream_ahead();

}  // namespace mlx_delta::cpu

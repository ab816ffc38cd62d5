#include "cpu/runtime/ahead.h"

#include <unistd.h>

namespace mlx_delta::cpu {

Ahead stream_ahead() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool large_l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48 * 1024;
#else
  constexpr bool large_l1 = false;
#endif
  return large_l1 ? Ahead{6144, 6144} : Ahead{2048, 12288};
}

}  // namespace mlx_delta::cpu

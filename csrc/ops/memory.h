// Memory that weights stream from.
#pragma once

#include <cstdint>

#include "ops/common.h"

namespace mlx_delta {

// Asks the system to back an evaluated array by huge pages (Linux: 2 MB, moved at once where the kernel can). With
// pages of 4 KB a stream of weights stops at every page: a core reads at half its speed. Says whether it worked.
bool use_huge_pages(const mx::array& a);

// Reads an evaluated array once, on all threads: what a memory-bound kernel can at most reach. Returns a checksum.
uint64_t read_all(const mx::array& a);

}  // namespace mlx_delta

#include "ops/memory.h"

#include <atomic>
#include <cstring>

#include "cpu/threads.h"

#ifdef __linux__
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; older kernels refuse it, and their khugepaged gets round to it later
#endif
#endif

namespace mlx_delta {

bool use_huge_pages(const mx::array& a) {
#ifdef __linux__
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const auto first = (reinterpret_cast<uintptr_t>(a.data<char>()) + page - 1) & ~(page - 1);
  const auto last = (reinterpret_cast<uintptr_t>(a.data<char>()) + a.nbytes()) & ~(page - 1);
  if (first >= last) return false;  // nothing fills a page
  void* start = reinterpret_cast<void*>(first);
  return madvise(start, last - first, MADV_HUGEPAGE) == 0 && madvise(start, last - first, MADV_COLLAPSE) == 0;
#else
  return false;
#endif
}

uint64_t read_all(const mx::array& a) {
  typedef uint64_t Words __attribute__((vector_size(16)));
  constexpr int64_t piece = 1 << 20, step = 4 * sizeof(Words);
  const char* data = a.data<char>();
  const int64_t bytes = int64_t(a.nbytes()) / step * step;
  std::atomic<uint64_t> total{0};
  cpu::parallel_for(bytes, piece, [&](int64_t first, int64_t last) {
    Words sums[4] = {};
    for (int64_t i = first; i < last; i += step) {
      Words words[4];
      std::memcpy(words, data + i, sizeof(words));
      for (int j = 0; j < 4; ++j) sums[j] += words[j];
    }
    const Words all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    total += all[0] + all[1];
  });
  return total;
}

}  // namespace mlx_delta

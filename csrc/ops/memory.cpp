// Memory that weights stream from.
#include <atomic>
#include <cstdint>

#include "cpu/runtime/threads.h"
#include "mlx/array.h"
#include "ops/binding.h"

#ifdef __linux__
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; older kernels refuse it, and their khugepaged gets round to it later
#endif
#endif

namespace mlx_delta {
namespace {

namespace mx = mlx::core;

// Asks the system to back an evaluated array by huge pages (Linux: 2 MB, moved at once where the kernel can). With
// pages of 4 KB a stream of weights stops at every page: a core reads at half its speed. Says whether it worked.
bool use_huge_pages(const mx::array& a) {
#ifdef __linux__
  constexpr uintptr_t page = uintptr_t{2} << 20;
  // Outwards, for arrays lie side by side in memory: what shares a page with a neighbour may become huge with it.
  const auto first = reinterpret_cast<uintptr_t>(a.data<char>()) & ~(page - 1);
  const auto last = (reinterpret_cast<uintptr_t>(a.data<char>()) + a.nbytes() + page - 1) & ~(page - 1);
  const auto advise = [](uintptr_t from, uintptr_t to, int advice) {
    return madvise(reinterpret_cast<void*>(from), to - from, advice) == 0;
  };
  advise(first, last, MADV_HUGEPAGE);  // fails where an end has no neighbour, after it has done the rest
  bool all = true;
  for (uintptr_t p = first; p < last; p += page) all &= advise(p, p + page, MADV_COLLAPSE);
  return all;
#else
  return false;
#endif
}

// Reads an evaluated array once, on all threads: what a memory-bound kernel can at most reach. Returns a checksum.
uint64_t read_all(const mx::array& a) {
  // Loads of 16 bytes reach what AVX-512 loads and software prefetches do: memory is what there is to wait for.
  typedef uint64_t Words __attribute__((vector_size(16), may_alias));
  constexpr int64_t piece = 1 << 20, line = 4 * sizeof(Words);
  // From a cache line on: MLX's arrays start 8 bytes into one, and loads that cross lines cost 5 %.
  const int64_t skipped = -reinterpret_cast<uintptr_t>(a.data<char>()) % line;
  const char* data = a.data<char>() + skipped;
  const int64_t bytes = (int64_t(a.nbytes()) - skipped) / line * line;
  std::atomic<uint64_t> total{0};
  cpu::parallel_for(bytes, piece, [&](int64_t first, int64_t last) {
    Words s0{}, s1{}, s2{}, s3{};  // not an array: GCC 12 would keep it on the stack, 15 % slower
    for (int64_t i = first; i < last; i += line) {
      const auto* p = reinterpret_cast<const Words*>(data + i);
      s0 += p[0];
      s1 += p[1];
      s2 += p[2];
      s3 += p[3];
    }
    const Words all = (s0 + s1) + (s2 + s3);
    total += all[0] + all[1];
  });
  return total;
}

const Binding binding([](nb::module_& m) {
  m.def("use_huge_pages", &use_huge_pages, "a"_a, "Back an evaluated array by huge pages; whether that worked.");
  m.def("read_all", &read_all, "a"_a, "Read an evaluated array once on all threads; a checksum.");
});

}  // namespace
}  // namespace mlx_delta

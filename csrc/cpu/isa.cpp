#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

#if defined(MLX_DELTA_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mlx_delta::cpu {

#define MLX_DELTA_DECLARE(isa) \
  namespace isa {              \
  extern const Kernels table;  \
  }
MLX_DELTA_DECLARE(portable)
#ifdef MLX_DELTA_X86
MLX_DELTA_DECLARE(avx512bf16)
MLX_DELTA_DECLARE(avx512)
MLX_DELTA_DECLARE(avx2)
#endif
#ifdef MLX_DELTA_ARM64
MLX_DELTA_DECLARE(neon)
#ifdef __linux__
MLX_DELTA_DECLARE(neondot)
#endif
#endif
#undef MLX_DELTA_DECLARE

namespace {

// Best first. The compiler's builtins ask the processor, and the system whether it saves the wide registers.
std::vector<const Kernels*> find_available() {
  std::vector<const Kernels*> found;
#ifdef MLX_DELTA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vnni")) {
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512bf16::table);
    found.push_back(&avx512::table);
  }
  // Every processor with AVX2 converts float16 too (F16C came a generation earlier).
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::table);
#endif
#ifdef MLX_DELTA_ARM64
#ifdef __linux__  // elsewhere every machine has dot products, and the build `neon` uses them
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
  if (getauxval(AT_HWCAP) & kDotProducts) found.push_back(&neondot::table);
#endif
  found.push_back(&neon::table);
#endif
  found.push_back(&portable::table);
  return found;
}

const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = find_available();
  return found;
}

const Kernels* find(const std::string& name, const char* who) {
  std::string choices;
  for (const Kernels* k : available()) {
    if (name == k->isa) return k;
    choices += (choices.empty() ? "" : ", ") + std::string(k->isa);
  }
  throw std::invalid_argument(std::string(who) + ": expected one of " + choices + " (what this machine runs), found '" +
                              name + "'");
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen = [] {
    const char* forced = std::getenv("MLX_DELTA_ISA");
    return forced && *forced ? find(forced, "MLX_DELTA_ISA") : available().front();
  }();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.emplace_back(k->isa);
  return names;
}

void use_isa(const std::string& name) { current() = find(name, "isa"); }

}  // namespace mlx_delta::cpu

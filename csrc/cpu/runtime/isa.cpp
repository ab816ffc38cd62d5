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
#ifndef MLX_DELTA_ARM64  // where every processor has NEON
MLX_DELTA_DECLARE(portable)
#endif
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

struct Build {
  const Kernels* table;
  bool runs;  // on this machine
};

// Best first. The compiler's builtins ask the processor, and the system whether it saves the wide registers.
std::vector<Build> find_builds() {
  std::vector<Build> found;
#ifdef MLX_DELTA_X86
  __builtin_cpu_init();
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  found.push_back({&avx512bf16::table, vnni && __builtin_cpu_supports("avx512bf16")});
  found.push_back({&avx512::table, vnni});
  // Every processor with AVX2 converts float16 too (F16C came a generation earlier).
  found.push_back({&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#ifdef MLX_DELTA_ARM64
#ifdef __linux__  // elsewhere every machine has dot products, and the build `neon` uses them
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
  found.push_back({&neondot::table, (getauxval(AT_HWCAP) & kDotProducts) != 0});
#endif
  found.push_back({&neon::table, true});
#else
  found.push_back({&portable::table, true});
#endif
  return found;
}

const std::vector<Build>& builds() {
  static const std::vector<Build> found = find_builds();
  return found;
}

const Kernels* find(const std::string& name, const char* who) {
  std::string choices;
  for (const std::string& isa : available_isas()) choices += (choices.empty() ? "" : ", ") + isa;
  for (const Build& build : builds())
    if (build.runs && name == build.table->isa) return build.table;
  throw std::invalid_argument(std::string(who) + ": expected one of " + choices + " (what this machine runs), found '" +
                              name + "'");
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> chosen = [] {
    const char* forced = std::getenv("MLX_DELTA_ISA");
    return forced && *forced ? find(forced, "MLX_DELTA_ISA") : find(available_isas().front(), "cpu isa");
  }();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Build& build : builds())
    if (build.runs) names.emplace_back(build.table->isa);
  return names;
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Build& build : builds()) names.emplace_back(build.table->isa);
  return names;
}

void use_isa(const std::string& name) { current() = find(name, "isa"); }

}  // namespace mlx_delta::cpu

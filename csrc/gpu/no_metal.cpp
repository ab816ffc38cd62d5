#include <stdexcept>

#include "gpu/metal.h"

namespace mlx_delta::gpu {

std::vector<Compiled> compile(const std::vector<Launch>& launches) {
  throw std::runtime_error(launches.front().kernel() +
                           ": expected a build with Metal to compile it, found one with CPU kernels only");
}

int compiled_late() { return 0; }

std::function<bool()> encode(const Plan& plan, const std::vector<mlx::core::array>&, std::vector<mlx::core::array>&,
                             const mlx::core::Stream&) {
  throw std::runtime_error(plan.launches.front().function +
                           ": scheduled on a GPU: expected a build with Metal, found one with CPU kernels only");
}

}  // namespace mlx_delta::gpu

// Encodes a plan on one of MLX's GPU streams: metal.cpp where there is Metal; no_metal.cpp elsewhere, which refuses.
#pragma once

#include <functional>
#include <vector>

#include "gpu/launch.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_delta::gpu {

// Puts the plan's launches on the stream, after everything that is on it already. Outputs have their memory: new, or
// taken over from an input; scratch memory is made here and lives until the launches have run. Compiles a kernel the
// first time it is met in this process. Raises std::runtime_error where Metal refuses a kernel. Returns what says
// whether they have run.
std::function<bool()> encode(const Plan& plan, const std::vector<mlx::core::array>& inputs,
                             std::vector<mlx::core::array>& outputs, const mlx::core::Stream& stream);

}  // namespace mlx_delta::gpu

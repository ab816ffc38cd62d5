// Compiles kernels and encodes plans on one of MLX's GPU streams: metal.cpp where there is Metal; no_metal.cpp
// elsewhere, which refuses.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "gpu/launch.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_delta::gpu {

// What came of a kernel: times in milliseconds, and what the GPU has for it.
struct Compiled {
  std::string kernel;
  double library_ms;  // text to library; the same for all that share one
  double pipeline_ms;
  int most_threads;  // of a threadgroup
  int simd_width;
  int threadgroup_bytes;
  std::string log;  // the library's, where the compiler had something to say
};

// Compiles the kernels of launches of one file, those that are not there yet, as one library; from any thread, several
// at once. Raises std::runtime_error where Metal refuses the text or a kernel.
std::vector<Compiled> compile(const std::vector<Launch>& launches);

// Kernels that this process has compiled because a launch found them missing, and so in the middle of an answer.
int compiled_late();

// Puts the plan's launches on the stream, after everything that is on it already. Outputs have their memory: new, or
// taken over from an input; scratch memory is made here and lives until the launches have run. Compiles a kernel that
// nobody has compiled. Raises std::runtime_error where Metal refuses one. Returns what says whether they have run.
std::function<bool()> encode(const Plan& plan, const std::vector<mlx::core::array>& inputs,
                             std::vector<mlx::core::array>& outputs, const mlx::core::Stream& stream);

}  // namespace mlx_delta::gpu

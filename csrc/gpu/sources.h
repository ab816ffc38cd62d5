// The shaders' texts by file; the definition is generated from metal/ by csrc/gpu/embed.py.
#pragma once

#include <map>
#include <string>

namespace mlx_delta::gpu {

const std::map<std::string, std::string>& metal_sources();

}  // namespace mlx_delta::gpu

// The CPU kernels as one table of function pointers an instruction set: those of kernels.def.
//
// Every kernel source is compiled once per instruction set, each time into the namespace MLX_DELTA_ISA, so that no
// inline function compiled for AVX-512 can be linked into the portable build. A kernel takes the dtype of its
// activations and its arguments, which are in the header of its name; all of them use the thread pool of
// runtime/threads.h.
#pragma once

#include <string>
#include <vector>

#include "cpu/types.h"

namespace mlx_delta::cpu {

#define MLX_DELTA_KERNEL(kernel, Args) struct Args;
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL

struct Kernels {
  const char* isa;
  int64_t (*multiply_add)(int64_t steps);  // cpu/roof.cpp
#define MLX_DELTA_KERNEL(kernel, Args) void (*kernel)(DType, const Args&);
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL
};

// The table in use: the best that this machine runs, or what the environment variable MLX_DELTA_ISA names.
const Kernels& kernels();

// The instruction sets that this build has and this machine runs, best first; and all that it has.
std::vector<std::string> available_isas();
std::vector<std::string> built_isas();

// For tests: use another from now on. Throws std::invalid_argument naming the choices.
void use_isa(const std::string& name);

}  // namespace mlx_delta::cpu

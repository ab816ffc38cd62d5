// Compiled once per instruction set: the table of its kernels.
#include "cpu/kernels.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

int64_t multiply_add(int64_t);
#define MLX_DELTA_KERNEL(kernel, Args) void kernel(DType, const Args&);
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL

#define MLX_DELTA_STRING_OF(x) #x
#define MLX_DELTA_STRING(x) MLX_DELTA_STRING_OF(x)

extern const Kernels table;
const Kernels table{
    MLX_DELTA_STRING(MLX_DELTA_ISA),
    &multiply_add,
#define MLX_DELTA_KERNEL(kernel, Args) &kernel,
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL
};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

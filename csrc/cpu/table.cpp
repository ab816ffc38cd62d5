// Compiled once per instruction set: the table of its kernels. Where only qmm gains by the set, it has a qmm of its
// own, and what is made of it, and the other kernels are those of the set named MLX_DELTA_BASE; else that is the set.
#include "cpu/kernels.h"

namespace mlx_delta::cpu::MLX_DELTA_BASE {
int64_t multiply_add(int64_t);
#define MLX_DELTA_KERNEL(kernel, Args) void kernel(DType, const Args&);
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL
}  // namespace mlx_delta::cpu::MLX_DELTA_BASE

namespace mlx_delta::cpu::MLX_DELTA_ISA {

using namespace MLX_DELTA_BASE;
// They hide the other's.
void experts(DType, const ExpertsArgs&);
void qmm(DType, const QmmArgs&);
void route(DType, const RouteArgs&);

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

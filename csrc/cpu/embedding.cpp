#include "cpu/embedding.h"

#include "cpu/runtime/threads.h"
#include "cpu/simd/rows.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

template <typename T>
void look_up(const EmbeddingArgs& args) {
  const int64_t K = args.table.cols;
  parallel_for(args.count, most<int64_t>(1, 65536 / K), [&](int64_t first, int64_t last) {
    float* row = scratch_of<float>(0, K);
    for (int64_t i = first; i < last; ++i) {
      const int32_t token = args.tokens[i];
      if (token >= 0 && token < args.table.rows)
        read_columns(args.table, token, 0, K, row);
      else  // a wrong id must show: ids are only known when the graph runs, too late to raise
        fill(row, K, bits_as<float>(0x7fc00000u));
      store_floats(row, K, static_cast<T*>(args.out) + i * K);
    }
  });
}

}  // namespace

void embedding(DType type, const EmbeddingArgs& args) { MLX_DELTA_DISPATCH(type, look_up, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

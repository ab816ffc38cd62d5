// One call: x of a block of rows is prepared once (shared), then units of 16 output columns (48 for a prompt's rows,
// see qmm/strips_avx512.h) are shared out to the threads. A unit streams its weight rows from memory once for all rows
// of the block. Blocks of several products (those of experts) that are small go together, as one call's.
#include "cpu/qmm.h"

#include <new>

#include "cpu/qmm/block.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

// The bytes of x that a product's blocks take at a time.
template <typename T>
int64_t block_bytes([[maybe_unused]] const QmmArgs& args) {
#if defined(MLX_DELTA_TILED)
  if (takes_tiles(args.segments[0], dtype_of<T>(), args)) return kTiledBlockBytes;
#endif
  return kBlockBytes;
}

// `count` blocks, as one pool of units.
template <typename T>
void run_blocks(Block<T>* blocks, int64_t count) {
  int64_t bytes = 0, rows = 0, units = 0, work = 0;
  const auto prepared = [&](int64_t b) { return b > 0 && blocks[b].prepares_as(blocks[b - 1]); };
  for (int64_t b = 0; b < count; ++b) {
    if (!prepared(b)) bytes += blocks[b].place(nullptr);
    if (b + 1 < count) blocks[b].after = blocks + b + 1;
  }
  char* base = scratch_of<char>(kPreparedSlot, bytes);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t of_block = blocks[b].units();
    units += of_block;
    for (int s = 0; s < blocks[b].segments(); ++s)
      work = most(work, blocks[b].unit_rows(s) * blocks[b].args.K * blocks[b].M);
    if (prepared(b)) {
      blocks[b].take_prepared(blocks[b - 1]);
      continue;
    }
    base += blocks[b].place(base);
    rows += blocks[b].M;
  }
  // A few rows are prepared sooner than another thread hears of it.
  parallel_for(rows, rows * blocks[0].args.K < 65536 ? rows : 4, [&](int64_t from, int64_t to) {
    int64_t first = 0;
    for (int64_t b = 0; b < count && first < to; ++b) {
      if (prepared(b)) continue;
      const int64_t M = blocks[b].M;
      if (from < first + M) blocks[b].prepare(most<int64_t>(from - first, 0), least(to - first, M));
      first += M;
    }
  });
  // A unit below some 64K multiplications is done sooner than another thread hears of it.
  parallel_for_shrinking(units, most<int64_t>(1, 65536 / work), [&](int64_t from, int64_t to) {
    int64_t first = 0;
    for (int64_t b = 0; b < count && first < to; ++b) {
      const int64_t of_block = blocks[b].units();
      if (from < first + of_block) blocks[b].run(most<int64_t>(from - first, 0), least(to - first, of_block));
      first += of_block;
    }
  });
}

template <typename T>
void multiply_products(const ProductArgs& products) {
  int64_t most_blocks = 0;
  const auto rows_of = [&](const QmmArgs& args) {
    const int64_t most_rows = most<int64_t>(16, block_bytes<T>(args) / (2 * args.K) / 16 * 16);
    const int64_t blocks = (args.M + most_rows - 1) / most_rows;
    most_blocks += blocks;
    return ((args.M + blocks - 1) / blocks + 15) / 16 * 16;
  };
  for (int64_t p = 0; p < products.count; ++p) rows_of(products.of[p]);
  auto* blocks = static_cast<Block<T>*>(scratch(kBlockSlot, size_t(most_blocks) * sizeof(Block<T>)));
  int64_t count = 0, bytes = 0;
  for (int64_t p = 0; p < products.count; ++p) {
    const QmmArgs& args = products.of[p];
    const int64_t rows = rows_of(args);
    for (int64_t m = 0; m < args.M; m += rows) {
      const int64_t of_block = least(rows, args.M - m), size = of_block * 2 * args.K;
      if (count > 0 && bytes + size > block_bytes<T>(args)) {
        run_blocks(blocks, count);
        count = bytes = 0;
      }
      new (blocks + count++) Block<T>(args, m, of_block);
      bytes += size;
    }
  }
  if (count > 0) run_blocks(blocks, count);
}

}  // namespace

void multiply_all(DType type, const ProductArgs& products) { MLX_DELTA_DISPATCH(type, multiply_products, products) }

void qmm(DType type, const QmmArgs& args) { multiply_all(type, {&args, 1}); }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

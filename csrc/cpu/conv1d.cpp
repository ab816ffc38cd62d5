#include "cpu/conv1d.h"

#include "cpu/convolve.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

// Channels are independent, so a thread takes some of them over all tokens.
template <typename T>
void run(const Conv1dArgs& args) {
  constexpr int64_t kPiece = 64;  // channels: whole cache lines of every dtype
  const int64_t pieces = (args.C + kPiece - 1) / kPiece;
  parallel_for_shrinking(args.B * pieces, 1 + 16384 / (kPiece * args.T), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t b = i / pieces, c = i % pieces * kPiece;
      T* y = static_cast<T*>(args.y) + b * args.T * args.C + c;
      convolve<T>(args, b, c, least(c + kPiece, args.C), y, args.C);
    }
  });
}

}  // namespace

void conv1d(DType type, const Conv1dArgs& args) { MLX_DELTA_DISPATCH(type, run, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#include "cpu/attention_rows.h"

#include "cpu/runtime/threads.h"
#include "cpu/simd/vector.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

void attention_prepare(DType, const AttentionPrepareArgs&);
void attention(DType, const AttentionArgs&);

void attention_rows(DType type, const AttentionRowsArgs& args) {
  constexpr int kQuerySlot = kScratchSlots - 1;  // of no other kernel
  AttentionRowsArgs both = args;
  const KvPart& last = args.prepare.part[args.prepare.parts - 1];
  const int64_t values = (last.first + last.B * last.T) * args.prepare.Hq * args.prepare.D;
  both.prepare.q = scratch_of<float>(kQuerySlot, values);
  both.attention.q = both.prepare.q;
  attention_prepare(type, both.prepare);
  attention(type, both.attention);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

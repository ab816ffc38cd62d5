// Compiled once per instruction set: the table of its kernels.
#include "cpu/kernels.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

void attention(DType, const AttentionArgs&);
void attention_prepare(DType, const AttentionPrepareArgs&);
void conv1d(DType, const Conv1dArgs&);
void delta_mixer(DType, const DeltaMixerArgs&);
void embedding(DType, const EmbeddingArgs&);
void fit_affine(DType, const FitAffineArgs&);
void gated_delta(DType, const GatedDeltaArgs&);
void gated_norm(DType, const GatedNormArgs&);
void qmm(DType, const QmmArgs&);
void sample(DType, const SampleArgs&);
int64_t multiply_add(int64_t);

#define MLX_DELTA_STRING_OF(x) #x
#define MLX_DELTA_STRING(x) MLX_DELTA_STRING_OF(x)

extern const Kernels table;
const Kernels table{MLX_DELTA_STRING(MLX_DELTA_ISA),
                    &attention,
                    &attention_prepare,
                    &conv1d,
                    &delta_mixer,
                    &embedding,
                    &fit_affine,
                    &gated_delta,
                    &gated_norm,
                    &qmm,
                    &sample,
                    &multiply_add};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

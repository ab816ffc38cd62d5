// Compiled once per instruction set: the table of its kernels.
#include "cpu/kernels.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

void add_moments(DType, const AddMomentsArgs&);
void attention(DType, const AttentionArgs&);
void attention_prepare(DType, const AttentionPrepareArgs&);
void conv1d(DType, const Conv1dArgs&);
void delta_mixer(DType, const DeltaMixerArgs&);
void embedding(DType, const EmbeddingArgs&);
void factor_moments(DType, const FactorMomentsArgs&);
void fit_affine(DType, const FitAffineArgs&);
void gated_delta(DType, const GatedDeltaArgs&);
void gated_norm(DType, const GatedNormArgs&);
void qmm(DType, const QmmArgs&);
void sample(DType, const SampleArgs&);
void solve_moments(DType, const SolveMomentsArgs&);
int64_t multiply_add(int64_t);

#define MLX_DELTA_STRING_OF(x) #x
#define MLX_DELTA_STRING(x) MLX_DELTA_STRING_OF(x)

extern const Kernels table;
const Kernels table{MLX_DELTA_STRING(MLX_DELTA_ISA),
                    &add_moments,
                    &attention,
                    &attention_prepare,
                    &conv1d,
                    &delta_mixer,
                    &embedding,
                    &factor_moments,
                    &fit_affine,
                    &gated_delta,
                    &gated_norm,
                    &qmm,
                    &sample,
                    &solve_moments,
                    &multiply_add};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

// The CPU kernels as one table of function pointers an instruction set.
//
// Every kernel source is compiled once per instruction set, each time into the namespace MLX_DELTA_ISA, so that no
// inline function compiled for AVX-512 can be linked into the portable build. A kernel takes the dtype of its
// activations and its arguments; all of them use the thread pool of threads.h.
#pragma once

#include <string>
#include <vector>

#include "cpu/attention.h"
#include "cpu/attention_prepare.h"
#include "cpu/conv1d.h"
#include "cpu/delta_mixer.h"
#include "cpu/embedding.h"
#include "cpu/fit_affine.h"
#include "cpu/gated_delta.h"
#include "cpu/gated_norm.h"
#include "cpu/moments.h"
#include "cpu/qmm.h"
#include "cpu/sample.h"

namespace mlx_delta::cpu {

struct Kernels {
  const char* isa;
  void (*add_moments)(DType, const AddMomentsArgs&);
  void (*attention)(DType, const AttentionArgs&);
  void (*attention_prepare)(DType, const AttentionPrepareArgs&);
  void (*conv1d)(DType, const Conv1dArgs&);
  void (*delta_mixer)(DType, const DeltaMixerArgs&);
  void (*embedding)(DType, const EmbeddingArgs&);
  void (*factor_moments)(DType, const FactorMomentsArgs&);
  void (*fit_affine)(DType, const FitAffineArgs&);
  void (*gated_delta)(DType, const GatedDeltaArgs&);
  void (*gated_norm)(DType, const GatedNormArgs&);
  void (*qmm)(DType, const QmmArgs&);
  void (*sample)(DType, const SampleArgs&);
  void (*solve_moments)(DType, const SolveMomentsArgs&);
  int64_t (*multiply_add)(int64_t steps);  // cpu/roof.cpp
};

// The table in use: the best that this machine runs, or what the environment variable MLX_DELTA_ISA names.
const Kernels& kernels();

// The instruction sets that this machine runs and this build has, best first.
std::vector<std::string> available_isas();

// For tests: use another from now on. Throws std::invalid_argument naming the choices.
void use_isa(const std::string& name);

}  // namespace mlx_delta::cpu

// The argument structs of the kernels, read by C++ and by Metal: 32-bit scalars and arrays of them only, so that both
// compilers lay them out alike.
#pragma once

#ifndef __METAL_VERSION__
namespace mlx_delta::gpu {
#endif

#define MLX_DELTA_MAX_SEGMENTS 4
#define MLX_DELTA_MAX_FREQUENCIES 128
#define MLX_DELTA_LEAST_SPLIT_ROWS 128  // less does not pay for its part of attention's second launch

struct QmmParams {
  int M;
  int N;  // columns of y
  float eps;
  int rows[MLX_DELTA_MAX_SEGMENTS];
  int first_threadgroup[MLX_DELTA_MAX_SEGMENTS];
  int first_column[MLX_DELTA_MAX_SEGMENTS];
};

struct EmbeddingParams {
  int rows;
  int cols;
};

struct Conv1dParams {
  int T;
  int C;
};

struct GatedDeltaParams {
  int T;
  int Hk;
  int Hv;
};

struct DeltaMixerParams {
  int T;
  int Hk;
  int Hv;
  float eps;
};

struct AttentionPrepareParams {
  int T;
  int Hq;
  int Hkv;
  int S;
  int offset;
  int rope_half;    // pairs of values that are turned
  int sections[3];  // how many of them follow the T, H and W position
  float eps;
  float frequencies[MLX_DELTA_MAX_FREQUENCIES];  // theta^(-2i / rope_dim), in double on the host
};

struct AttentionParams {
  int T;
  int Hq;
  int Hkv;
  int S;
  int length;
  int width;  // columns of the projection that holds the gate
  int splits;  // at most, of a sequence
  float scale;
};

struct CopyParams {
  int words;
};

#ifndef __METAL_VERSION__
}  // namespace mlx_delta::gpu
#endif

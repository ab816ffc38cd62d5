// The argument structs of the kernels, read by C++ and by Metal: 32-bit scalars and arrays of them only, so that both
// compilers lay them out alike.
#pragma once

#ifndef __METAL_VERSION__
namespace mlx_delta::gpu {
#endif

#define MLX_DELTA_MAX_SEGMENTS 4
#define MLX_DELTA_MAX_FREQUENCIES 128
#define MLX_DELTA_SAMPLE_BLOCK 1024   // columns
#define MLX_DELTA_SAMPLE_BLOCKS 1024  // at most
#define MLX_DELTA_PROBES 18
#define MLX_DELTA_MIXER_ROWS \
  8  // sequences of one token each in a launch: as many as there are buffers for their states
#define MLX_DELTA_MIXER_SPANS 6         // sequences of several, which have one buffer more
#define MLX_DELTA_ATTENTION_SEQUENCES 8  // in a launch of those that have keys and values of their own
#define MLX_DELTA_LEAST_SPLIT_ROWS 128  // less does not pay for its part of attention's second launch

struct QmmParams {
  int M;
  int N;  // columns of y
  float eps;
  int rows[MLX_DELTA_MAX_SEGMENTS];
  int first_threadgroup[MLX_DELTA_MAX_SEGMENTS];
  int first_column[MLX_DELTA_MAX_SEGMENTS];
};

struct RouteParams {
  int E;
  float eps;
  int k;
};

struct ExpertsParams {
  int M;
  int k;
  int E;
  int rows;         // of an expert's matrix: gate and up, or down
  int shared_rows;  // likewise of the shared one
  int stride;       // from the values of one token between the products to those of the next
  float eps;
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
  int P;     // pending tokens
  int kept;  // of P + T tokens, those that the states returned have seen
  int Hk;
  int Hv;
  float eps;
};

struct DeltaMixerRowsParams {
  int Hk;
  int Hv;
  float eps;
  int first[MLX_DELTA_MIXER_ROWS];  // of each sequence, which row its token is
};

struct DeltaMixerSpansParams {
  int Hk;
  int Hv;
  float eps;
  int first[MLX_DELTA_MIXER_SPANS];
  int T[MLX_DELTA_MIXER_SPANS];
  int P[MLX_DELTA_MIXER_SPANS];
  int kept[MLX_DELTA_MIXER_SPANS];
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
  int width;   // columns of the projection that holds the gate
  int splits;  // at most, of a sequence
  float scale;
};

struct AttentionPrepareRowsParams {
  int rows;           // that there are positions of
  int has_positions;  // whether there are
  int Hq;
  int Hkv;
  int rope_half;
  int sections[3];
  float eps;
  int first[MLX_DELTA_ATTENTION_SEQUENCES];   // of each sequence, which row its first token is; none has one: 2^31 - 1
  int offset[MLX_DELTA_ATTENTION_SEQUENCES];  // tokens before that one
  int S[MLX_DELTA_ATTENTION_SEQUENCES];
  float frequencies[MLX_DELTA_MAX_FREQUENCIES];
};

struct AttentionRowsParams {
  int Hq;
  int Hkv;
  int width;
  int most_splits;  // of a row, however long its context is
  int splits;       // of the row of this launch that has most
  float scale;
  int first[MLX_DELTA_ATTENTION_SEQUENCES];
  int offset[MLX_DELTA_ATTENTION_SEQUENCES];
  int S[MLX_DELTA_ATTENTION_SEQUENCES];
};

struct SampleParams {
  int V;
  int N;  // columns that are tokens
  int blocks;
  int has_allowed;  // whether there is such a mask
  int has_prompt;
  int has_generated;
  int allowed_stride;  // from one row's mask to the next: 0 or N
  int prompt_stride;
  int generated_stride;
  float temperature;
  float presence_penalty;
  float repetition_penalty;
  int top_k;      // 0: off
  int cuts_mass;  // whether top_p is on, which is top_p_high 2^-32 + top_p_low 2^-64
  unsigned top_p_high;
  unsigned top_p_low;
  float log_left_out;  // log((1 - top_p) / N)
  float log_min_p;
};

struct ProbeParams {
  int count;
};

struct CopyParams {
  int words;
};

#ifndef __METAL_VERSION__
}  // namespace mlx_delta::gpu
#endif

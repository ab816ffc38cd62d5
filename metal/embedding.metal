// y[i] = table[tokens[i]], dequantized: see csrc/ops/embedding.cpp.
#include "common.h"
#include "dequant.h"
#include "params.h"

template <typename F>
struct Block;

template <typename S, int bits, int group_size>
struct Block<Affine<S, bits, group_size>> {
  template <typename T>
  static void write(
      device const uchar* weights, device const uchar* scales, device const uchar* biases, size_t row, int block,
      int K, device T* y) {
    device const uint* from = (device const uint*)weights + row * size_t(K / 32 * bits) + block * bits;
    uint words[bits];
    load_words<bits>(from, words);
    const size_t group = row * size_t(K / group_size) + size_t(block * 32 / group_size);
    const float scale = float(((device const S*)scales)[group]);
    const float bias = float(((device const S*)biases)[group]);
    UNROLL
    for (int i = 0; i < 32; i++) {
      y[block * 32 + i] = T(fma(scale, value_of<bits>(cut<bits>(words, i), i) * factor_of<bits>(i), bias));
    }
  }
};

template <typename W, bool aligned>
struct Block<Plain<W, aligned>> {
  template <typename T>
  static void write(
      device const uchar* weights, device const uchar*, device const uchar*, size_t row, int block, int K,
      device T* y) {
    device const W* from = (device const W*)weights + row * size_t(K);
    for (int k = block * 8; k < min(block * 8 + 8, K); k++) {
      y[k] = T(float(from[k]));
    }
  }
};

// A thread a block of 32 values (8 if plain). Bytes: one row of the table per token, each once, and the result: 2.8 KB
// and 8 KB for the 9B. Threads: 128 a token. Loads in flight: a block's words and its scale and bias. Registers: the
// words and one value at a time, about 20. Time is the launch's own; nothing here is worth tuning.
template <typename T, typename F>
[[kernel]] void embedding(
    device const int* tokens [[buffer(0)]], device const uchar* weights [[buffer(1)]],
    device const uchar* scales [[buffer(2)]], device const uchar* biases [[buffer(3)]], device T* y [[buffer(4)]],
    constant EmbeddingParams& p [[buffer(5)]], uint2 position [[thread_position_in_grid]]) {
  const int block = int(position.x);
  const int first = block * int(F::block);
  if (first >= p.cols) {
    return;
  }
  const int token = tokens[position.y];
  device T* row = y + size_t(position.y) * size_t(p.cols);
  if (token >= 0 && token < p.rows) {
    Block<F>::write(weights, scales, biases, size_t(token), block, p.cols, row);
    return;
  }
  // A wrong id must show: ids are only known when the graph runs, too late to raise.
  for (int k = first; k < min(first + int(F::block), p.cols); k++) {
    row[k] = T(NAN);
  }
}

// Rows of a weight matrix against rows of x, for qmm: how a lane loads and multiplies its share of the columns. A
// simdgroup has R rows of weights and M of x; the sum of row r and row m is at [m R + r].
#pragma once

#include "qmm_stage.h"

// A segment's matrix. scales, biases: of affine rows.
struct Segment {
  device const uchar* weights;
  device const uchar* scales;
  device const uchar* biases;
};

inline Segment segment_of(device const uchar* weights, device const uchar* scales, device const uchar* biases) {
  Segment segment;
  segment.weights = weights;
  segment.scales = scales;
  segment.biases = biases;
  return segment;
}

// A simdgroup's rows: EACH from `row` on of the first matrix and, if that is not all of R, the same of the second.
struct Chosen {
  Segment first;
  Segment second;
  uint row;
};

// Affine rows FIRST .. FIRST + N - 1 of a simdgroup, against staged rows of x: every 32nd block of 32 columns a lane.
// Other formats have none.
template <typename F, int FIRST, int N>
struct AffineRows {
  enum { present = false };

  struct Held {};

  template <int EACH, int K>
  static void load(thread Held&, const thread Chosen&, uint) {}

  template <typename X, typename Tiles, int M, int R, typename T>
  static void multiply(thread float (&)[M * R], const thread Held&, const thread Work<T>&, uint, int) {}

  template <int M, int R>
  static void finish(
      thread float (&)[M * R], const thread float (&)[M * R], const thread Held&, const thread float (&)[M]) {}
};

template <typename S, int bits, int group_size, int FIRST, int N>
struct AffineRows<Affine<S, bits, group_size>, FIRST, N> {
  enum { present = true };

  // What one block needs of the matrix. All of it is asked for before any is used.
  struct Held {
    uint words[N][bits];
    S scale[N];
    S bias[N];
  };

  template <int EACH, int K>
  static void load(thread Held& held, const thread Chosen& chosen, uint block) {
    const uint word = chosen.row * uint(K / 32 * bits) + block * uint(bits);
    const uint group = chosen.row * uint(K / group_size) + block * 32 / uint(group_size);
    UNROLL
    for (int r = 0; r < N; r++) {
      const Segment matrix = FIRST + r < EACH ? chosen.first : chosen.second;
      const uint row = uint((FIRST + r) % EACH);
      load_words<bits>((device const uint*)matrix.weights + row * uint(K / 32 * bits) + word, held.words[r]);
      held.scale[r] = ((device const S*)matrix.scales + row * uint(K / group_size))[group];
      held.bias[r] = ((device const S*)matrix.biases + row * uint(K / group_size))[group];
    }
  }

  // What is staged of block `of_tile` of a tile, half `half` or all of it, staged for rows of format X.
  template <typename X, typename Tiles, int M, int R, typename T>
  static void multiply(
      thread float (&partial)[M * R], const thread Held& held, const thread Work<T>& work, uint of_tile, int half) {
    const int first_column = Tiles::halves == 2 ? 16 * half : 0;
    const int quads = int(Tiles::each) / 4;
    threadgroup const float4* staged = work.staged + of_tile;
    uint pairs[N][32];
    UNROLL
    for (int j = 0; j < quads; j++) {
      float4 next = staged[j * int(Tiles::blocks)];
      float w[N][4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        const int column = first_column + 4 * j + i;
        const int first = min(column, partner_of<bits>(column));
        const float lacking = factor_of<bits>(column) / factor_of<int(X::bits)>(column);
        UNROLL
        for (int r = 0; r < N; r++) {
          if (first == column) {
            pairs[r][first] = cut<bits>(held.words[r], column);
          }
          w[r][i] = value_of<bits>(pairs[r][first], column) * lacking;
        }
      }
      UNROLL
      for (int m = 0; m < M; m++) {
        const float4 v = next;
        if (m + 1 < M) {
          next = staged[((m + 1) * quads + j) * int(Tiles::blocks)];
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
          UNROLL
          for (int r = 0; r < N; r++) {
            partial[m * R + FIRST + r] = fma(w[r][i], v[i], partial[m * R + FIRST + r]);
          }
        }
      }
    }
  }

  // The block's share of the sums. sum: of its columns of x.
  template <int M, int R>
  static void finish(
      thread float (&total)[M * R], const thread float (&partial)[M * R], const thread Held& held,
      const thread float (&sum)[M]) {
    UNROLL
    for (int m = 0; m < M; m++) {
      UNROLL
      for (int r = 0; r < N; r++) {
        const int at = m * R + FIRST + r;
        total[at] = fma(float(held.scale[r]), partial[at], fma(float(held.bias[r]), sum[m], total[at]));
      }
    }
  }
};

// Eight values of `from`, of which `count` are there.
template <typename T, bool ALIGNED>
inline void load_some(device const T* from, int count, thread float* to) {
  if (ALIGNED) {
    load8(from, to);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) {
      to[i] = i < count ? float(from[i]) : 0.0f;
    }
  }
}

// Plain rows: every 32nd block of 8 columns a lane, which a simdgroup reads as 512 (half types) consecutive bytes, of
// the weights and of x alike; x is not staged. Other formats have none.
template <typename F, int FIRST, int N>
struct PlainRows {
  template <int EACH, int M, int R, int K, bool NORM, typename T>
  static void multiply(thread float (&)[M * R], thread float (&)[M], const thread Chosen&, const thread Work<T>&) {}
};

template <typename W, bool aligned, int FIRST, int N>
struct PlainRows<Plain<W, aligned>, FIRST, N> {
  template <int EACH, int M, int R, int K, bool NORM, typename T>
  static void multiply(
      thread float (&total)[M * R], thread float (&squares)[M], const thread Chosen& chosen,
      const thread Work<T>& work) {
    KEEP_LOOP
    for (int k = int(work.lane) * 8; k < K; k += 256) {
      float w[N][8];
      UNROLL
      for (int r = 0; r < N; r++) {
        const Segment matrix = FIRST + r < EACH ? chosen.first : chosen.second;
        const uint row = chosen.row + uint((FIRST + r) % EACH);
        load_some<W, aligned>((device const W*)matrix.weights + (row * uint(K) + uint(k)), K - k, w[r]);
      }
      float scale[8] = {};
      if (NORM) {
        load_some<float, aligned>(work.norm + k, K - k, scale);
      }
      UNROLL
      for (int m = 0; m < M; m++) {
        float v[8];
        const uint row = min(work.first_row + uint(m), work.last_row);
        load_some<T, aligned>(work.x + (row * uint(K) + uint(k)), K - k, v);
        UNROLL
        for (int i = 0; i < 8; i++) {
          if (NORM) {
            squares[m] = fma(v[i], v[i], squares[m]);
            v[i] *= scale[i];
          }
          UNROLL
          for (int r = 0; r < N; r++) {
            total[m * R + FIRST + r] = fma(w[r][i], v[i], total[m * R + FIRST + r]);
          }
        }
      }
    }
  }
};

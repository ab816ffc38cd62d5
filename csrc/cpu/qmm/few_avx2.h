// Two to eight rows of x in fixed point times packed weights with AVX2, in the bits of int16.h's one row.
//
// One weight row at a time, whose float sums stay in registers while its columns pass: of 64 weights times a row of x
// 4 multiplications that read x in L1, 3 additions, a conversion and a multiply-add are left, and nothing is stored.
// Weights are read in the order in which they lie in memory, for as many columns as x leaves room for in L1: all of a
// row for two rows of x, half of it for four. The fields come down to bit 0 when they are unpacked, once for all rows
// of x, so that products add up without shifts: the sums of a lane are the same integers.
#pragma once

#include "cpu/qmm/rows_avx2.h"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kFewRows = 8;               // of x: their sums are half of the registers
inline constexpr int64_t kFewBytes = 24 * 1024;  // of x, three quarters of L1

// What is read of one weight row at a time, and the piece that is asked for beside it, into L2: from there the
// hardware is in time for L1, and every request of ours takes the place of a load of x.
struct Piece {
  const uint8_t* data;
  const bf16* scales;
  const uint8_t* ahead;
};

// acc[m] (vectors) += chunks from .. from + count of a weight row, one piece, times M rows of x.
template <int bits, int group_size, int M>
void multiply_piece(const Piece& piece, int64_t from, int64_t count, const FixedX& x, float* acc) {
  const Fields<bits> fields;
  __m256i mask = _mm256_set1_epi16(Fields<bits>::low_field);
  asm("" : "+x"(mask));  // in a register, or each use reads it
  F a[M];
  MLX_DELTA_UNROLL
  for (int m = 0; m < M; ++m) a[m] = load(acc + m * W);
  const uint8_t* data = piece.data;
  const int16_t* values = x.chunk(0, from);
  const int64_t last = count - 1;
  // Lanes wait for shuffles and products of their own, so that the next chunk's come beside this one's products.
  constexpr int vectors = Fields<bits>::vectors;
  __m256i next[vectors];
  fields.lanes(data, next);
  for (int64_t c0 = 0; c0 < count; c0 += W, values += M * kBlockColumns) {
    alignas(32) float factors[M][W];
    const int64_t in_block = least<int64_t>(W, count - c0);
    scale_steps<group_size, M>(piece.scales, from + c0, in_block, x, factors[0]);
    asm("" : "+m"(factors));  // from memory each is one broadcasting load, else two shuffles
    MLX_DELTA_UNROLL
    for (int i = 0; i < bits; ++i) prefetch(piece.ahead + c0 * 8 * bits + 64 * i);
#pragma GCC unroll 1
    for (int64_t c = 0; c < in_block; ++c) {
      __m256i f[4];
      Fields<bits>::apart(next, mask, f);
      data += c0 + c < last ? 8 * bits : 0;  // nothing beyond the row is read
      MLX_DELTA_UNROLL
      for (int m = 0; m < M; ++m) {
        const int16_t* xm = values + m * kBlockColumns + c * kChunk;
        __m256i sum;
        MLX_DELTA_UNROLL
        for (int j = 0; j < 4; ++j) {
          const __m256i products =
              _mm256_madd_epi16(f[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(xm + 16 * j)));
          sum = j == 0 ? products : _mm256_add_epi32(sum, products);
        }
        if (m == 0) {
          fields.lanes(data, next);
          MLX_DELTA_UNROLL
          for (int v = 0; v < vectors; ++v) asm volatile("" : "+x"(next[v]));  // here
        }
        a[m] += splat(factors[m][c]) * floats(I(sum));
        asm volatile("" : "+x"(a[m]));  // row by row: all at once, they are spilled
      }
    }
  }
  MLX_DELTA_UNROLL
  for (int m = 0; m < M; ++m) store(a[m], acc + m * W);
}

using MultiplyPiece = void (*)(const Piece&, int64_t, int64_t, const FixedX&, float*);

// out[unit, m, r]: rows n .. n + count of the matrix times all rows of x, by the multiply_piece that is theirs; then
// `next` is read. One function for all of those: 84 took GCC longer to compile than the products.
inline void multiply_few_rows(MultiplyPiece multiply, const MatrixView& matrix, int64_t n, int64_t count, RowOf next,
                              const FixedX& x, float* out) {
  const int64_t M = x.M, bits = matrix.bits, chunks = matrix.cols / kChunk, groups = matrix.cols / matrix.group_size;
  const int64_t most_chunks = kFewBytes / (2 * kBlockColumns * M) * (kBlockColumns / kChunk);
  const int64_t passes = (chunks + most_chunks - 1) / most_chunks;
  const int64_t of_pass = ((chunks + passes - 1) / passes + W - 1) / W * W;  // chunks
  float* acc = scratch_of<float>(4, count * M * W + kFinished * ((groups + W - 1) / W * W));
  float* biases = acc + count * M * W;
  fill(acc, count * M * W, 0.0f);
  PackedRow rows[2 * kRunRows];  // those that follow too
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = packed_row(matrix, n + r);
    rows[count + r] = packed_row(*next.matrix, next.row + r);
  }
  const int64_t pieces_ahead = least(most<int64_t>(1, stream_ahead().far / (of_pass * 8 * bits)), count);
  for (int64_t from = 0; from < chunks; from += of_pass) {
    const bool last = from + of_pass >= chunks;
    // Beyond the run's last row come the first ones' next columns, or the next run's rows.
    const auto asked = [&](int64_t r) {
      const int64_t next_from = from + of_pass;
      return r < count ? rows[r].data + from * 8 * bits
             : last    ? rows[r].data
                       : rows[r - count].data + next_from * 8 * bits;
    };
    for (int64_t r = 0; r < count; ++r) {
      if (last) {
        prefetch_values(rows[count + r].scales, groups);
        prefetch_values(rows[count + r].biases, groups);
      }
      const Piece piece{rows[r].data + from * 8 * bits, rows[r].scales, asked(r + pieces_ahead)};
      multiply(piece, from, least(of_pass, chunks - from), x, acc + r * M * W);
    }
  }
  finish_run(rows, count, groups, x, biases, acc, out);
}

// The same for x.M <= kFewRows rows of x.
template <int bits, int group_size>
void multiply_few(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x, float* out) {
  static constexpr MultiplyPiece of_rows[] = {
      multiply_piece<bits, group_size, 2>, multiply_piece<bits, group_size, 3>, multiply_piece<bits, group_size, 4>,
      multiply_piece<bits, group_size, 5>, multiply_piece<bits, group_size, 6>, multiply_piece<bits, group_size, 7>,
      multiply_piece<bits, group_size, 8>,
  };
  static_assert(sizeof(of_rows) / sizeof(of_rows[0]) == kFewRows - 1);
  multiply_few_rows(of_rows[x.M - 2], matrix, n, count, next, x, out);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

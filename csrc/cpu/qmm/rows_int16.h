// The rows of x in fixed point that no prompt's tiles take, one or several, times packed weights: a unit, or a run of
// them.
#pragma once

#include "cpu/qmm/few_avx2.h"

#if defined(MLX_DELTA_INT16)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

#if defined(MLX_DELTA_ISA_NEON)

// acc[m] (vectors) += chunks from .. to of a row, of one block, times all rows of x; the same operations in the same
// order.
template <int bits, int group_size>
void multiply_block(const PackedRow& row, int64_t from, int64_t to, const FixedX& x, float* acc) {
  const Fields<bits> fields;
  const int64_t M = x.M, step_stride = x.step_stride;  // read once: a store to acc might change them
  const int16_t* first = x.chunk(0, from);
  for (int64_t c = from; c < to; ++c) {
    typename Fields<bits>::Chunk f;
    fields(row.data + c * 8 * bits, f);
    const float scale = to_float(row.scales[c * kChunk / group_size]);
    prefetch(row.data + (c + to - from) * 8 * bits);
    const int16_t* values = first + (c - from) * kChunk;
    const float* steps = x.steps + c;
    for (int64_t m = 0; m < M; ++m, values += kBlockColumns, steps += step_stride) {
      const F part = floats(Fields<bits>::dot(f, values));
      store(load(acc + m * W) + splat(scale * *steps) * part, acc + m * W);
    }
  }
}

// out[unit, m, r]: rows n .. n + count of the matrix times all rows of x; then `next` is read.
template <int bits, int group_size>
void multiply_run(const MatrixView& matrix, int64_t n, int64_t count, RowOf, const FixedX& x, float* out) {
  const int64_t chunks = matrix.cols / kChunk, groups = matrix.cols / group_size, block = kBlockColumns / kChunk;
  const auto row = [&](int64_t r) { return packed_row<bits, group_size>(matrix, n + r); };
  float* acc = scratch_of<float>(4, count * x.M * W);
  fill(acc, count * x.M * W, 0.0f);
  for (int64_t c = 0; c < chunks; c += block)
    for (int64_t r = 0; r < count; ++r)
      multiply_block<bits, group_size>(row(r), c, least(c + block, chunks), x, acc + r * x.M * W);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t m = 0; m < x.M; ++m)
      out[(r / kUnitRows * x.M + m) * kUnitRows + r % kUnitRows] =
          finish_row<Fields<bits>::offset>(load(acc + (r * x.M + m) * W), row(r), x.sums + m * x.sum_stride, groups);
}

#endif

template <int bits, int group_size>
void multiply_packed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x, float* out) {
#if defined(__AVX2__)
  if (x.M > 1 && x.M <= kFewRows) return multiply_few<bits, group_size>(matrix, n, count, next, x, out);
#endif
  if (x.M > 1) return multiply_run<bits, group_size>(matrix, n, count, next, x, out);
  const int64_t chunks = matrix.cols / kChunk, groups = matrix.cols / group_size;
  for (int64_t r = 0; r < count; ++r) {
    const PackedRow ahead = packed_row<bits, group_size>(*next.matrix, next.row + r);
    prefetch_values(ahead.scales, groups);
    prefetch_values(ahead.biases, groups);
    out[r] = multiply_one<bits, group_size>(packed_row<bits, group_size>(matrix, n + r), chunks, x);
  }
}

// out[unit, m, r]: rows n .. n + count of the matrix times row m of x, by units of kUnitRows: one unit for one row of
// x, else up to kRunRows. `next`, a packed row, is read after them.
inline void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x,
                           float* out) {
  for_width(matrix, [&](auto bits, auto group_size) {
    if constexpr (decltype(group_size)::value >= kLeastGroup)
      multiply_packed<decltype(bits)::value, decltype(group_size)::value>(matrix, n, count, next, x, out);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

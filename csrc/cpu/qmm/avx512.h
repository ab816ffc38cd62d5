// qmm on packed weights with AVX-512 VBMI and VNNI: integer products, for bfloat16 x and bfloat16 scales.
//
// Per group of weights, y += scale * step * sum(q * x16) + bias * step * sum(x16), where x (times the norm weight) is
// held as 16-bit fixed point with one step a group: x = step * x16, |error| <= 2^-16 of the group's largest value,
// 64 times finer than the rounding of the output. x16 = 256 hi + lo goes through vpdpbusd as two signed bytes, against
// the unsigned weights: 64 exact products an instruction. Sums over a group are exact integers, so only the order of
// the float additions matters for a row to have the same bits whatever the number of rows, and both loops below share
// it.
//
// A 32-bit lane only ever sums one group's products in all vectors of a tile, and the sums of 2 weight rows (5 bits and
// more: 4) become one vector (tile_avx512.h): the float part (convert, step, scale, bias) is paid once for all of them.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/qmm/float.h"
#include "cpu/qmm/packed_avx512.h"
#include "cpu/qmm/tile_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// Rows n .. of a matrix.
struct PackedRows {
  const uint8_t* data;
  const uint16_t* scales;
  const uint16_t* biases;
  int64_t row_bytes, groups, cols;
};

// out[r] = the sums over lanes of a unit of `count` weight rows and one row of x; rows_of_vector of them share a
// vector.
template <int rows_of_vector>
inline void finish_unit(int64_t count, const float* acc, float* out) {
  const auto at = [&](int i) { return F(_mm512_load_ps(acc + i * 16)); };
  F sums;
  if constexpr (rows_of_vector == 2) {
    sums = add_quarters(add_quarters(add_pairs(at(0), at(1)), add_pairs(at(2), at(3))),
                        add_quarters(add_pairs(at(4), at(5)), add_pairs(at(6), at(7))));
  } else {
    const F quads = add_quarters(add_pairs(at(0), at(1)), add_pairs(at(2), at(3)));  // 0 1 4 5, 2 3 6 7, 8 9 12 13, ..
    sums = F(
        _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15), __m512(quads)));
  }
  _mm512_mask_storeu_ps(out, __mmask16((1u << count) - 1), __m512(sums));
}

// Sums of products with both bytes of x, and sum(q * x16) from them.
struct Products {
  __m512i hi, lo;
  I sum() const { return I(_mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo)); }
};

// acc + scale * step * dot + bias * x_sum, lane by lane
inline __m512 add_groups(__m512 acc, I dot, __m512 step, __m512 scale, __m512 x_sum, __m512 bias) {
  const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(__m512i(dot)), step);
  return _mm512_fmadd_ps(scale, sum, _mm512_fmadd_ps(bias, x_sum, acc));
}

// The scales and biases of tile t of weight row r, as one row's vectors.
template <int bits, int group_size, bool full>
struct TileFactors {
  __m512 scale, bias;

  __attribute__((always_inline)) TileFactors(const TileScales<bits, group_size>& scales, const PackedRows& rows,
                                             int64_t r, int64_t t) {
    constexpr int groups = Tile<bits, group_size>::groups;
    const auto of = [&](const uint16_t* values) __attribute__((always_inline)) {
      values += r * rows.groups + t * groups;
      return full ? scales(values) : scales.part(values, rows.groups - t * groups);
    };
    scale = of(rows.scales);
    bias = of(rows.biases);
  }
};

// One row of x times one weight row: the vector of sums. `near` and `far` are what to prefetch beside the row, as long.
//
// Reads bits / 8 + 4 / group_size bytes a weight. A tile of 512 weights at 3 bits is 8 permutations, 8 shifts, 8 masks,
// 16 products and 10 operations for the sums.
template <int bits, int group_size>
__attribute__((always_inline)) inline __m512 multiply_row(const PackedRows& rows, int64_t r, const uint8_t* near,
                                                          const uint8_t* far, const Unpack<bits, group_size>& unpack,
                                                          const TileScales<bits, group_size>& scales, const FixedX& x) {
  using T = Tile<bits, group_size>;
  const uint8_t* row = rows.data + r * rows.row_bytes;
  __m512 acc = _mm512_setzero_ps();
  const auto multiply = [&](int64_t t, auto full) __attribute__((always_inline)) {
    const uint8_t* p = row + t * T::bytes;
    const auto* xt = x.tile<T::vectors>(0, t);
    Products dot{_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i loaded[T::loads], w[T::vectors];
    if constexpr (full)
      load_tile<T>(p, loaded);
    else
      load_part_tile<T>(p, (rows.cols - t * T::weights) * bits / 8, loaded);
    unpack(loaded, w);
    if constexpr (full) {
      MLX_DELTA_UNROLL
      for (int i = 0; i < T::bytes; i += 64) {
        __builtin_prefetch(near + t * T::bytes + i, 0, 3);
        __builtin_prefetch(far + t * T::bytes + i, 0, 2);
      }
    }
    MLX_DELTA_UNROLL
    for (int j = 0; j < T::vectors; ++j) {
      dot.hi = _mm512_dpbusd_epi32(dot.hi, w[j], _mm512_load_si512(xt->hi + 64 * j));
      dot.lo = _mm512_dpbusd_epi32(dot.lo, w[j], _mm512_load_si512(xt->lo + 64 * j));
    }
    return dot;
  };
  const auto add = [&](int64_t t, const Products& dot, auto full) __attribute__((always_inline)) {
    const TileFactors<bits, group_size, full> of(scales, rows, r, t);
    const auto* xt = x.tile<T::vectors>(0, t);
    acc = add_groups(acc, add_lanes<T::rows>(dot.sum()), _mm512_load_ps(xt->steps), of.scale, _mm512_load_ps(xt->sums),
                     of.bias);
  };
  // A tile's float part comes after the products of the next one: waiting for its own, it would fill the scheduler.
  const int64_t whole = rows.cols / T::weights;
  if (whole > 0) {
    Products dot = multiply(0, std::true_type{});
    for (int64_t t = 1; t < whole; ++t) {
      const Products next = multiply(t, std::true_type{});
      add(t - 1, dot, std::true_type{});
      dot = next;
    }
    add(whole - 1, dot, std::true_type{});
  }
  if (whole < x.tiles) add(whole, multiply(whole, std::false_type{}), std::false_type{});
  return acc;
}

// Memory is read as one stream, a row after the other, and asked for in that order: that is how it is fastest. `next`
// is what this thread reads after the unit: the next one, or up rows after gate rows.
template <int bits, int group_size>
void multiply_one(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, float* out) {
  constexpr int NR = Tile<bits, group_size>::rows;
  const Unpack<bits, group_size> unpack;
  const TileScales<bits, group_size> scales;
  const Ahead ahead = stream_ahead();
  const auto beyond = [&](int64_t at) {
    const int64_t unit = count * rows.row_bytes;
    return at < unit ? rows.data + at : next.data + (at - unit);
  };
  __m512 acc[kUnitRows] = {};
  for (int64_t r = 0; r < count; ++r) {
    prefetch_values(next.scales + r * rows.groups, rows.groups);
    prefetch_values(next.biases + r * rows.groups, rows.groups);
    const int64_t at = r * rows.row_bytes;
    acc[r] =
        multiply_row<bits, group_size>(rows, r, beyond(at + ahead.near), beyond(at + ahead.far), unpack, scales, x);
  }
  alignas(64) float shared[kUnitRows / NR * 16];
  MLX_DELTA_UNROLL
  for (int i = 0; i < kUnitRows; i += NR) {
    __m512 of[NR];
    for (int r = 0; r < NR; ++r) of[r] = acc[i + r];
    _mm512_store_ps(shared + i / NR * 16, share_lanes(of));
  }
  finish_unit<NR>(count, shared, out);
}

// Several rows of x, `M` from row m0 on, and `count` <= kRunRows weight rows: tiles of a few of these are unpacked in
// registers and pass by all rows of x, whose own tile is in L1 meanwhile. The more weight rows, the less often x comes
// from L2, for which L1 has to wait while it waits for memory; but their sums share L1. `next` is what this thread
// reads after them.
template <int bits, int group_size>
void multiply_several(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, int64_t m0,
                      int64_t M, float* out) {
  using T = Tile<bits, group_size>;
  constexpr int NR = T::rows;
  constexpr int64_t ahead = 2048 / T::weights;       // tiles: some 4000 ns
  constexpr int x_part = 2 * T::weights / kRunRows;  // of the next tile of x, in bytes: asked for beside a weight row
  constexpr int64_t run = (kRunRows / NR + 1) * 16;  // floats that a row of x sums, not a power of two of them
  const Unpack<bits, group_size> unpack;
  const TileScales<bits, group_size> scales;
  const int64_t tiles = x.tiles;
  float* acc = scratch_of<float>(4, M * run);  // [M, rows / NR] vectors of sums
  std::memset(acc, 0, size_t(M * run) * sizeof(float));
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t left = rows.cols - t * T::weights;
    const auto* x_tile = x.tile<T::vectors>(m0, t);
    const auto* next_x_tile = x.tile<T::vectors>(m0, t + 1 < tiles ? t + 1 : 0);
    const uint8_t* next_tile =
        t + ahead < tiles ? rows.data + (t + ahead) * T::bytes : next.data + (t + ahead - tiles) * T::bytes;
    const auto multiply = [&](int64_t r0, auto full) __attribute__((always_inline)) {
      __m512i w[NR][T::vectors];
      __m512 scales_of[NR], biases_of[NR];
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) {
        const int64_t row = least(r0 + r, count - 1);  // the last one stands in for missing ones
        const uint8_t* p = rows.data + row * rows.row_bytes + t * T::bytes;
        __m512i loaded[T::loads];
        if constexpr (full)
          load_tile<T>(p, loaded);
        else
          load_part_tile<T>(p, left * bits / 8, loaded);
        unpack(loaded, w[r]);
        const TileFactors<bits, group_size, full> of(scales, rows, row, t);
        scales_of[r] = of.scale;
        biases_of[r] = of.bias;
        MLX_DELTA_UNROLL
        for (int i = 0; i < T::bytes; i += 64) prefetch(next_tile + row * rows.row_bytes + i);
        if (t * T::groups % 32 == 0) {  // once a line
          prefetch(next.scales + row * rows.groups + t * T::groups);
          prefetch(next.biases + row * rows.groups + t * T::groups);
        }
      }
      const __m512 scale = share_lanes(scales_of), bias = share_lanes(biases_of);
      float* at = acc + r0 / NR * 16;
      const auto* xt = x_tile;
      const int8_t* next_x = next_x_tile->hi + r0 * x_part;
      struct Sums {
        I of[NR];
      };
      const auto products = [&]() __attribute__((always_inline)) {
        MLX_DELTA_UNROLL
        for (int i = 0; i < NR * x_part; i += 64) __builtin_prefetch(next_x + i, 0, 3);
        Products dot[NR];
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) dot[r] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        MLX_DELTA_UNROLL
        for (int j = 0; j < T::vectors; ++j) {
          const __m512i xh = held(_mm512_load_si512(xt->hi + 64 * j));
          MLX_DELTA_UNROLL
          for (int r = 0; r < NR; ++r) dot[r].hi = _mm512_dpbusd_epi32(dot[r].hi, w[r][j], xh);
          const __m512i xl = held(_mm512_load_si512(xt->lo + 64 * j));
          MLX_DELTA_UNROLL
          for (int r = 0; r < NR; ++r) dot[r].lo = _mm512_dpbusd_epi32(dot[r].lo, w[r][j], xl);
        }
        ++xt, next_x += sizeof(*xt);
        Sums sums;
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) sums.of[r] = dot[r].sum();
        return sums;
      };
      const auto add = [&](const auto* x_of, const Sums& sums) __attribute__((always_inline)) {
        _mm512_store_ps(at, add_groups(_mm512_load_ps(at), add_rows(sums.of), _mm512_load_ps(x_of->steps), scale,
                                       _mm512_load_ps(x_of->sums), bias));
        at += run;
      };
      // As for one row of x; sums of 4 weight rows would leave the registers.
      if constexpr (NR == 2) {
        Sums sums = products();
        for (int64_t m = 1; m < M; ++m) {
          const Sums next_sums = products();
          add(xt - 2, sums);
          sums = next_sums;
        }
        add(xt - 1, sums);
      } else {
        for (int64_t m = 0; m < M; ++m) {
          const Sums sums = products();
          add(xt - 1, sums);
        }
      }
    };
    if (left >= T::weights)
      for (int64_t r = 0; r < count; r += NR) multiply(r, std::true_type{});
    else
      for (int64_t r = 0; r < count; r += NR) multiply(r, std::false_type{});
  }
  for (int64_t r = 0; r < count; r += kUnitRows)
    for (int64_t m = 0; m < M; ++m)
      finish_unit<NR>(least<int64_t>(kUnitRows, count - r), acc + m * run + r / NR * 16,
                      out + r * x.M + (m0 + m) * kUnitRows);
}

template <int bits, int group_size>
void multiply_packed(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, float* out) {
  if (x.M == 1) return multiply_one<bits, group_size>(rows, count, next, x, out);
  constexpr int64_t some = 16;  // rows of x, whose tile and sums fill L1
  for (int64_t m = 0; m < x.M; m += some)
    multiply_several<bits, group_size>(rows, count, next, x, m, least(some, x.M - m), out);
}

inline PackedRows packed_rows(const MatrixView& matrix, int64_t n) {
  const int64_t row_bytes = matrix.cols * matrix.bits / 8, groups = matrix.cols / matrix.group_size;
  return {static_cast<const uint8_t*>(matrix.data) + n * row_bytes,
          static_cast<const uint16_t*>(matrix.scales) + n * groups,
          static_cast<const uint16_t*>(matrix.biases) + n * groups,
          row_bytes,
          groups,
          matrix.cols};
}

void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x, float* out) {
  for_width(matrix, [&](auto bits, auto group_size) {
    multiply_packed<decltype(bits)::value, decltype(group_size)::value>(packed_rows(matrix, n), count,
                                                                        packed_rows(*next.matrix, next.row), x, out);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

// qmm on packed weights with AVX-512 VBMI and VNNI: integer products, for bfloat16 x and bfloat16 scales.
//
// Per group of weights, y += scale * step * sum(q * x16) + bias * step * sum(x16), where x (times the norm weight) is
// held as 16-bit fixed point with one step a group: x = step * x16, |error| <= 2^-16 of the group's largest value,
// 64 times finer than the rounding of the output. x16 = 256 hi + lo goes through vpdpbusd as two signed bytes, against
// the unsigned weights: 64 exact products an instruction. Sums over a group are exact integers, so only the order of
// the float additions matters for a row to have the same bits whatever the number of rows, and both loops below share
// it.
//
// A 32-bit lane only ever sums one group's products in all vectors of a tile (tile_avx512.h): the float part (convert,
// step, scale) is paid once a tile.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/lanes_avx512.h"
#include "cpu/qmm_float.h"
#include "cpu/tile_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

constexpr int kLeastGroup = 32;

// A row's part of x in fixed point, in the order of the weights of a tile.
template <int vectors>
struct alignas(64) XTile {
  int8_t hi[64 * vectors], lo[64 * vectors];
  float steps[16];  // of each lane's group
  float sums[16];   // step * sum(x16) of each group in its first lane, else 0
};

// x of one call in fixed point, for tiles of one number of vectors and one group size.
struct FixedX {
  const void* data;  // [tiles, M] XTile
  int64_t M, tiles;

  template <int vectors>
  const XTile<vectors>* tile(int64_t m, int64_t t) const {
    return static_cast<const XTile<vectors>*>(data) + t * M + m;
  }
};

// Rows n .. of a matrix.
struct PackedRows {
  const uint8_t* data;
  const uint16_t* scales;
  const uint16_t* biases;
  int64_t row_bytes, groups, cols;

  PackedRows from(int64_t r) const {
    return {data + r * row_bytes, scales + r * groups, biases + r * groups, row_bytes, groups, cols};
  }
};

// out[r] = the sums over lanes of acc[r], for a unit of `count` weight rows and one row of x.
inline void finish_unit(int64_t count, const float* acc, float* out) {
  __m512 unit[kUnitRows];
  for (int64_t r = 0; r < kUnitRows; ++r) unit[r] = _mm512_load_ps(acc + r * 16);
  _mm512_mask_storeu_ps(out, __mmask16((1u << count) - 1), sums_of_rows(unit));
}

// One row of x times one weight row: the vector of sums. `near` and `far` are what to prefetch beside the row, as long.
//
// Reads bits / 8 + 4 / group_size bytes a weight. A tile of 512 weights at 3 bits is 8 permutations, 8 shifts, 8 masks,
// 16 products and 7 operations of float arithmetic.
template <int bits, int group_size>
__attribute__((always_inline)) inline __m512 multiply_row(const PackedRows& rows, int64_t r, const uint8_t* near,
                                                          const uint8_t* far, const Unpack<bits, group_size>& unpack,
                                                          const TileScales<bits, group_size>& scales, const FixedX& x) {
  using T = Tile<bits, group_size>;
  constexpr int groups = T::weights / group_size;
  const uint8_t* row = rows.data + r * rows.row_bytes;
  const uint16_t *row_scales = rows.scales + r * rows.groups, *row_biases = rows.biases + r * rows.groups;
  __m512 acc = _mm512_setzero_ps();
  struct Products {
    __m512i hi, lo;
  };
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
    const auto* xt = x.tile<T::vectors>(0, t);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(dot.hi, 8), dot.lo));
    const auto of_lanes = [&](const uint16_t* values) {
      return full ? scales(values + t * groups) : scales.part(values + t * groups, rows.groups - t * groups);
    };
    acc = _mm512_fmadd_ps(of_lanes(row_biases), _mm512_load_ps(xt->sums), acc);
    acc = _mm512_fmadd_ps(of_lanes(row_scales), _mm512_mul_ps(sum, _mm512_load_ps(xt->steps)), acc);
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
  if (whole * T::weights < rows.cols) add(whole, multiply(whole, std::false_type{}), std::false_type{});
  return acc;
}

// Memory is read as one stream, a row after the other, and asked for in that order: that is how it is fastest. `next`
// is what this thread reads after the unit: the next one, or up rows after gate rows.
template <int bits, int group_size>
void multiply_one(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, float* out) {
  const Unpack<bits, group_size> unpack;
  const TileScales<bits, group_size> scales;
  const Ahead ahead = stream_ahead();
  const auto beyond = [&](int64_t at) {
    const int64_t unit = count * rows.row_bytes;
    return at < unit ? rows.data + at : next.data + (at - unit);
  };
  alignas(64) float acc[kUnitRows * 16] = {};
  for (int64_t r = 0; r < count; ++r) {
    prefetch_values(next.scales + r * rows.groups, rows.groups);
    prefetch_values(next.biases + r * rows.groups, rows.groups);
    const int64_t at = r * rows.row_bytes;
    _mm512_store_ps(acc + 16 * r, multiply_row<bits, group_size>(rows, r, beyond(at + ahead.near),
                                                                 beyond(at + ahead.far), unpack, scales, x));
  }
  finish_unit(count, acc, out);
}

// The weight rows that several rows of x take at a time. The more, the less often x comes from L2, for which L1 has to
// wait while it waits for memory; but their sums share L1 with x.
template <int vectors>
constexpr int64_t kTileRun = vectors == 8 ? kRunRows : kUnitRows;

// Several rows of x, `M` from row m0 on, and `count` <= kTileRun weight rows: tiles of a few of these are unpacked in
// registers and pass by all rows of x, whose own tile is in L1 meanwhile. `next` is what this thread reads after them.
template <int bits, int group_size>
void multiply_several(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, int64_t m0,
                      int64_t M, float* out) {
  using T = Tile<bits, group_size>;
  constexpr int groups = T::weights / group_size;
  constexpr int64_t ahead = 2048 / T::weights;   // tiles: some 4000 ns
  constexpr int some = T::vectors == 8 ? 2 : 4;  // weight rows whose tiles fill half of the registers
  constexpr int64_t run = kTileRun<T::vectors>;
  constexpr int x_part = 2 * T::weights / run;  // of the next tile of x, in bytes: asked for beside a weight row
  const Unpack<bits, group_size> unpack;
  const TileScales<bits, group_size> scales;
  const int64_t tiles = x.tiles;
  float* acc = scratch_of<float>(4, M * run * 16);  // [M, rows] vectors of sums
  std::memset(acc, 0, size_t(M * run * 16) * sizeof(float));
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t left = rows.cols - t * T::weights;
    const auto* x_tile = x.tile<T::vectors>(m0, t);
    const auto* next_x_tile = x.tile<T::vectors>(m0, t + 1 < tiles ? t + 1 : 0);
    const uint8_t* next_tile =
        t + ahead < tiles ? rows.data + (t + ahead) * T::bytes : next.data + (t + ahead - tiles) * T::bytes;
    const auto multiply = [&](int64_t r0, auto rows_of_w, auto full) __attribute__((always_inline)) {
      constexpr int NR = decltype(rows_of_w)::value;
      __m512i w[NR][T::vectors];
      __m512 scale[NR], bias[NR];
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) {
        const uint8_t* p = rows.data + (r0 + r) * rows.row_bytes + t * T::bytes;
        const int64_t first_group = (r0 + r) * rows.groups + t * groups;
        const auto of_lanes = [&](const uint16_t* values) {
          return full ? scales(values + first_group) : scales.part(values + first_group, left / group_size);
        };
        __m512i loaded[T::loads];
        if constexpr (full)
          load_tile<T>(p, loaded);
        else
          load_part_tile<T>(p, left * bits / 8, loaded);
        unpack(loaded, w[r]);
        scale[r] = of_lanes(rows.scales);
        bias[r] = of_lanes(rows.biases);
        MLX_DELTA_UNROLL
        for (int i = 0; i < T::bytes; i += 64) prefetch(next_tile + (r0 + r) * rows.row_bytes + i);
        if (t * groups % 32 == 0) {  // once a line
          prefetch(next.scales + (r0 + r) * rows.groups + t * groups);
          prefetch(next.biases + (r0 + r) * rows.groups + t * groups);
        }
      }
      float* at = acc + r0 * 16;
      const auto* xt = x_tile;
      const int8_t* next_x = next_x_tile->hi + r0 * x_part;
      for (int64_t m = 0; m < M; ++m) {
        MLX_DELTA_UNROLL
        for (int i = 0; i < NR * x_part; i += 64) __builtin_prefetch(next_x + i, 0, 3);
        __m512i hi[NR], lo[NR];
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) hi[r] = lo[r] = _mm512_setzero_si512();
        MLX_DELTA_UNROLL
        for (int j = 0; j < T::vectors; ++j) {
          const __m512i xh = held(_mm512_load_si512(xt->hi + 64 * j));
          MLX_DELTA_UNROLL
          for (int r = 0; r < NR; ++r) hi[r] = _mm512_dpbusd_epi32(hi[r], w[r][j], xh);
          const __m512i xl = held(_mm512_load_si512(xt->lo + 64 * j));
          MLX_DELTA_UNROLL
          for (int r = 0; r < NR; ++r) lo[r] = _mm512_dpbusd_epi32(lo[r], w[r][j], xl);
        }
        const __m512 step = _mm512_load_ps(xt->steps), x_sum = _mm512_load_ps(xt->sums);
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) {
          const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(hi[r], 8), lo[r]);
          const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), step);
          const __m512 before = _mm512_fmadd_ps(bias[r], x_sum, _mm512_load_ps(at + 16 * r));
          _mm512_store_ps(at + 16 * r, _mm512_fmadd_ps(scale[r], sum, before));
        }
        ++xt, next_x += sizeof(*xt), at += run * 16;
      }
    };
    const auto all_rows = [&](auto full) __attribute__((always_inline)) {
      int64_t r = 0;
      for (; r + some <= count; r += some) multiply(r, std::integral_constant<int, some>{}, full);
      for (; r < count; ++r) multiply(r, std::integral_constant<int, 1>{}, full);
    };
    if (left >= T::weights)
      all_rows(std::true_type{});
    else
      all_rows(std::false_type{});
  }
  for (int64_t r = 0; r < count; r += kUnitRows)
    for (int64_t m = 0; m < M; ++m)
      finish_unit(least<int64_t>(kUnitRows, count - r), acc + (m * run + r) * 16, out + r * x.M + (m0 + m) * kUnitRows);
}

template <int bits, int group_size>
void multiply_packed(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, float* out) {
  if (x.M == 1) return multiply_one<bits, group_size>(rows, count, next, x, out);
  constexpr int64_t some = 16;  // rows of x, whose tile and sums fill L1
  constexpr int64_t run = kTileRun<Tile<bits, group_size>::vectors>;
  for (int64_t r = 0; r < count; r += run) {
    const PackedRows part = rows.from(r), after = r + run < count ? rows.from(r + run) : next;
    for (int64_t m = 0; m < x.M; m += some)
      multiply_several<bits, group_size>(part, least(run, count - r), after, x, m, least(some, x.M - m), out + r * x.M);
  }
}

inline PackedRows packed_rows(const MatrixView& matrix, int64_t n) {
  const PackedRows all{static_cast<const uint8_t*>(matrix.data),
                       static_cast<const uint16_t*>(matrix.scales),
                       static_cast<const uint16_t*>(matrix.biases),
                       matrix.cols * matrix.bits / 8,
                       matrix.cols / matrix.group_size,
                       matrix.cols};
  return all.from(n);
}

// out[unit, m, r]: rows n .. n + count of the matrix times row m of x, by units of kUnitRows; one unit for one row of
// x, else up to kRunRows. `next`, a packed row, is read after them.
inline void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x,
                           float* out) {
  for_width(matrix, [&](auto bits, auto group_size) {
    multiply_packed<decltype(bits)::value, decltype(group_size)::value>(packed_rows(matrix, n), count,
                                                                        packed_rows(*next.matrix, next.row), x, out);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

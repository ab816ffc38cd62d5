// qmm on packed weights with AVX-512 VBMI and VNNI: integer products, for bfloat16 x and bfloat16 scales.
//
// Per group of weights, y += scale * step * sum(q * x16) + bias * step * sum(x16), where x (times the norm weight) is
// held as 16-bit fixed point with one step a group: x = step * x16, |error| <= 2^-16 of the group's largest value,
// 64 times finer than the rounding of the output. x16 = 256 hi + lo goes through vpdpbusd as two signed bytes, against
// the unsigned weights: 64 exact products an instruction. Sums over a group are exact integers, so only the order of
// the float additions matters for a row to have the same bits whatever the number of rows, and both loops below share
// it.
//
// A tile is NV vectors of 64 weights. They are arranged so that a 32-bit lane only ever sums one group's products, in
// all NV vectors: the float part (convert, step, scale) is paid once a tile. One vpermi2b from two loads brings the
// bytes of eight values into each 64-bit lane, one vpmultishiftqb spreads them to bytes, one vpandd cuts them to width.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/qmm_float.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// How tiles of one width and group size lie in memory.
template <int bits>
struct Tile {
  static constexpr int vectors = bits <= 4 ? 4 : 2;
  static constexpr int weights = 64 * vectors;
  static constexpr int bytes = weights * bits / 8;  // 64 .. 128: two loads, the second at its end, cover it
};

// Where octet `octet` of group `group` of a tile goes: 64-bit lane `lane` of vector `vector`.
struct Place {
  int vector, lane;
};
template <int vectors, int group_size>
constexpr Place place(int group, int octet) {
  constexpr int groups = 64 * vectors / group_size;
  constexpr int lanes = 8 / groups;
  return {octet / lanes, group * lanes + octet % lanes};
}

// x of one call in fixed point, for tiles of `vectors` and one group size.
struct FixedX {
  const int8_t* planes;  // [M, tiles, 2 (hi, lo), vectors, 64]
  const float* steps;    // [M, tiles, 16]: the step of each lane's group
  const float* sums;     // [M, groups]: step * sum(x16), rounded up to whole vectors
  int64_t tiles;
  int64_t sum_stride;
};

// The vectors that unpack a tile.
template <int bits, int group_size>
struct Unpack {
  __m512i index[Tile<bits>::vectors];
  __m512i shifts, mask;

  Unpack() {
    using T = Tile<bits>;
    alignas(64) uint8_t from[T::vectors][64] = {};
    for (int g = 0; g < T::weights / group_size; ++g)
      for (int o = 0; o < group_size / 8; ++o) {
        const Place p = place<T::vectors, group_size>(g, o);
        for (int i = 0; i < bits; ++i) {
          const int at = (g * group_size / 8 + o) * bits + i;
          from[p.vector][8 * p.lane + i] = uint8_t(at < 64 ? at : 64 + at - (T::bytes - 64));
        }
      }
    MLX_DELTA_UNROLL
    for (int j = 0; j < T::vectors; ++j) index[j] = _mm512_load_si512(from[j]);
    alignas(64) uint8_t shift[64];
    for (int i = 0; i < 64; ++i) shift[i] = uint8_t(i % 8 * bits);
    shifts = _mm512_load_si512(shift);
    mask = _mm512_set1_epi8(char((1 << bits) - 1));
  }

  __m512i operator()(__m512i first, __m512i second, int j) const {
    const __m512i octets =
        bits == 2 ? _mm512_permutexvar_epi8(index[j], first) : _mm512_permutex2var_epi8(first, index[j], second);
    if constexpr (bits == 8) return octets;
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, octets), mask);
  }
};

// Two loads that cover the first `bytes` bytes of a tile; the rest is 0.
template <int bits>
inline void load_tile(const uint8_t* p, __m512i& first, __m512i& second) {
  first = _mm512_loadu_si512(p);
  second = bits == 2 ? first : _mm512_loadu_si512(p + Tile<bits>::bytes - 64);
}
template <int bits>
inline void load_part_tile(const uint8_t* p, int64_t bytes, __m512i& first, __m512i& second) {
  const auto mask_of = [](int64_t n) {
    return n <= 0 ? __mmask64{0} : n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
  };
  first = _mm512_maskz_loadu_epi8(mask_of(bytes), p);
  second = _mm512_maskz_loadu_epi8(mask_of(bytes - (Tile<bits>::bytes - 64)), p + Tile<bits>::bytes - 64);
}

// The scales of a tile's groups, each in its group's lanes: one broadcasting load and one byte shuffle, which moves
// each bfloat16 into the upper half of its lanes.
template <int groups>
struct Scales {
  __m512i index;

  Scales() {
    alignas(64) uint8_t from[64];
    for (int lane = 0; lane < 16; ++lane) {
      const int group = lane * groups / 16;
      from[4 * lane] = from[4 * lane + 1] = 0x80;
      from[4 * lane + 2] = uint8_t(2 * group);
      from[4 * lane + 3] = uint8_t(2 * group + 1);
    }
    index = _mm512_load_si512(from);
  }

  __m512 operator()(const uint16_t* p) const { return shuffle(broadcast(p, groups)); }
  __m512 part(const uint16_t* p, int64_t count) const {
    uint16_t padded[8] = {};
    std::memcpy(padded, p, size_t(least<int64_t>(count, groups)) * 2);
    return shuffle(broadcast(padded, groups));
  }

 private:
  __m512 shuffle(__m512i x) const { return _mm512_castsi512_ps(_mm512_shuffle_epi8(x, index)); }
  static __m512i broadcast(const uint16_t* p, int) {
    if constexpr (groups == 8) {
      return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    } else if constexpr (groups == 4) {
      int64_t word;
      std::memcpy(&word, p, 8);
      return _mm512_set1_epi64(word);
    } else if constexpr (groups == 2) {
      int32_t word;
      std::memcpy(&word, p, 4);
      return _mm512_set1_epi32(word);
    } else {
      return _mm512_set1_epi16(int16_t(*p));
    }
  }
};

inline __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

// acc + sum_g bias_g sum_g, lane by lane
inline __m512 add_biases(__m512 acc, const uint16_t* biases, const float* sums, int64_t groups) {
  int64_t g = 0;
  for (; g + 16 <= groups; g += 16)
    acc = _mm512_fmadd_ps(widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(biases + g))),
                          _mm512_loadu_ps(sums + g), acc);
  if (g < groups) {
    const __mmask16 mask = __mmask16((1u << (groups - g)) - 1);
    acc =
        _mm512_fmadd_ps(widen(_mm256_maskz_loadu_epi16(mask, biases + g)), _mm512_maskz_loadu_ps(mask, sums + g), acc);
  }
  return acc;
}

// Rows n .. of a matrix.
struct PackedRows {
  const uint8_t* data;
  const uint16_t* scales;
  const uint16_t* biases;
  int64_t row_bytes, groups, cols;
};

// One row of x times `count` weight rows, one after the other: a single stream of memory, which the prefetchers follow
// and the explicit prefetch (8 KB ahead, to L2, where more lines can be in flight than in L1) keeps running across
// pages. Four rows side by side halved the speed. Reads bits / 8 + 4 / group_size bytes a weight, 2 loads a tile; live
// registers: 2 loaded, 2 integer and 1 float sums, 7 constants, so that several tiles overlap.
template <int bits, int group_size>
void multiply_one(const PackedRows& rows, int64_t count, const FixedX& x, float* out) {
  using T = Tile<bits>;
  constexpr int groups = T::weights / group_size;
  const Unpack<bits, group_size> unpack;
  const Scales<groups> scales;
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* row = rows.data + r * rows.row_bytes;
    const uint16_t* row_scales = rows.scales + r * rows.groups;
    __m512 acc = _mm512_setzero_ps();
    const auto run = [&](int64_t t, auto full) __attribute__((always_inline)) {
      const uint8_t* p = row + t * T::bytes;
      const int64_t left = rows.cols - t * T::weights;
      __m512i first, second, hi = _mm512_setzero_si512(), lo = hi;
      if constexpr (full) {
        load_tile<bits>(p, first, second);
        prefetch_far(p);
        if (T::bytes > 64) prefetch_far(p + 64);
      } else {
        load_part_tile<bits>(p, left * bits / 8, first, second);
      }
      const int8_t* planes = x.planes + t * 2 * T::weights;
      MLX_DELTA_UNROLL
      for (int j = 0; j < T::vectors; ++j) {
        const __m512i w = unpack(first, second, j);
        hi = _mm512_dpbusd_epi32(hi, w, _mm512_load_si512(planes + 64 * j));
        lo = _mm512_dpbusd_epi32(lo, w, _mm512_load_si512(planes + T::weights + 64 * j));
      }
      const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo);
      const uint16_t* s = row_scales + t * groups;
      const __m512 scale = full ? scales(s) : scales.part(s, left / group_size);
      acc = _mm512_fmadd_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_load_ps(x.steps + 16 * t)), acc);
    };
    const int64_t whole = rows.cols / T::weights;
    for (int64_t t = 0; t < whole; ++t) run(t, std::true_type{});
    if (whole * T::weights < rows.cols) run(whole, std::false_type{});
    out[r] = _mm512_reduce_add_ps(add_biases(acc, rows.biases + r * rows.groups, x.sums, rows.groups));
  }
}

// panel[t, r] = tile t of row r unpacked to bytes; columns beyond the row are 0. Tile by tile: rows a power of two
// apart would all fall into the same few sets of L1.
template <int bits, int group_size>
void unpack_panel(const PackedRows& rows, int64_t count, int64_t tiles, uint8_t* panel) {
  using T = Tile<bits>;
  const Unpack<bits, group_size> unpack;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t t = 0; t < tiles; ++t) {
      uint8_t* to = panel + (t * count + r) * T::weights;
      __m512i first, second;
      const uint8_t* p = rows.data + r * rows.row_bytes + t * T::bytes;
      const int64_t left = rows.cols - t * T::weights;
      if (left >= T::weights)
        load_tile<bits>(p, first, second);
      else
        load_part_tile<bits>(p, left * bits / 8, first, second);
      prefetch_far(p);
      if (T::bytes > 64) prefetch_far(p + 64);
      MLX_DELTA_UNROLL
      for (int j = 0; j < T::vectors; ++j) _mm512_store_si512(to + 64 * j, unpack(first, second, j));
    }
}

// NR rows of a panel times MR rows of x over tiles [from, to): acc[m][r] in vectors. NR MR integer and as many float
// sums in registers, NR weights, 1 of x.
template <int vectors, int group_size, int MR, int NR>
void multiply_tiles(const uint8_t* panel, int64_t count, const uint16_t* row_scales, int64_t row_groups,
                    const FixedX& x, int64_t m, int64_t from, int64_t to, float* acc_at, int64_t acc_stride) {
  constexpr int weights = 64 * vectors, groups = weights / group_size;
  const Scales<groups> scales;
  __m512 acc[MR][NR];
  MLX_DELTA_UNROLL
  for (int i = 0; i < MR; ++i) MLX_DELTA_UNROLL
  for (int r = 0; r < NR; ++r) acc[i][r] = _mm512_load_ps(acc_at + i * acc_stride + r * 16);
  const auto run = [&](int64_t t, auto full) __attribute__((always_inline)) {
    __m512i dot[MR][NR];
    MLX_DELTA_UNROLL
    for (int i = 0; i < MR; ++i) MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) dot[i][r] = _mm512_setzero_si512();
    MLX_DELTA_UNROLL
    for (int plane = 0; plane < 2; ++plane) {
      MLX_DELTA_UNROLL
      for (int j = 0; j < vectors; ++j) {
        __m512i w[NR];
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) w[r] = _mm512_load_si512(panel + (t * count + r) * weights + 64 * j);
        MLX_DELTA_UNROLL
        for (int i = 0; i < MR; ++i) {
          const __m512i xj = _mm512_load_si512(x.planes + (((m + i) * x.tiles + t) * 2 + plane) * weights + 64 * j);
          MLX_DELTA_UNROLL
          for (int r = 0; r < NR; ++r) dot[i][r] = _mm512_dpbusd_epi32(dot[i][r], w[r], xj);
        }
      }
      if (plane == 0) MLX_DELTA_UNROLL
      for (int i = 0; i < MR; ++i) MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) dot[i][r] = _mm512_slli_epi32(dot[i][r], 8);
    }
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      const uint16_t* s = row_scales + r * row_groups + t * groups;
      const __m512 scale = full ? scales(s) : scales.part(s, row_groups - t * groups);
      MLX_DELTA_UNROLL
      for (int i = 0; i < MR; ++i) {
        const __m512 step = _mm512_load_ps(x.steps + ((m + i) * x.tiles + t) * 16);
        acc[i][r] = _mm512_fmadd_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(dot[i][r]), step), acc[i][r]);
      }
    }
  };
  const int64_t whole = least(to, row_groups / groups);
  for (int64_t t = from; t < whole; ++t) run(t, std::true_type{});
  if (whole < to) run(whole, std::false_type{});
  MLX_DELTA_UNROLL
  for (int i = 0; i < MR; ++i) MLX_DELTA_UNROLL
  for (int r = 0; r < NR; ++r) _mm512_store_ps(acc_at + i * acc_stride + r * 16, acc[i][r]);
}

// Several rows of x: the unit's rows are unpacked once, to a panel in L2, and pass by all rows of x in blocks of 1024
// columns (16 KB for 16 rows), which stay in L1.
template <int vectors, int group_size>
void multiply_panel(const PackedRows& rows, int64_t count, const uint8_t* panel, const FixedX& x, int64_t M,
                    float* out) {
  constexpr int64_t weights = 64 * vectors, block = 1024 / weights;
  constexpr int64_t acc_stride = kUnitRows * 16;
  float* acc = scratch_of<float>(4, M * acc_stride);
  std::memset(acc, 0, size_t(M * acc_stride) * sizeof(float));
  for (int64_t t = 0; t < x.tiles; t += block) {
    const int64_t end = least(t + block, x.tiles);
    const auto some = [&](int64_t m, auto rows_of_x) {
      constexpr int MR = decltype(rows_of_x)::value;
      int64_t r = 0;
      const auto at = [&](auto rows_of_w) {
        constexpr int NR = decltype(rows_of_w)::value;
        multiply_tiles<vectors, group_size, MR, NR>(panel + r * weights, count, rows.scales + r * rows.groups,
                                                    rows.groups, x, m, t, end, acc + m * acc_stride + r * 16,
                                                    acc_stride);
        r += NR;
      };
      while (r + 4 <= count) at(std::integral_constant<int, 4>{});
      while (r < count) at(std::integral_constant<int, 1>{});
    };
    int64_t m = 0;
    for (; m + 3 <= M && m + 4 != M; m += 3) some(m, std::integral_constant<int, 3>{});
    for (; m + 2 <= M; m += 2) some(m, std::integral_constant<int, 2>{});
    if (m < M) some(m, std::integral_constant<int, 1>{});
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < count; ++r)
      out[r * M + m] =
          _mm512_reduce_add_ps(add_biases(_mm512_load_ps(acc + m * acc_stride + r * 16), rows.biases + r * rows.groups,
                                          x.sums + m * x.sum_stride, rows.groups));
}

template <int bits, int group_size>
void multiply_packed(const PackedRows& rows, int64_t count, const FixedX& x, int64_t M, float* out) {
  if (M == 1) return multiply_one<bits, group_size>(rows, count, x, out);
  uint8_t* panel = scratch_of<uint8_t>(3, count * x.tiles * Tile<bits>::weights);
  unpack_panel<bits, group_size>(rows, count, x.tiles, panel);
  multiply_panel<Tile<bits>::vectors, group_size>(rows, count, panel, x, M, out);
}

template <int bits>
void multiply_groups(int group_size, const PackedRows& rows, int64_t count, const FixedX& x, int64_t M, float* out) {
  if (group_size == 32) return multiply_packed<bits, 32>(rows, count, x, M, out);
  if (group_size == 64) return multiply_packed<bits, 64>(rows, count, x, M, out);
  return multiply_packed<bits, 128>(rows, count, x, M, out);
}

// out[r * M + m] = row n + r of the matrix times row m of x, for r < count <= kUnitRows.
inline void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, int64_t M, float* out) {
  const int64_t row_bytes = matrix.cols * matrix.bits / 8, groups = matrix.cols / matrix.group_size;
  const PackedRows rows{static_cast<const uint8_t*>(matrix.data) + n * row_bytes,
                        static_cast<const uint16_t*>(matrix.scales) + n * groups,
                        static_cast<const uint16_t*>(matrix.biases) + n * groups,
                        row_bytes,
                        groups,
                        matrix.cols};
  switch (matrix.bits) {
    case 2:
      return multiply_groups<2>(matrix.group_size, rows, count, x, M, out);
    case 3:
      return multiply_groups<3>(matrix.group_size, rows, count, x, M, out);
    case 4:
      return multiply_groups<4>(matrix.group_size, rows, count, x, M, out);
    case 5:
      return multiply_groups<5>(matrix.group_size, rows, count, x, M, out);
    case 6:
      return multiply_groups<6>(matrix.group_size, rows, count, x, M, out);
    case 8:
      return multiply_groups<8>(matrix.group_size, rows, count, x, M, out);
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

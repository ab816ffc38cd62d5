// qmm on packed weights with AVX-512 VBMI and VNNI: integer products, for bfloat16 x and bfloat16 scales.
//
// Per group of weights, y += scale * step * sum(q * x16) + bias * step * sum(x16), where x (times the norm weight) is
// held as 16-bit fixed point with one step a group: x = step * x16, |error| <= 2^-16 of the group's largest value,
// 64 times finer than the rounding of the output. x16 = 256 hi + lo goes through vpdpbusd as two signed bytes, against
// the unsigned weights: 64 exact products an instruction. Sums over a group are exact integers, so only the order of
// the float additions matters for a row to have the same bits whatever the number of rows, and both loops below share
// it.
//
// A tile is 4 vectors of 64 weights (5 bits and more: 2), arranged so that a 32-bit lane only ever sums one group's
// products in all of them: the float part (convert, step, scale) is paid once a tile.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/qmm_float.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// How the tiles of one width lie in memory. A piece is what one 64-bit lane holds after the permutation.
template <int bits>
struct Tile {
  static constexpr int vectors = bits <= 4 ? 4 : 2;
  static constexpr int piece = bits <= 4 ? 16 : 8;  // weights
  static constexpr int weights = 64 * vectors;
  static constexpr int bytes = weights * bits / 8;  // 64 .. 128: two loads, the second at its end, cover it
};

// Piece p of a tile goes to lane `lane` of permuted vector `half`: where vpunpcklqdq and vpunpckhqdq of the two halves
// of the tile put the 16 quadwords of a width whose pieces fill them (4 and 8 bits), and the same for all widths.
struct Place {
  int half, lane;
};
constexpr Place place(int piece) { return {piece % 2, piece % 8 / 2 * 2 + piece / 8}; }

// The group in a tile of `vectors` that 64-bit lane `lane` belongs to: its two pieces are neighbours.
template <int vectors, int group_size>
constexpr int group_of(int lane) {
  constexpr int piece = vectors * 4;
  return (lane % 2 * 8 + lane / 2 * 2) * piece / group_size;
}

// x of one call in fixed point, for tiles of `vectors` and one group size.
struct FixedX {
  const int8_t* planes;  // [M, tiles, 2 (hi, lo), vectors, 64]
  const float* steps;    // [M, tiles, 16]: the step of each lane's group
  const float* sums;     // [M, groups]: step * sum(x16), rounded up to whole vectors
  int64_t tiles;
  int64_t sum_stride;
};

// Unpacks a tile to a byte a weight. Widths to 4 bits: a piece of 16 weights becomes 8 bytes of two weights each, and
// those two vectors, the even and the odd weights. The shift that separates them does not compete with the products
// for Zen 4's two multipliers, as vpmultishiftqb does.
template <int bits>
struct Unpack {
  using T = Tile<bits>;
  __m512i index[2], shifts, mask;

  Unpack() {
    alignas(64) uint8_t from[2][64] = {};
    for (int p = 0; p < 16; ++p)
      for (int i = 0; i < T::piece * bits / 8; ++i) {
        const int at = p * T::piece * bits / 8 + i;
        from[place(p).half][8 * place(p).lane + i] = uint8_t(at < 64 ? at : 64 + at - (T::bytes - 64));
      }
    alignas(64) uint8_t shift[64];
    for (int i = 0; i < 64; ++i) shift[i] = uint8_t(i % 8 * T::piece / 8 * bits);
    index[0] = _mm512_load_si512(from[0]);
    index[1] = _mm512_load_si512(from[1]);
    shifts = _mm512_load_si512(shift);
    mask = _mm512_set1_epi8(char((1 << bits) - 1));
  }

  // w[vectors] = the weights of the tile whose bytes `first` and `second` are.
  __attribute__((always_inline)) void operator()(__m512i first, __m512i second, __m512i* w) const {
    MLX_DELTA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m512i pieces = permuted(first, second, half);
      if constexpr (bits == 8) {
        w[half] = pieces;
      } else {
        const __m512i values = bits == 4 ? pieces : _mm512_multishift_epi64_epi8(shifts, pieces);
        if constexpr (bits <= 4) {
          w[2 * half] = _mm512_and_si512(values, mask);
          w[2 * half + 1] = _mm512_and_si512(_mm512_srli_epi32(values, bits), mask);
        } else {
          w[half] = _mm512_and_si512(values, mask);
        }
      }
    }
  }

 private:
  __attribute__((always_inline)) __m512i permuted(__m512i first, __m512i second, int half) const {
    if constexpr (bits == 4 || bits == 8)
      return half == 0 ? _mm512_unpacklo_epi64(first, second) : _mm512_unpackhi_epi64(first, second);
    else if constexpr (bits == 2)
      return _mm512_permutexvar_epi8(index[half], first);
    else
      return _mm512_permutex2var_epi8(first, index[half], second);
  }
};

// A loaded value that is used twice: without this GCC loads it again for each use, and loads are what the loops below
// have the fewest of.
__attribute__((always_inline)) inline __m512i held(__m512i x) {
  asm("" : "+v"(x));
  return x;
}

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
template <int vectors, int group_size>
struct Scales {
  static constexpr int groups = 64 * vectors / group_size;
  __m512i index;

  Scales() {
    alignas(64) uint8_t from[64];
    for (int lane = 0; lane < 16; ++lane) {
      const int group = group_of<vectors, group_size>(lane / 2);
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

// One row of x times NR weight rows that follow each other in memory. out[r] = the results.
//
// Reads bits / 8 + 4 / group_size bytes a weight. Two rows share the loads of x, which alone would cost as many cycles
// as the products; their bytes are asked for in the order of memory before they are needed, since the hardware
// prefetchers stop at every 4 KB page. A tile of 256 weights at 3 bits is 2 permutations, 4 shifts, 4 masks, 8 products
// and 7 operations of float arithmetic: on Zen 4, 12 of them for its two multipliers at half a vector a cycle each.
template <int bits, int group_size, int NR>
void multiply_rows_of_one(const PackedRows& rows, int64_t first, const Unpack<bits>& unpack, const FixedX& x,
                          float* out) {
  using T = Tile<bits>;
  constexpr int groups = T::weights / group_size;
  const Scales<T::vectors, group_size> scales;
  const uint8_t* row = rows.data + first * rows.row_bytes;
  const uint16_t* row_scales = rows.scales + first * rows.groups;
  __m512 acc[NR];
  MLX_DELTA_UNROLL
  for (int r = 0; r < NR; ++r) acc[r] = _mm512_setzero_ps();
  const auto run = [&](int64_t t, auto full) __attribute__((always_inline)) {
    const uint8_t* p = row + t * T::bytes;
    const int64_t left = rows.cols - t * T::weights;
    const int8_t* planes = x.planes + t * 2 * T::weights;
    __m512i hi[NR], lo[NR];
    __m512i w[NR][T::vectors];
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      __m512i a, b;
      if constexpr (full)
        load_tile<bits>(p + r * rows.row_bytes, a, b);
      else
        load_part_tile<bits>(p + r * rows.row_bytes, left * bits / 8, a, b);
      unpack(held(a), held(b), w[r]);
      hi[r] = lo[r] = _mm512_setzero_si512();
    }
    if constexpr (full) {
      MLX_DELTA_UNROLL
      for (int i = 0; i < NR * T::bytes; i += 64) prefetch_far(row + t * NR * T::bytes + i);
    }
    MLX_DELTA_UNROLL
    for (int j = 0; j < T::vectors; ++j) {
      const __m512i high = held(_mm512_load_si512(planes + 64 * j));
      const __m512i low = held(_mm512_load_si512(planes + T::weights + 64 * j));
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) {
        hi[r] = _mm512_dpbusd_epi32(hi[r], w[r][j], high);
        lo[r] = _mm512_dpbusd_epi32(lo[r], w[r][j], low);
      }
    }
    const __m512 step = _mm512_load_ps(x.steps + 16 * t);
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(hi[r], 8), lo[r]);
      const uint16_t* s = row_scales + r * rows.groups + t * groups;
      const __m512 scale = full ? scales(s) : scales.part(s, left / group_size);
      acc[r] = _mm512_fmadd_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), step), acc[r]);
    }
  };
  const int64_t whole = rows.cols / T::weights;
  for (int64_t t = 0; t < whole; ++t) run(t, std::true_type{});
  if (whole * T::weights < rows.cols) run(whole, std::false_type{});
  MLX_DELTA_UNROLL
  for (int r = 0; r < NR; ++r)
    out[r] = _mm512_reduce_add_ps(add_biases(acc[r], rows.biases + (first + r) * rows.groups, x.sums, rows.groups));
}

template <int bits, int group_size>
void multiply_one(const PackedRows& rows, int64_t count, const FixedX& x, float* out) {
  const Unpack<bits> unpack;
  int64_t r = 0;
  for (; r + 2 <= count; r += 2) multiply_rows_of_one<bits, group_size, 2>(rows, r, unpack, x, out + r);
  if (r < count) multiply_rows_of_one<bits, group_size, 1>(rows, r, unpack, x, out + r);
}

// panel[t, r] = tile t of row r unpacked to bytes; columns beyond the row are 0. Tile by tile: rows a power of two
// apart would all fall into the same few sets of L1.
template <int bits>
void unpack_panel(const PackedRows& rows, int64_t count, int64_t tiles, uint8_t* panel) {
  using T = Tile<bits>;
  const Unpack<bits> unpack;
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
      __m512i w[T::vectors];
      unpack(first, second, w);
      MLX_DELTA_UNROLL
      for (int j = 0; j < T::vectors; ++j) _mm512_store_si512(to + 64 * j, w[j]);
    }
}

// NR rows of a panel times MR rows of x over tiles [from, to): acc[m][r] in vectors. NR MR integer and as many float
// sums in registers, NR weights, 1 of x.
template <int vectors, int group_size, int MR, int NR>
void multiply_tiles(const uint8_t* panel, int64_t count, const uint16_t* row_scales, int64_t row_groups,
                    const FixedX& x, int64_t m, int64_t from, int64_t to, float* acc_at, int64_t acc_stride) {
  constexpr int weights = 64 * vectors, groups = weights / group_size;
  const Scales<vectors, group_size> scales;
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
  unpack_panel<bits>(rows, count, x.tiles, panel);
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

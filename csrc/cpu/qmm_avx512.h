// qmm on packed weights with AVX-512 VBMI and VNNI: integer products, for bfloat16 x and bfloat16 scales.
//
// Per group of weights, y += scale * step * sum(q * x16) + bias * step * sum(x16), where x (times the norm weight) is
// held as 16-bit fixed point with one step a group: x = step * x16, |error| <= 2^-16 of the group's largest value,
// 64 times finer than the rounding of the output. x16 = 256 hi + lo goes through vpdpbusd as two signed bytes, against
// the unsigned weights: 64 exact products an instruction. Sums over a group are exact integers, so only the order of
// the float additions matters for a row to have the same bits whatever the number of rows, and both loops below share
// it.
//
// A tile is 8 vectors of 64 weights (5 bits and more: 4; groups of 32: half as many), arranged so that a 32-bit lane
// only ever sums one group's products in all of them: the float part (convert, step, scale) is paid once a tile.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/ahead.h"
#include "cpu/qmm_float.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// How the tiles of one width and group size lie in memory. A piece is what one 64-bit lane holds after the permutation,
// which gives each lane neighbours: a whole group of 64 up to 4 bits.
constexpr int pieces_of_lane(int group_size) { return group_size >= 64 ? 4 : 2; }
template <int bits, int group_size>
struct Tile {
  static constexpr int pieces = pieces_of_lane(group_size);  // of a lane, and so permuted vectors
  static constexpr int vectors = bits <= 4 ? 2 * pieces : pieces;
  static constexpr int piece = 8 * vectors / pieces;  // weights
  static constexpr int weights = 64 * vectors;
  static constexpr int bytes = weights * bits / 8;  // 64 .. 256
  static constexpr int loads = (bytes + 63) / 64;   // that cover it, the last one at its end
};

// A vector's bytes, known when compiled: built in a constructor, they took 5 % of a unit of 16 rows of 4096.
struct alignas(64) Bytes {
  uint8_t at[64];
};
template <typename F>
constexpr Bytes bytes_of(F byte) {
  Bytes bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = uint8_t(byte(i));
  return bytes;
}

// The pieces of a lane are neighbours, and the lanes in the order in which unpacking and shuffling quadwords puts them
// for the widths whose pieces are whole quadwords (4 and 8 bits).
struct Place {
  int vector, lane;  // of a permuted vector
};
template <int pieces>
constexpr Place place(int piece) {
  constexpr int lane_of[2][8] = {{0, 2, 4, 6, 1, 3, 5, 7}, {0, 2, 1, 3, 4, 6, 5, 7}};
  return {piece % pieces, lane_of[pieces / 2 - 1][piece / pieces]};
}
template <int pieces>
constexpr int piece_at(Place p) {
  constexpr int at_lane[2][8] = {{0, 4, 1, 5, 2, 6, 3, 7}, {0, 2, 1, 3, 4, 6, 5, 7}};
  return at_lane[pieces / 2 - 1][p.lane] * pieces + p.vector;
}

// The group in a tile of `vectors` that 64-bit lane `lane` belongs to.
template <int vectors, int group_size>
constexpr int group_of(int lane) {
  constexpr int pieces = pieces_of_lane(group_size);
  return piece_at<pieces>({0, lane}) * (8 * vectors / pieces) / group_size;
}

constexpr int64_t kBlockColumns = 1024;
constexpr int kLeastGroup = 32;

// x of one call in fixed point, for tiles of `vectors` and one group size.
struct FixedX {
  const int8_t* planes;  // [blocks, M, tiles of a block, 2 (hi, lo), vectors, 64]
  const float* steps;    // [M, tiles, 16]: the step of each lane's group
  const float* sums;     // [M, groups]: step * sum(x16), rounded up to whole vectors
  int64_t M;
  int64_t tiles;
  int64_t sum_stride;

  // Where tile t of row m is. By blocks, since rows a power of two apart would fall into the same few sets of L1.
  template <int vectors>
  static int64_t tile_offset(int64_t M, int64_t m, int64_t t) {
    constexpr int64_t tiles = kBlockColumns / (64 * vectors);
    return (t / tiles * M + m) * (2 * kBlockColumns) + t % tiles * (128 * vectors);
  }
};

// Where byte i of permuted vector `v` comes from: its place in a tile's loads, 64 a load.
template <typename T, int bits>
constexpr int source_of(int v, int i) {
  constexpr int piece_bytes = T::piece * bits / 8;
  const int at = piece_at<T::pieces>({v, i / 8}) * piece_bytes + i % 8, last = T::loads - 1;
  return i % 8 >= piece_bytes ? 0 : at < 64 * last ? at : 64 * last + at - (T::bytes - 64);
}

// Unpacks a tile to a byte a weight. Widths to 4 bits: a piece of 16 weights becomes 8 bytes of two weights each, and
// those two vectors, the even and the odd weights. The shift that separates them does not compete with the products
// for Zen 4's two multipliers, as vpmultishiftqb does.
template <int bits, int group_size>
struct Unpack {
  using T = Tile<bits, group_size>;
  struct Index {
    Bytes from[T::pieces];      // the loads
    uint64_t third[T::pieces];  // bytes that come from the third one
  };
  static constexpr Index kIndex = [] {
    Index index{};
    for (int v = 0; v < T::pieces; ++v) {
      index.from[v] = bytes_of([&](int i) { return source_of<T, bits>(v, i); });
      for (int i = 0; i < 64; ++i) index.third[v] |= uint64_t{source_of<T, bits>(v, i) >= 128} << i;
    }
    return index;
  }();
  static constexpr Bytes kShifts = bytes_of([](int i) { return i % 8 * T::piece / 8 * bits; });
  __m512i shifts = _mm512_load_si512(&kShifts), mask = _mm512_set1_epi8(char((1 << bits) - 1));

  // w[vectors] = the weights of the tile whose bytes `loaded` are.
  __attribute__((always_inline)) void operator()(const __m512i (&loaded)[T::loads], __m512i* w) const {
    __m512i pieces[T::pieces];
    permute(loaded, pieces);
    MLX_DELTA_UNROLL
    for (int v = 0; v < T::pieces; ++v) {
      if constexpr (bits == 8) {
        w[v] = pieces[v];
      } else {
        const __m512i values = bits == 4 ? pieces[v] : _mm512_multishift_epi64_epi8(shifts, pieces[v]);
        if constexpr (bits <= 4) {
          w[2 * v] = _mm512_and_si512(values, mask);
          w[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi32(values, bits), mask);
        } else {
          w[v] = _mm512_and_si512(values, mask);
        }
      }
    }
  }

 private:
  __attribute__((always_inline)) static void permute(const __m512i (&loaded)[T::loads], __m512i (&out)[T::pieces]) {
    if constexpr (T::loads == 4) {
      const __m512i low01 = _mm512_unpacklo_epi64(loaded[0], loaded[1]),
                    high01 = _mm512_unpackhi_epi64(loaded[0], loaded[1]),
                    low23 = _mm512_unpacklo_epi64(loaded[2], loaded[3]),
                    high23 = _mm512_unpackhi_epi64(loaded[2], loaded[3]);
      out[0] = _mm512_shuffle_i64x2(low01, low23, 0x88);
      out[1] = _mm512_shuffle_i64x2(high01, high23, 0x88);
      out[2] = _mm512_shuffle_i64x2(low01, low23, 0xdd);
      out[3] = _mm512_shuffle_i64x2(high01, high23, 0xdd);
    } else if constexpr (bits == 4 || bits == 8) {
      out[0] = _mm512_unpacklo_epi64(loaded[0], loaded[1]);
      out[1] = _mm512_unpackhi_epi64(loaded[0], loaded[1]);
    } else {
      MLX_DELTA_UNROLL
      for (int v = 0; v < T::pieces; ++v) {
        const __m512i index = _mm512_load_si512(&kIndex.from[v]);
        if constexpr (T::loads == 1)
          out[v] = _mm512_permutexvar_epi8(index, loaded[0]);
        else
          out[v] = _mm512_permutex2var_epi8(loaded[0], index, loaded[1]);
        if constexpr (T::loads == 3) out[v] = _mm512_mask_permutexvar_epi8(out[v], kIndex.third[v], index, loaded[2]);
      }
    }
  }
};

// A loaded value that is used twice: without this GCC loads it again for each use, and loads are what the loops below
// have the fewest of.
__attribute__((always_inline)) inline __m512i held(__m512i x) {
  asm("" : "+v"(x));
  return x;
}

// The loads of a tile, or of its first `bytes` bytes: the rest is 0.
template <typename T>
__attribute__((always_inline)) inline void load_tile(const uint8_t* p, __m512i (&loaded)[T::loads]) {
  MLX_DELTA_UNROLL
  for (int i = 0; i < T::loads; ++i) loaded[i] = held(_mm512_loadu_si512(p + least(64 * i, T::bytes - 64)));
}
template <typename T>
inline void load_part_tile(const uint8_t* p, int64_t bytes, __m512i (&loaded)[T::loads]) {
  for (int i = 0; i < T::loads; ++i) {
    const int at = least(64 * i, T::bytes - 64);
    const int64_t n = bytes - at;
    loaded[i] = _mm512_maskz_loadu_epi8(n <= 0 ? 0 : n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1, p + at);
  }
}

// The scales of a tile's groups, each in its group's lanes: one broadcasting load and one byte shuffle, which moves
// each bfloat16 into the upper half of its lanes.
template <int vectors, int group_size>
struct Scales {
  static constexpr int groups = 64 * vectors / group_size;
  static constexpr Bytes kIndex =
      bytes_of([](int i) { return i % 4 < 2 ? 0x80 : 2 * group_of<vectors, group_size>(i / 8) + i % 2; });
  __m512i index = _mm512_load_si512(&kIndex);

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

template <int bits, int group_size>
using TileScales = Scales<Tile<bits, group_size>::vectors, group_size>;

inline __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

// acc + sum_g bias_g sum_g, lane by lane
__attribute__((always_inline)) inline __m512 add_biases(__m512 acc, const uint16_t* biases, const float* sums,
                                                        int64_t groups) {
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

// The sums over lanes of a unit's vectors, row r's in lane r: 45 operations for 16 rows, which one by one take 16 each.
inline __m512 sums_of_rows(const __m512 (&rows)[kUnitRows]) {
  __m512 pairs[8], fours[4];
  MLX_DELTA_UNROLL
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                             _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  const auto unpacked = [](__m512 a, __m512 b, auto high) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  };
  MLX_DELTA_UNROLL
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_add_ps(unpacked(pairs[2 * i], pairs[2 * i + 1], std::false_type{}),
                             unpacked(pairs[2 * i], pairs[2 * i + 1], std::true_type{}));
  // A quarter of each of fours now holds a partial sum of four rows.
  const auto quarters = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]));
}

// Rows n .. of a matrix.
struct PackedRows {
  const uint8_t* data;
  const uint16_t* scales;
  const uint16_t* biases;
  int64_t row_bytes, groups, cols;
};

// out[r * stride] = the results of `count` <= kUnitRows rows for one row of x, from their vectors of sums and x's sums.
inline void finish_unit(const PackedRows& rows, int64_t count, const float* acc, const float* sums, float* out,
                        int64_t stride) {
  __m512 unit[kUnitRows];
  for (int64_t r = 0; r < kUnitRows; ++r)
    unit[r] = r < count ? add_biases(_mm512_load_ps(acc + 16 * r), rows.biases + r * rows.groups, sums, rows.groups)
                        : _mm512_setzero_ps();
  alignas(64) float results[kUnitRows];
  _mm512_store_ps(results, sums_of_rows(unit));
  for (int64_t r = 0; r < count; ++r) out[r * stride] = results[r];
}

// One row of x times one weight row: the vector of sums. `near` and `far` are what to prefetch beside the row, as long.
//
// Reads bits / 8 + 4 / group_size bytes a weight. A tile of 256 weights at 3 bits is 2 permutations, 4 shifts, 4 masks,
// 8 products and 7 operations of float arithmetic: on Zen 4, 12 of them for its two multipliers at half a vector a
// cycle each.
template <int bits, int group_size>
__attribute__((always_inline)) inline __m512 multiply_row(const PackedRows& rows, int64_t r, const uint8_t* near,
                                                          const uint8_t* far, const Unpack<bits, group_size>& unpack,
                                                          const TileScales<bits, group_size>& scales, const FixedX& x) {
  using T = Tile<bits, group_size>;
  constexpr int groups = T::weights / group_size;
  const uint8_t* row = rows.data + r * rows.row_bytes;
  const uint16_t* row_scales = rows.scales + r * rows.groups;
  __m512 acc = _mm512_setzero_ps();
  struct Products {
    __m512i hi, lo;
  };
  const auto multiply = [&](int64_t t, auto full) __attribute__((always_inline)) {
    const uint8_t* p = row + t * T::bytes;
    const int8_t* planes = x.planes + t * 2 * T::weights;  // one row: its blocks follow each other
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
      dot.hi = _mm512_dpbusd_epi32(dot.hi, w[j], _mm512_load_si512(planes + 64 * j));
      dot.lo = _mm512_dpbusd_epi32(dot.lo, w[j], _mm512_load_si512(planes + T::weights + 64 * j));
    }
    return dot;
  };
  const auto add = [&](int64_t t, const Products& dot, auto full) __attribute__((always_inline)) {
    const __m512 step = _mm512_load_ps(x.steps + 16 * t);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(dot.hi, 8), dot.lo));
    const uint16_t* s = row_scales + t * groups;
    const __m512 scale = full ? scales(s) : scales.part(s, rows.groups - t * groups);
    acc = _mm512_fmadd_ps(scale, _mm512_mul_ps(sum, step), acc);
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
  alignas(64) float acc[kUnitRows * 16];
  for (int64_t r = 0; r < count; ++r) {
    prefetch_values(next.scales + r * rows.groups, rows.groups);
    prefetch_values(next.biases + r * rows.groups, rows.groups);
    const int64_t at = r * rows.row_bytes;
    _mm512_store_ps(acc + 16 * r, multiply_row<bits, group_size>(rows, r, beyond(at + ahead.near),
                                                                 beyond(at + ahead.far), unpack, scales, x));
  }
  finish_unit(rows, count, acc, x.sums, out, 1);
}

// Several rows of x, `M` from row m0 on: each tile of NR weight rows is unpacked in registers and passes by all of
// them, a block of columns at a time, so that x stays in L1 (2 KB a row and block). acc[m, r] are vectors of sums;
// `next` is what this place of the unit will read after it.
template <int bits, int group_size, int NR>
void multiply_block(const PackedRows& rows, int64_t r0, int64_t from, int64_t to, const uint8_t* next,
                    const Unpack<bits, group_size>& unpack, const FixedX& x, int64_t m0, int64_t M, float* acc) {
  using T = Tile<bits, group_size>;
  constexpr int groups = T::weights / group_size;
  const TileScales<bits, group_size> scales;
  const uint8_t* row = rows.data + r0 * rows.row_bytes;
  const uint16_t* row_scales = rows.scales + r0 * rows.groups;
  for (int64_t t = from; t < to; ++t) {
    const int64_t left = rows.cols - t * T::weights;
    const bool full = left >= T::weights;
    __m512i w[NR][T::vectors];
    __m512 scale[NR];
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      const uint8_t* p = row + r * rows.row_bytes + t * T::bytes;
      const uint16_t* s = row_scales + r * rows.groups + t * groups;
      __m512i loaded[T::loads];
      if (full)
        load_tile<T>(p, loaded);
      else
        load_part_tile<T>(p, left * bits / 8, loaded);
      unpack(loaded, w[r]);
      scale[r] = full ? scales(s) : scales.part(s, left / group_size);
      MLX_DELTA_UNROLL
      for (int i = 0; i < T::bytes; i += 64)
        __builtin_prefetch(next + r * rows.row_bytes + (t - from) * T::bytes + i, 0, 2);
    }
    const int8_t* planes = x.planes + FixedX::tile_offset<T::vectors>(x.M, m0, t);
    const float* steps = x.steps + (m0 * x.tiles + t) * 16;
    for (int64_t m = 0; m < M; ++m, planes += 2 * kBlockColumns, steps += x.tiles * 16) {
      __m512i hi[NR], lo[NR];
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) hi[r] = lo[r] = _mm512_setzero_si512();
      MLX_DELTA_UNROLL
      for (int j = 0; j < T::vectors; ++j) {
        const __m512i xh = held(_mm512_load_si512(planes + 64 * j));
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) hi[r] = _mm512_dpbusd_epi32(hi[r], w[r][j], xh);
        const __m512i xl = held(_mm512_load_si512(planes + T::weights + 64 * j));
        MLX_DELTA_UNROLL
        for (int r = 0; r < NR; ++r) lo[r] = _mm512_dpbusd_epi32(lo[r], w[r][j], xl);
      }
      const __m512 step = _mm512_load_ps(steps);
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) {
        float* at = acc + (m * kUnitRows + r) * 16;
        const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(hi[r], 8), lo[r]);
        const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), step);
        _mm512_store_ps(at, _mm512_fmadd_ps(scale[r], sum, _mm512_load_ps(at)));
      }
    }
  }
}

template <int bits, int group_size>
void multiply_several(const PackedRows& rows, int64_t count, const FixedX& x, int64_t m0, int64_t M, float* out) {
  using T = Tile<bits, group_size>;
  constexpr int64_t block = kBlockColumns / T::weights;
  constexpr int some = T::vectors == 8 ? 2 : 4;  // weight rows whose tiles fill half of the registers
  float* acc = scratch_of<float>(4, M * kUnitRows * 16);
  std::memset(acc, 0, size_t(M * kUnitRows * 16) * sizeof(float));
  const Unpack<bits, group_size> unpack;
  for (int64_t from = 0; from < x.tiles; from += block) {
    const int64_t to = least(from + block, x.tiles);
    // The next block of columns, or the first one of the next unit.
    const uint8_t* next = rows.data + (to < x.tiles ? to * T::bytes : count * rows.row_bytes);
    int64_t r = 0;
    const auto multiply = [&](auto rows_of_w) {
      constexpr int NR = decltype(rows_of_w)::value;
      multiply_block<bits, group_size, NR>(rows, r, from, to, next + r * rows.row_bytes, unpack, x, m0, M,
                                           acc + r * 16);
      r += NR;
    };
    while (r + some <= count) multiply(std::integral_constant<int, some>{});
    while (r < count) multiply(std::integral_constant<int, 1>{});
  }
  for (int64_t m = 0; m < M; ++m)
    finish_unit(rows, count, acc + m * kUnitRows * 16, x.sums + (m0 + m) * x.sum_stride, out + m0 + m, x.M);
}

template <int bits, int group_size>
void multiply_packed(const PackedRows& rows, int64_t count, const PackedRows& next, const FixedX& x, float* out) {
  constexpr int64_t some = 16;  // rows of x, whose block of columns fills L1
  if (x.M == 1) return multiply_one<bits, group_size>(rows, count, next, x, out);
  for (int64_t m = 0; m < x.M; m += some)
    multiply_several<bits, group_size>(rows, count, x, m, least(some, x.M - m), out);
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

// out[r * M + m] = row n + r of the matrix times row m of x, for r < count <= kUnitRows; `next`, a packed row, is read
// after them.
inline void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x,
                           float* out) {
  for_width(matrix, [&](auto bits, auto group_size) {
    multiply_packed<decltype(bits)::value, decltype(group_size)::value>(packed_rows(matrix, n), count,
                                                                        packed_rows(*next.matrix, next.row), x, out);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

// How packed weights lie in AVX-512 vectors, and how they get there: tiles of 8 vectors of 64 weights (5 bits and more:
// 4; groups of 32: half as many), arranged so that a 32-bit lane only ever holds one group's weights.
#pragma once

#if defined(__AVX512VBMI__)

#include "cpu/qmm/lanes_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// How the tiles of one width and group size lie in memory. A piece is what one 64-bit lane holds after the permutation,
// which gives each lane neighbours: a whole group of 64 up to 4 bits.
constexpr int pieces_of_lane(int group_size) { return group_size >= 64 ? 4 : 2; }
// Weight rows whose sums share a vector, see add_rows: 2 up to 4 bits, else 4.
constexpr int sharing_rows(int vectors, int group_size) { return vectors == 2 * pieces_of_lane(group_size) ? 2 : 4; }
template <int bits, int group_size>
struct Tile {
  static constexpr int pieces = pieces_of_lane(group_size);  // of a lane, and so permuted vectors
  static constexpr int vectors = bits <= 4 ? 2 * pieces : pieces;
  static constexpr int piece = 8 * vectors / pieces;  // weights
  static constexpr int weights = 64 * vectors;
  static constexpr int bytes = weights * bits / 8;  // 64 .. 256
  static constexpr int loads = (bytes + 63) / 64;   // that cover it, the last one at its end
  static constexpr int groups = weights / group_size;
  static constexpr int rows = sharing_rows(vectors, group_size);
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

// Lanes 2 i and 2 i + 1 hold the same group, and where 4 rows share a vector so do neighbouring quarters. Of the sums
// of a tile in 2 or 4 weight rows add_rows makes one vector. add_lanes leaves those of one row in all lanes of a group,
// and share_lanes makes of several rows' such vectors the one that they share. A group's sum is below 128 * 255 * 32512
// < 2^30.
inline I add_rows(const I (&sums)[2]) { return add_pairs(sums[0], sums[1]); }
inline I add_rows(const I (&sums)[4]) { return add_quarters(add_pairs(sums[0], sums[1]), add_pairs(sums[2], sums[3])); }
template <int rows>
inline I add_lanes(I sums) {
  sums += I(_mm512_shuffle_epi32(__m512i(sums), _MM_PERM_CDAB));
  if constexpr (rows == 4) sums += I(_mm512_shuffle_i32x4(__m512i(sums), __m512i(sums), 0xb1));
  return sums;
}
inline __m512 share_lanes(const __m512 (&rows)[2]) { return _mm512_shuffle_ps(rows[0], rows[1], 0x88); }
inline __m512 share_lanes(const __m512 (&rows)[4]) {
  return _mm512_shuffle_f32x4(_mm512_shuffle_ps(rows[0], rows[1], 0x88), _mm512_shuffle_ps(rows[2], rows[3], 0x88),
                              0x88);
}

// The lanes of a vector that rows share.
template <int vectors, int group_size>
struct SharedLanes {
  static constexpr int rows = sharing_rows(vectors, group_size);
  int group[16] = {};
  bool first[16] = {};  // of its row and group: a group of 128 has two
  int of_one[16] = {};  // for each lane of one row's vector, that of the first row

  constexpr SharedLanes() {
    int seen = 0;
    for (int lane = 0; lane < 16; ++lane) {
      const int row = lane % 4 / 2 + (rows == 4 ? lane / 8 * 2 : 0);
      group[lane] = group_of<vectors, group_size>(rows == 2 ? lane / 4 * 2 + lane % 2 : lane / 4 % 2 * 4 + lane % 2);
      const int key = 1 << (row * 8 + group[lane]);
      first[lane] = (seen & key) == 0;
      seen |= key;
      of_one[lane] = (rows == 2 ? lane / 4 : lane / 8) * 4 + lane / 2 % 2;
    }
  }
};

// The scales of a tile's groups, each in its group's lanes: one broadcasting load and one byte shuffle, which moves
// each bfloat16 into the upper half of its lanes.
template <int vectors, int group_size>
struct Scales {
  static constexpr int groups = 64 * vectors / group_size;
  static constexpr Bytes kIndex =
      bytes_of([](int i) { return i % 4 < 2 ? 0x80 : 2 * group_of<vectors, group_size>(i / 8) + i % 2; });
  __m512i index = _mm512_load_si512(&kIndex);

  __m512 operator()(const uint16_t* p) const { return shuffle(broadcast(p)); }
  __m512 part(const uint16_t* p, int64_t count) const {
    uint16_t padded[8] = {};
    std::memcpy(padded, p, size_t(least<int64_t>(count, groups)) * 2);
    return shuffle(broadcast(padded));
  }

 private:
  __m512 shuffle(__m512i x) const { return _mm512_castsi512_ps(_mm512_shuffle_epi8(x, index)); }
  static __m512i broadcast(const uint16_t* p) {
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

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

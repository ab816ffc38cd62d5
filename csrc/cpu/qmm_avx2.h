// qmm on packed weights with AVX2: integer products of 16 bits, for bfloat16 x and bfloat16 scales, groups of 64 or
// 128.
//
// As in qmm_avx512.h, x (times the norm weight) is 16-bit fixed point with one step for 64 columns, |error| <= 2^-16 of
// their largest value, and y += scale * step * sum(q * x16) + bias * step * sum(x16) with exact sums. vpmaddwd takes
// the 16 bits whole, so that a weight need not come down to a byte: 16-bit lanes that hold 4 weights (2 from 5 bits on)
// are masked in place, and a field that stands s bits high gives 2^s times its products, which an exact shift takes off
// their sum. 64 weights of 3 bits are some 20 instructions; unpacking to floats and multiplying those is 200.
#pragma once

#if defined(__AVX2__) && !defined(__AVX512F__)

#include "cpu/qmm_float.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kChunk = 64;  // columns with one step
inline constexpr int kLeastGroup = kChunk;
inline constexpr int64_t kBlockColumns = 512;  // of x, 1 KB a row: what several rows keep in L1

// x of one call in fixed point, for one order of a chunk's values and one group size.
struct FixedX {
  const int16_t* values;  // [blocks, M, 512], each chunk in the order of Fields
  const float* steps;     // [M, step_stride]: one a chunk
  const float* sums;      // [M, sum_stride]: step * sum(x16) of each group
  int64_t M, step_stride, sum_stride;

  const int16_t* chunk(int64_t m, int64_t c) const {
    constexpr int64_t chunks = kBlockColumns / kChunk;
    return values + ((c / chunks * M + m) * chunks + c % chunks) * kChunk;
  }
};

// How 64 weights of a width become 4 vectors of 16 fields.
// Up to 4 bits, vector j has the weights 4 i + j in lane i. From 5 bits on, vectors 2 v + j have the weights
// 32 v + 2 i + j.
template <int bits>
struct Fields {
  static constexpr bool quads = bits <= 4;
  static constexpr int lane_bits = (quads ? 4 : 2) * bits;  // of a 16-bit lane that are used
  static constexpr bool unaligned = bits == 3 || bits == 5 || bits == 6;
  static constexpr int low = unaligned ? 16 - lane_bits : 0;  // the bit at which they start, when aligned
  __m256i index, left;

  Fields() {
    alignas(32) uint8_t from[32];
    alignas(32) uint16_t factors[16];
    for (int lane = 0; lane < 16; ++lane) {
      const int bit = lane % 8 * lane_bits;
      // The upper half's 16 bytes end where the 2 lane_bits bytes of the vector end.
      const int byte = bit / 8 + (lane < 8 ? 0 : 16 - lane_bits);
      from[2 * lane] = uint8_t(byte);
      from[2 * lane + 1] = uint8_t(byte + 1);
      factors[lane] = uint16_t(1 << (low - bit % 8 < 0 ? 0 : low - bit % 8));
    }
    index = _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
    left = _mm256_load_si256(reinterpret_cast<const __m256i*>(factors));
  }

  // f[4]: the fields of the 64 weights at p, each `shift(j)` bits high.
  __attribute__((always_inline)) void operator()(const uint8_t* p, __m256i* f) const {
    if constexpr (quads) {
      const __m256i x = lanes(p);
      f[0] = _mm256_and_si256(x, field(0));
      f[1] = _mm256_and_si256(x, field(1));
      f[2] = _mm256_and_si256(x, field(2));
      f[3] = _mm256_srli_epi16(x, low + 3 * bits);
    } else {
      MLX_DELTA_UNROLL
      for (int v = 0; v < 2; ++v) {
        const __m256i x = lanes(p + v * 4 * bits);
        f[2 * v] = _mm256_and_si256(x, field(0));
        f[2 * v + 1] = _mm256_srli_epi16(x, low + bits);
      }
    }
  }

  // Field j alone, at bit 0.
  static __m256i aligned(const __m256i* f, int j) {
    if (j == (quads ? 3 : 1) || j == 3) return f[j];
    return _mm256_srli_epi16(f[j], low + (quads ? j * bits : 0));
  }

  // The sums of the fields times x, lane by lane, of one chunk.
  static __attribute__((always_inline)) __m256i dot(const __m256i* f, const int16_t* x) {
    __m256i sums[4];
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j)
      sums[j] = _mm256_madd_epi16(f[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(x + 16 * j)));
    if constexpr (quads) {
      const __m256i low_pair =
          _mm256_add_epi32(_mm256_srai_epi32(sums[0], low), _mm256_srai_epi32(sums[1], low + bits));
      return _mm256_add_epi32(_mm256_add_epi32(low_pair, _mm256_srai_epi32(sums[2], low + 2 * bits)), sums[3]);
    } else {
      const __m256i first = _mm256_srai_epi32(_mm256_add_epi32(sums[0], sums[2]), low);
      return _mm256_add_epi32(first, _mm256_add_epi32(sums[1], sums[3]));
    }
  }

 private:
  static __m256i field(int j) { return _mm256_set1_epi16(int16_t(((1 << bits) - 1) << (low + j * bits))); }

  // 16 lanes whose fields start at bit `low`, from 2 lane_bits bytes; nothing beyond them is read.
  __attribute__((always_inline)) __m256i lanes(const uint8_t* p) const {
    const auto half = [](const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
    if constexpr (bits == 2) {
      return _mm256_cvtepu8_epi16(half(p));
    } else if constexpr (!unaligned) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    } else {
      const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(half(p)), half(p + 2 * lane_bits - 16), 1);
      return _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, index), left);
    }
  }
};

// The layouts of x: the two orders of Fields, each for groups of 64 and of 128.
constexpr int kLayouts = 4;
inline int layout_of(const MatrixView& m) { return (m.bits <= 4 ? 0 : 2) + (m.group_size == 64 ? 0 : 1); }

// What a layout of M rows needs, in bytes, and where its parts are.
struct FixedSpace {
  int64_t values, step_stride, sum_stride;
  FixedSpace(int layout, int64_t K) {
    values = (K + kBlockColumns - 1) / kBlockColumns * kBlockColumns * 2;
    step_stride = (K / kChunk + 15) / 16 * 16;
    sum_stride = (K / (layout % 2 == 0 ? 64 : 128) + 15) / 16 * 16;
  }
  int64_t row_bytes() const { return values + 4 * (step_stride + sum_stride); }
  FixedX view(char* base, int64_t M) const {
    float* steps = reinterpret_cast<float*>(base + M * values);
    return {reinterpret_cast<int16_t*>(base), steps, steps + M * step_stride, M, step_stride, sum_stride};
  }

  // Row m, from x (times norm, if given). step = largest / 32512; a chunk that holds an infinity or a NaN gets a NaN
  // step: so does its part of every result.
  template <typename T>
  void fix(int layout, const T* x, const float* norm, int64_t K, char* base, int64_t M, int64_t m) const {
    const FixedX to = view(base, M);
    float* steps = const_cast<float*>(to.steps) + m * step_stride;
    float* sums = const_cast<float*>(to.sums) + m * sum_stride;
    for (int64_t c = 0; c < K / kChunk; ++c) {
      F h[kChunk / W];
      U largest_bits{};  // as integers: a NaN is larger than infinity
      for (int i = 0; i < kChunk / W; ++i) {
        h[i] = load(x + c * kChunk + i * W);
        if (norm) h[i] *= load(norm + c * kChunk + i * W);
        const U bits = U(h[i]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
      }
      uint32_t bits = 0;
      for (int i = 0; i < W; ++i) bits = most(bits, largest_bits[i]);
      const float largest = bits_as<float>(bits);
      const bool finite = bits < 0x7f800000, zero = largest < 0x1p-100f;
      const F inverse = splat(!finite || zero ? 0.0f : 32512 / largest);
      steps[c] = !finite ? bits_as<float>(0x7fc00000u) : zero ? 0.0f : largest * (1.0f / 32512);

      alignas(32) int32_t q[kChunk];
      I total{};
      for (int i = 0; i < kChunk / W; ++i) {
        const I rounded = I(_mm256_cvtps_epi32(__m256(h[i] * inverse)));
        std::memcpy(q + i * W, &rounded, sizeof(rounded));
        total += rounded;
      }
      int16_t* out = const_cast<int16_t*>(to.chunk(m, c));
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j)
          out[16 * j + i] = int16_t(layout < 2 ? q[4 * i + j] : q[32 * (j / 2) + 2 * i + j % 2]);
      int32_t sum = 0;
      for (int i = 0; i < W; ++i) sum += total[i];
      const float value = steps[c] * float(sum);
      if (layout % 2 == 0)
        sums[c] = value;
      else
        sums[c / 2] = c % 2 == 0 ? value : sums[c / 2] + value;
    }
  }
};

// One weight row: its bytes, scales and biases.
struct PackedRow {
  const uint8_t* data;
  const bf16* scales;
  const bf16* biases;
};

template <int bits, int group_size>
inline PackedRow packed_row(const MatrixView& matrix, int64_t n) {
  const int64_t groups = matrix.cols / group_size;
  return {static_cast<const uint8_t*>(matrix.data) + n * (matrix.cols * bits / 8),
          static_cast<const bf16*>(matrix.scales) + n * groups, static_cast<const bf16*>(matrix.biases) + n * groups};
}

// acc + sum_g bias_g sum_g, lane by lane; then the sum of the lanes.
inline float finish_row(F acc, const bf16* biases, const float* sums, int64_t groups) {
  int64_t g = 0;
  for (; g + W <= groups; g += W) acc += load(biases + g) * load(sums + g);
  if (g < groups) acc += load_part(biases + g, groups - g) * load_part(sums + g, groups - g);
  return sum(acc);
}

// One row of x.
template <int bits, int group_size>
float multiply_one(const PackedRow& row, int64_t chunks, const FixedX& x) {
  const Fields<bits> fields;
  F acc{};
  const auto add = [&](int64_t c, float factor) __attribute__((always_inline)) {
    __m256i f[4];
    fields(row.data + c * 8 * bits, f);
    // One row: its blocks follow each other.
    acc += splat(factor) * F(_mm256_cvtepi32_ps(Fields<bits>::dot(f, x.values + c * kChunk)));
  };
  int64_t c = 0;
  for (; c + 8 <= chunks; c += 8) {
    float factors[8];
    if constexpr (group_size == 64)
      store(load(row.scales + c) * load(x.steps + c), factors);
    else
      for (int i = 0; i < 8; ++i) factors[i] = to_float(row.scales[(c + i) / 2]) * x.steps[c + i];
    asm("" : "+m"(factors));  // from memory each is one broadcasting load, else two shuffles
    MLX_DELTA_UNROLL
    for (int i = 0; i < bits; ++i) prefetch_stream(row.data + (c + i) * 8 * bits + i * (64 - 8 * bits));
    MLX_DELTA_UNROLL
    for (int i = 0; i < 8; ++i) add(c + i, factors[i]);
  }
  for (; c < chunks; ++c) add(c, to_float(row.scales[c * kChunk / group_size]) * x.steps[c]);
  return finish_row(acc, row.biases, x.sums, chunks * kChunk / group_size);
}

// acc[m] (vectors) += chunks from .. to of a row times all rows of x; the same operations in the same order.
template <int bits, int group_size>
void multiply_block(const PackedRow& row, int64_t from, int64_t to, const FixedX& x, float* acc) {
  const Fields<bits> fields;
  for (int64_t c = from; c < to; ++c) {
    __m256i f[4];
    fields(row.data + c * 8 * bits, f);
    const float scale = to_float(row.scales[c * kChunk / group_size]);
    prefetch(row.data + (c + to - from) * 8 * bits);
    const int16_t* values = x.chunk(0, c);
    const float* steps = x.steps + c;
    for (int64_t m = 0; m < x.M; ++m, values += kBlockColumns, steps += x.step_stride) {
      const F part = F(_mm256_cvtepi32_ps(Fields<bits>::dot(f, values)));
      store(load(acc + m * W) + splat(scale * *steps) * part, acc + m * W);
    }
  }
}

template <int bits, int group_size>
void multiply_packed(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* out) {
  const int64_t chunks = matrix.cols / kChunk, groups = matrix.cols / group_size, block = kBlockColumns / kChunk;
  const auto row = [&](int64_t r) { return packed_row<bits, group_size>(matrix, n + r); };
  if (x.M == 1) {
    for (int64_t r = 0; r < count; ++r) out[r] = multiply_one<bits, group_size>(row(r), chunks, x);
    return;
  }
  float* acc = scratch_of<float>(4, count * x.M * W);
  fill(acc, count * x.M * W, 0.0f);
  for (int64_t c = 0; c < chunks; c += block)
    for (int64_t r = 0; r < count; ++r)
      multiply_block<bits, group_size>(row(r), c, least(c + block, chunks), x, acc + r * x.M * W);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t m = 0; m < x.M; ++m)
      out[r * x.M + m] = finish_row(load(acc + (r * x.M + m) * W), row(r).biases, x.sums + m * x.sum_stride, groups);
}

// out[r * M + m] = row n + r of the matrix times row m of x, for r < count <= kUnitRows.
inline void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* out) {
  for_width(matrix, [&](auto bits, auto group_size) {
    if constexpr (decltype(group_size)::value >= kLeastGroup)
      multiply_packed<decltype(bits)::value, decltype(group_size)::value>(matrix, n, count, x, out);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

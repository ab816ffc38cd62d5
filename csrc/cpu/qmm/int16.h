// qmm on packed weights, x in 16-bit integers, with AVX2 and with NEON: for bfloat16 x and bfloat16 scales, groups of
// 64 or 128.
//
// As in avx512.h, x (times the norm weight) is 16-bit fixed point with one step for 64 columns, |error| <= 2^-16 of
// their largest value, and y += scale * step * sum(q * x16) + bias * step * sum(x16) with exact sums. Products of 16
// bits take x whole, so that a weight need not come down to a byte: 16-bit lanes that hold 4 weights (2 from 5 bits on)
// are masked in place, and a field that stands s bits high gives 2^s times its products, which an exact shift takes off
// their sum. 64 weights of 3 bits are some 20 instructions of AVX2, where unpacking to floats and multiplying those is
// 200. What depends on the vectors is in int16_*.h.
#pragma once

#include "cpu/qmm/float.h"
#include "cpu/qmm/int16_avx2.h"
#include "cpu/qmm/int16_dotprod.h"
#include "cpu/qmm/int16_neon.h"

#if defined(MLX_DELTA_INT16)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kLeastGroup = kChunk;
inline constexpr int64_t kBlockColumns = 512;  // of x, 1 KB a row: what several rows keep in L1

// x of one call in fixed point, for one order of a chunk's values and one group size.
struct FixedX {
  const int16_t* values;  // [blocks, M, 512], each chunk as Fields::dot takes it
  const float* steps;     // [M, step_stride]: one a chunk
  const float* sums;      // [M, sum_stride]: step * sum(x16) of each group
  int64_t M, step_stride, sum_stride;

  const int16_t* chunk(int64_t m, int64_t c) const {
    constexpr int64_t chunks = kBlockColumns / kChunk;
    return values + ((c / chunks * M + m) * chunks + c % chunks) * kChunk;
  }
};

// The layouts of x: the orders of Fields, each for groups of 64 and of 128.
constexpr int kLayouts = 2 * (in_line + 1);
inline int layout_of(const MatrixView& m) { return 2 * order_of(m.bits) + (m.group_size == 64 ? 0 : 1); }

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
        const I rounded = nearest(h[i] * inverse);
        std::memcpy(q + i * W, &rounded, sizeof(rounded));
        total += rounded;
      }
      int16_t* out = const_cast<int16_t*>(to.chunk(m, c));
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) put(out, 16 * j + i, q[weight_at(layout / 2, j, i)]);
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

inline PackedRow packed_row(const MatrixView& matrix, int64_t n) {
  const int64_t groups = matrix.cols / matrix.group_size;
  return {static_cast<const uint8_t*>(matrix.data) + n * (matrix.cols * matrix.bits / 8),
          static_cast<const bf16*>(matrix.scales) + n * groups, static_cast<const bf16*>(matrix.biases) + n * groups};
}

// A group's bias for weights less `offset`.
template <int offset, typename Float>
inline Float bias_of(Float bias, Float scale) {
  return offset == 0 ? bias : bias + float(offset) * scale;
}

// acc + sum_g bias_g sum_g, lane by lane; then the sum of the lanes.
template <int offset>
inline float finish_row(F acc, const PackedRow& row, const float* sums, int64_t groups) {
  int64_t g = 0;
  for (; g + W <= groups; g += W) acc += bias_of<offset>(load(row.biases + g), load(row.scales + g)) * load(sums + g);
  const int64_t left = groups - g;
  if (left > 0)
    acc +=
        bias_of<offset>(load_part(row.biases + g, left), load_part(row.scales + g, left)) * load_part(sums + g, left);
  return sum(acc);
}

// One row of x.
template <int bits, int group_size>
float multiply_one(const PackedRow& row, int64_t chunks, const FixedX& x) {
  const Fields<bits> fields;
  const uint8_t* data = row.data;
  const int16_t* values = x.values;  // one row: its blocks follow each other
  const Ahead ahead = stream_ahead();
  F acc{};
  const auto add = [&](int64_t c, float factor) __attribute__((always_inline)) {
    typename Fields<bits>::Chunk f;
    fields(data + c * 8 * bits, f);
    acc += splat(factor) * floats(Fields<bits>::dot(f, values + c * kChunk));
  };
  int64_t c = 0;
  for (; c + 8 <= chunks; c += 8) {
    float factors[8];
    if constexpr (group_size == 64)
      for (int i = 0; i < 8; i += W) store(load(row.scales + c + i) * load(x.steps + c + i), factors + i);
    else
      for (int i = 0; i < 8; ++i) factors[i] = to_float(row.scales[(c + i) / 2]) * x.steps[c + i];
#if defined(__AVX2__)
    asm("" : "+m"(factors));  // from memory each is one broadcasting load, else two shuffles
#endif
    MLX_DELTA_UNROLL
    for (int i = 0; i < bits; ++i) prefetch_stream(data + (c + i) * 8 * bits + i * (64 - 8 * bits), ahead);
    MLX_DELTA_UNROLL
    for (int i = 0; i < 8; ++i) {
#if !defined(__AVX2__)
      asm volatile("" : "+w"(acc) : : "memory");  // chunk by chunk: clang mixes eight, and spills
#endif
      add(c + i, factors[i]);
    }
  }
  for (; c < chunks; ++c) add(c, to_float(row.scales[c * kChunk / group_size]) * x.steps[c]);
  return finish_row<Fields<bits>::offset>(acc, row, x.sums, chunks * kChunk / group_size);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif

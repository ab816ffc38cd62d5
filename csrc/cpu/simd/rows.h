// Rows of a weight matrix as floats, whatever their storage: plain float types, or MLX's affine packing.
#pragma once

#include "cpu/matrix.h"
#include "cpu/simd/math.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// Eight values of `bits` bits fill `bits` bytes exactly, for every width: a 64-bit word holds them, and each half of
// it four values in at most 32 bits. So a vector of 32-bit lanes, each with its half, is shifted lane by lane.
// `safe` says that 8 bytes (16 for W = 16) may be read.
template <int bits>
inline void unpack_octets(const uint8_t* packed, bool safe, float scale, float bias, float* out) {
  constexpr int octets = W == 16 ? 2 : 1;
  uint32_t halves[2 * octets];
  for (int o = 0; o < octets; ++o) {
    uint64_t word = 0;
    if (safe)
      std::memcpy(&word, packed + o * bits, 8);
    else
      std::memcpy(&word, packed + o * bits, bits);
    halves[2 * o] = uint32_t(word);
    halves[2 * o + 1] = uint32_t(word >> (4 * bits));
  }
  constexpr uint32_t mask = (1u << bits) - 1;
  constexpr int vectors = 8 * octets / W;
  for (int v = 0; v < vectors; ++v) {
    U lanes;
    for (int i = 0; i < W; ++i) lanes[i] = halves[(v * W + i) / 4];
    U shifts;
    for (int i = 0; i < W; ++i) shifts[i] = uint32_t(i % 4 * bits);
    const I values = I((lanes >> shifts) & mask);
    store(__builtin_convertvector(values, F) * scale + bias, out + v * W);
  }
}

// out[count] = columns [first, first + count) of a row; both multiples of the group size.
template <int bits, typename S>
void dequantize(const MatrixView& m, int64_t row, int64_t first, int64_t count, float* out) {
  constexpr int step = W == 16 ? 16 : 8;
  const auto* base = static_cast<const uint8_t*>(m.data);
  const uint8_t* packed = base + row * (m.cols * bits / 8) + first * bits / 8;
  const uint8_t* end = base + m.rows * (m.cols * bits / 8);
  const int64_t group = row * (m.cols / m.group_size) + first / m.group_size;
  const S* scales = static_cast<const S*>(m.scales) + group;
  const S* biases = static_cast<const S*>(m.biases) + group;
  for (int64_t g = 0; g < count / m.group_size; ++g) {
    const float scale = to_float(scales[g]), bias = to_float(biases[g]);
    const bool safe = end - packed >= m.group_size * bits / 8 + 8;
    for (int i = 0; i < m.group_size; i += step, packed += step * bits / 8, out += step)
      unpack_octets<bits>(packed, safe, scale, bias, out);
  }
}

template <typename T>
void read_typed_columns(const MatrixView& m, int64_t row, int64_t first, int64_t count, float* out) {
  switch (m.bits) {
    case 0:
      return load_floats(static_cast<const T*>(m.data) + row * m.cols + first, count, out);
    case 2:
      return dequantize<2, T>(m, row, first, count, out);
    case 3:
      return dequantize<3, T>(m, row, first, count, out);
    case 4:
      return dequantize<4, T>(m, row, first, count, out);
    case 5:
      return dequantize<5, T>(m, row, first, count, out);
    case 6:
      return dequantize<6, T>(m, row, first, count, out);
    case 8:
      return dequantize<8, T>(m, row, first, count, out);
  }
}

inline void read_columns(const MatrixView& m, int64_t row, int64_t first, int64_t count, float* out) {
  switch (m.type) {
    case DType::f32:
      return read_typed_columns<float>(m, row, first, count, out);
    case DType::f16:
      return read_typed_columns<f16>(m, row, first, count, out);
    case DType::bf16:
      return read_typed_columns<bf16>(m, row, first, count, out);
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

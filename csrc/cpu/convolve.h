// The convolution of a few channels over the tokens of one sequence, shared by conv1d and the mixer.
#pragma once

#include "cpu/conv1d.h"
#include "cpu/simd/math.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// Taps of W channels, from [channel, 4] to one vector a tap.
inline void load_taps(const float* p, F taps[kConvWidth]) {
#if defined(__AVX512F__)
  const __m512i pair[2] = {_mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29),
                           _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31)};
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16), c = _mm512_loadu_ps(p + 32),
               d = _mm512_loadu_ps(p + 48);
  for (int i = 0; i < 2; ++i) {  // the lower half of each pair is tap 2i, the upper tap 2i + 1
    const __m512 first = _mm512_permutex2var_ps(a, pair[i], b), second = _mm512_permutex2var_ps(c, pair[i], d);
    taps[2 * i] = F(_mm512_shuffle_f32x4(first, second, 0x44));
    taps[2 * i + 1] = F(_mm512_shuffle_f32x4(first, second, 0xee));
  }
#elif defined(__AVX2__)
  const auto quads = [p](int i) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4 * i)), _mm_loadu_ps(p + 4 * i + 16), 1);
  };
  const __m256 a = quads(0), b = quads(1), c = quads(2), d = quads(3);
  const __m256 ab_lo = _mm256_unpacklo_ps(a, b), ab_hi = _mm256_unpackhi_ps(a, b);
  const __m256 cd_lo = _mm256_unpacklo_ps(c, d), cd_hi = _mm256_unpackhi_ps(c, d);
  taps[0] = F(_mm256_shuffle_ps(ab_lo, cd_lo, 0x44));
  taps[1] = F(_mm256_shuffle_ps(ab_lo, cd_lo, 0xee));
  taps[2] = F(_mm256_shuffle_ps(ab_hi, cd_hi, 0x44));
  taps[3] = F(_mm256_shuffle_ps(ab_hi, cd_hi, 0xee));
#elif defined(MLX_DELTA_ISA_NEON)
  const float32x4x4_t all = vld4q_f32(p);
  for (int j = 0; j < kConvWidth; ++j) taps[j] = F(all.val[j]);
#else
  for (int j = 0; j < kConvWidth; ++j)
    for (int i = 0; i < W; ++i) taps[j][i] = p[i * kConvWidth + j];
#endif
}

// `lanes` <= W channels from c on, all tokens of sequence b: the window stays in registers. out(t, y) takes the results
// (0 where the mask is false, which leaves the state alone).
template <bool whole, typename T, typename Out>
inline void convolve_lanes(const Conv1dArgs& args, int64_t b, int64_t c, int64_t lanes, const Out& out) {
  const auto read = [lanes](const T* p) { return whole ? load(p) : load_part(p, lanes); };
  F taps[kConvWidth];
  if constexpr (whole) {
    load_taps(args.weight + c * kConvWidth, taps);
  } else {
    float padded[W * kConvWidth] = {};
    std::memcpy(padded, args.weight + c * kConvWidth, size_t(lanes) * kConvWidth * sizeof(float));
    load_taps(padded, taps);
  }
  const T* x = row<T>(args.x, b * args.T) + c;
  const T* state_in = static_cast<const T*>(args.state_in) + b * kConvState * args.C + c;
  F window[kConvState];
  for (int j = 0; j < kConvState; ++j) window[j] = read(state_in + j * args.C);
  for (int64_t t = 0; t < args.T; ++t, x += args.x.stride) {
    if (args.mask && !args.mask[b * args.T + t]) {
      out(t, F{});
      continue;
    }
    const F newest = read(x);
    out(t, silu(taps[0] * window[0] + taps[1] * window[1] + taps[2] * window[2] + taps[3] * newest));
    window[0] = window[1];
    window[1] = window[2];
    window[2] = newest;
  }
  if (!args.state_out) return;
  T* state_out = static_cast<T*>(args.state_out) + b * kConvState * args.C + c;
  for (int j = 0; j < kConvState; ++j) {
    if constexpr (whole)
      store(window[j], state_out + j * args.C);
    else
      store_part(window[j], state_out + j * args.C, lanes);
  }
}

// Channels [first, last) of sequence b to y[t * stride + c - first], of any element type.
template <typename T, typename Y>
inline void convolve(const Conv1dArgs& args, int64_t b, int64_t first, int64_t last, Y* y, int64_t stride) {
  int64_t c = first;
  for (; c + W <= last; c += W)
    convolve_lanes<true, T>(args, b, c, W, [&](int64_t t, F value) { store(value, y + t * stride + c - first); });
  if (c < last)
    convolve_lanes<false, T>(args, b, c, last - c,
                             [&](int64_t t, F value) { store_part(value, y + t * stride + c - first, last - c); });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

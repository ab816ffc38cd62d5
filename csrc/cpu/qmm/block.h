// A block of rows of x times the matrices of one product: what a unit of work is, and which loop of qmm/ runs it.
#pragma once

#include "cpu/qmm.h"
#include "cpu/qmm/fixed_x.h"
#include "cpu/qmm/float.h"
#include "cpu/qmm/products.h"
#include "cpu/qmm/rows_int16.h"
#include "cpu/qmm/strips_avx512.h"
#include "cpu/qmm/tiled_bf16.h"
#include "cpu/qmm/tiled_int16.h"
#include "cpu/runtime/threads.h"
#include "decode_tokens.h"

#if defined(__AVX512VNNI__) || defined(MLX_DELTA_INT16)
#define MLX_DELTA_FIXED  // packed weights multiply x in fixed point
#endif
#if defined(MLX_DELTA_FIXED) && (!defined(MLX_DELTA_ISA_NEON) || defined(MLX_DELTA_DOTPROD))
#define MLX_DELTA_TILED  // those of a prompt too, by tiles
#endif

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// Scratch slots of the calling thread (blocks, and their x, shared) and of each thread (3 and 4: see multiply_*;
// kResultSlot).
enum { kBlockSlot, kPreparedSlot, kResultSlot = 5 };

// x of a block stays in a core's L2 while the weights pass: 768 KB of 16-bit fixed point.
constexpr int64_t kBlockBytes = 768 * 1024;

// A thread reads this many units of gate rows before those of up rows: changing from one to the other after each unit
// costs one row of x 6 %, eight rows 1.5 % (Zen 5).
constexpr int64_t run_units(int64_t M) { return M == 1 ? 16 : 4; }

#if defined(MLX_DELTA_TILED)
constexpr bool kTiled = true;
// Tiles read x less often than weights, so that it may come from the L3.
constexpr int64_t kTiledBlockBytes = 4096 * 1024;
#else
constexpr bool kTiled = false;
constexpr int kTiledRows = kUnitRows;
#endif

#if defined(MLX_DELTA_FIXED)
// Without dot products NEON multiplies as many floats as 16-bit integers an instruction, so that integers gain only
// where weights are unpacked for few rows.
inline bool fixed_point(const MatrixView& m, DType x, const QmmArgs& args) {
  return (x == DType::bf16 || args.fixed_x) && m.bits != 0 && m.type == DType::bf16 && m.group_size >= kLeastGroup &&
         (kTiled || args.positions <= kDecodeTokens);
}
#else
inline bool fixed_point(const MatrixView&, DType, const QmmArgs&) { return false; }
#endif

#if defined(__AVX512BF16__)
inline bool bf16_pairs(const MatrixView& m, DType x, bool norm) {
  return x == DType::bf16 && m.bits == 0 && m.type == DType::bf16 && !norm;
}
#else
inline bool bf16_pairs(const MatrixView&, DType, bool) { return false; }
#endif

// Whether the rows of x of a call pass by tiles of this matrix, which unpack a weight once for many rows: those of
// prompts. Not the number of rows decides, so that sequences decoded together keep the bits that they have alone.
inline bool takes_tiles(const MatrixView& m, DType x, const QmmArgs& args) {
  return kTiled && args.positions > kDecodeTokens &&
         (fixed_point(m, x, args) || (bf16_pairs(m, x, args.norm != nullptr) && m.cols % 2 == 0));
}

// A block of M rows of x in every form that the segments need.
template <typename T>
struct Block {
  const QmmArgs& args;
  const T* x;
  const T* residual;
  int64_t first, M;
  const Block* after = nullptr;  // the block whose weights are read next
  bool need_floats = false, need_pairs = false, need_layout[6] = {};
  FloatX floats{};
  float* inverse_rms = nullptr;
#if defined(MLX_DELTA_FIXED)
  FixedX fixed[kLayouts];
  char* bases[kLayouts] = {};
#endif
#if defined(__AVX512BF16__)
  PairX pairs{};
  bf16* pair_blocks = nullptr;
#endif

  Block(const QmmArgs& a, int64_t from, int64_t count)
      : args(a),
        x(static_cast<const T*>(a.x) + from * a.K),
        residual(a.residual ? static_cast<const T*>(a.residual) + from * a.N : nullptr),
        first(from),
        M(count) {
    for (int s = 0; s < args.segment_count; ++s) {
      if (bf16_pairs(args.segments[s], dtype_of<T>(), args.norm))
        need_pairs |= !takes_tiles(args.segments[s], dtype_of<T>(), args);
      else if (!fixed_point(args.segments[s], dtype_of<T>(), args))
        need_floats = true;
#if defined(MLX_DELTA_FIXED)
      else
        need_layout[layout_of(args.segments[s])] = true;
#endif
    }
  }

  // Whether x is the same in the same forms, so that preparing it once is enough.
  bool prepares_as(const Block& other) const {
    return x == other.x && M == other.M && args.K == other.args.K && args.norm == other.args.norm &&
           args.eps == other.args.eps && need_floats == other.need_floats && need_pairs == other.need_pairs &&
           std::memcmp(need_layout, other.need_layout, sizeof(need_layout)) == 0;
  }
  void take_prepared(const Block& other) {
    floats = other.floats;
    inverse_rms = other.inverse_rms;
#if defined(MLX_DELTA_FIXED)
    std::memcpy(fixed, other.fixed, sizeof(fixed));
#endif
#if defined(__AVX512BF16__)
    pairs = other.pairs;
#endif
  }

  // Places the prepared x at `base`, or, without one, says only how many bytes it takes.
  int64_t place(char* base) {
    const int64_t K = args.K;
    int64_t at = 0;
    const auto part = [&](int64_t bytes) {
      char* const begin = base + at;
      at += (bytes + 63) / 64 * 64;
      return begin;
    };
    const int64_t stride = (K + W - 1) / W * W + (M > 1 ? 128 : 0);  // else they share a few sets of L1
    inverse_rms = reinterpret_cast<float*>(part(M * int64_t{sizeof(float)}));
    floats = {nullptr, stride};
    if (need_floats) floats.data = reinterpret_cast<float*>(part(M * stride * int64_t{sizeof(float)}));
#if defined(MLX_DELTA_FIXED)
    for (int i = 0; i < kLayouts; ++i) {
      if (!need_layout[i]) continue;
      bases[i] = part(M * FixedSpace(i, K).row_bytes());
      fixed[i] = FixedSpace(i, K).view(bases[i], M);
    }
#endif
#if defined(__AVX512BF16__)
    const bool one = one_block(M, K);
    if (need_pairs && !one)
      pair_blocks =
          reinterpret_cast<bf16*>(part(M * ((K + kPairBlock - 1) / kPairBlock * kPairBlock) * int64_t{sizeof(bf16)}));
    pairs = {one ? reinterpret_cast<const bf16*>(x) : pair_blocks, M, one ? K : kPairBlock};
#endif
    return at;
  }

  void prepare(int64_t from, int64_t to) const {
    const int64_t K = args.K;
    for (int64_t m = from; m < to; ++m) {
      const T* row = x + m * K;
      inverse_rms[m] = args.norm ? inverse_rms_of(row) : 1.0f;
      if (need_floats) float_row(row, const_cast<float*>(floats.data) + m * floats.stride, floats.stride);
#if defined(__AVX512BF16__)
      if (pair_blocks)
        for (int64_t k = 0; k < K; k += kPairBlock)
          std::memcpy(pair_blocks + k * M + m * kPairBlock, row + k, size_t(least(kPairBlock, K - k)) * sizeof(T));
#endif
#if defined(MLX_DELTA_FIXED)
      for (int i = 0; i < kLayouts; ++i)
        if (need_layout[i]) FixedSpace(i, K).fix(i, row, args.norm, K, bases[i], M, m);
#endif
    }
  }

  float inverse_rms_of(const T* row) const {
    F total{};
    int64_t k = 0;
    for (; k + W <= args.K; k += W) total += load(row + k) * load(row + k);
    const F rest = load_part(row + k, args.K - k);
    return 1.0f / sqrtf(sum(total + rest * rest) / float(args.K) + args.eps);
  }

  void float_row(const T* row, float* out, int64_t stride) const {
    load_floats(row, args.K, out);
    fill(out + args.K, stride - args.K, 0.0f);
    if (!args.norm) return;
    int64_t k = 0;
    for (; k + W <= args.K; k += W) store(load(out + k) * load(args.norm + k), out + k);
    for (; k < args.K; ++k) out[k] *= args.norm[k];
  }

  // out[unit, m, r]: rows n .. n + count of a segment, by units; then this thread reads on from `next`
  void multiply(const MatrixView& segment, int64_t n, int64_t count, [[maybe_unused]] RowOf next, float* out) const {
    if ((next.matrix->bits == 0) != (segment.bits == 0)) next = {&segment, n + count};
#if defined(MLX_DELTA_FIXED)
    if (fixed_point(segment, dtype_of<T>(), args))
      return multiply_fixed(segment, n, count, next, fixed[layout_of(segment)], out);
#endif
#if defined(__AVX512BF16__)
    if (bf16_pairs(segment, dtype_of<T>(), args.norm))
      return multiply_bf16(segment, n, count, static_cast<const bf16*>(next.matrix->data) + next.row * segment.cols,
                           pairs, out);
#endif
    multiply_float(segment, n, count, floats, M, out);
  }

  // Whether segment s (with swiglu: gate and up together) goes by tiles, and the weight rows of its unit.
  bool tiled(int s) const {
    return takes_tiles(args.segments[s], dtype_of<T>(), args) &&
           (!args.swiglu || takes_tiles(args.segments[1], dtype_of<T>(), args));
  }
  int unit_rows(int s) const { return tiled(s) ? kTiledRows : kUnitRows; }

  // Weight rows n .. n + count of segment s (with swiglu: of gate and up), to columns from `column` of y: a unit, or a
  // run of them.
  void run_rows(int s, int64_t n, int64_t count, int64_t column) const {
    const MatrixView& segment = args.segments[s];
    const int64_t rows = unit_rows(s), space = (count + rows - 1) / rows * rows * M;  // [units, M, rows]
    float* out = scratch_of<float>(kResultSlot, 2 * space);
    float* up = out + space;
    const auto finish_all = [&] {
      for (int64_t r = 0; r < count; r += rows)
        for (int64_t m = 0; m < M; ++m) {
          const int64_t at = r * M + m * rows;
          finish(m, column + r, least(rows, count - r), out + at, up + at);
        }
    };
#if defined(MLX_DELTA_TILED)
    if (tiled(s)) {
      fill(out, (args.swiglu ? 2 : 1) * space, 0.0f);
      multiply_tiles(segment, n, count, out);
      if (args.swiglu) multiply_tiles(args.segments[1], n, count, up);
      return finish_all();
    }
#endif
    const auto multiply_units = [&](const MatrixView& matrix, RowOf next, float* to) {
      const int64_t step = M > 1 && fixed_point(matrix, dtype_of<T>(), args) ? kRunRows : kUnitRows;
      for (int64_t r = 0; r < count; r += step) {
        const int64_t end = least(r + step, count);
        multiply(matrix, n + r, end - r, end < count ? RowOf{&matrix, n + end} : next, to + r * M);
      }
    };
    const int64_t end = n + count;
    RowOf next{&segment, end};
    if (end == segment.rows && !args.swiglu && s + 1 < args.segment_count)
      next = {&args.segments[s + 1], 0};
    else if (end == segment.rows && after != nullptr)
      next = {&after->args.segments[0], 0};
    if (args.swiglu) {
      multiply_units(segment, {&args.segments[1], n}, out);
      multiply_units(args.segments[1], next, up);
    } else {
      multiply_units(segment, next, out);
    }
    finish_all();
  }

  // Row m of y, columns from `column` on, from `count` products.
  void finish(int64_t m, int64_t column, int64_t count, const float* out, const float* up) const {
    const int64_t at = m * args.N + column, y_at = at + first * args.N;
    const auto vector = [&](auto full, int64_t r, int64_t left) __attribute__((always_inline)) {
      const auto read = [&](const auto* p) { return full ? load(p + r) : load_part(p + r, left); };
      F value = read(out) * inverse_rms[m];
      if (args.swiglu) value = silu(value) * (read(up) * inverse_rms[m]);
      if (residual) value += read(residual + at);
      const auto write = [&](auto* y) __attribute__((always_inline)) {
        if constexpr (full)
          store(value, y + y_at + r);
        else
          store_part(value, y + y_at + r, left);
      };
      if (args.float_y)
        write(static_cast<float*>(args.y));
      else
        write(static_cast<T*>(args.y));
    };
    int64_t r = 0;
    for (; r + W <= count; r += W) vector(std::true_type{}, r, W);
    if (r < count) vector(std::false_type{}, r, count - r);
  }

#if defined(MLX_DELTA_TILED)
  // out[m * kTiledRows + r] += rows n .. n + count of a segment
  void multiply_tiles(const MatrixView& segment, int64_t n, int64_t count, float* out) const {
#if defined(__AVX512BF16__)
    if (segment.bits == 0) return multiply_tiled_bf16(segment, n, count, reinterpret_cast<const bf16*>(x), M, out);
#endif
    multiply_tiled(segment, n, count, fixed[layout_of(segment)], out);
  }
#endif

  // The units of its first segments, up to segment s.
  int64_t units_before(int s) const {
    int64_t units = 0;
    for (int i = 0; i < s; ++i) units += (args.segments[i].rows + unit_rows(i) - 1) / unit_rows(i);
    return units;
  }
  int segments() const { return args.swiglu ? 1 : args.segment_count; }  // the up rows are read beside the gate rows
  int64_t units() const { return units_before(segments()); }

  void run(int64_t from, int64_t to) const {
    int64_t column = 0, first_unit = 0;
    for (int s = 0; s < segments() && from < to; ++s) {
      const int64_t end = units_before(s + 1);
      // Tiles take a unit at a time, for the last row of a long prompt too.
      const int64_t run = tiled(s) ? 1 : run_units(M);
      while (from < least(to, end)) {
        const int64_t last = least(least(to, end), from + run);
        const int64_t n = (from - first_unit) * unit_rows(s);
        run_rows(s, n, least((last - from) * unit_rows(s), args.segments[s].rows - n), column + n);
        from = last;
      }
      first_unit = end;
      column += args.segments[s].rows;
    }
  }
};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

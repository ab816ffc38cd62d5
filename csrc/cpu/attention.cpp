// Online softmax (Milakov and Gimelshein, arXiv 1805.02867) over blocks of 64 rows of the cache. Work items are
// (sequence, key/value head, some query rows, a stretch of the cache); a long cache is cut into stretches of a fixed
// length, whatever the number of threads, and their partial results are folded together in order: same bits everywhere.
#include "cpu/attention.h"

#include "cpu/kv_row.h"
#include "cpu/runtime/threads.h"
#include "cpu/simd/gemm.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kBlock = 64;      // rows of the cache at a time
constexpr int64_t kStretch = 1024;  // rows of the cache in an item, when decoding
constexpr int64_t kTokens = 32;     // new tokens in an item, of a prompt
constexpr float kNone = -3.0e38f;   // below every score
// Register tiles of the streamed cache, for 4 query rows: keys, and vectors of a value. 16 registers with AVX2.
constexpr int kKeys = W == 8 ? 2 : 4, kWide = W == 8 ? 2 : 4;

enum { kPartialSlot, kQuerySlot, kScoreSlot, kBlockSlot, kOutSlot };

// What an item knows of a query row: the largest score, the sum of weights relative to it, and the weighted values.
struct Partial {
  float *max, *sum, *out;  // [rows], [rows], [rows, D]
};

// Of activations T over a cache of elements E: T, or int8_t in rows of kv_row.h.
template <typename T, typename E>
struct Item {
  static constexpr bool kEightBits = std::is_same_v<E, int8_t>;

  const AttentionArgs& args;
  const KvPart& part;
  int64_t b, hk;
  int64_t token, tokens;  // new tokens [token, token + tokens)
  int64_t from, to;       // rows of the cache

  int64_t group() const { return args.Hq / args.Hkv; }
  int64_t rows() const { return group() * tokens; }  // row r: head r / tokens, token r % tokens

  // How many cache rows from `s` on row r sees, of `count`.
  int64_t visible(int64_t r, int64_t s, int64_t count) const {
    return most<int64_t>(0, least(count, part.offset + token + r % tokens + 1 - s));  // causal
  }

  // From one row of the cache to the next, and how many columns of one have the same scale.
  int64_t stride() const { return kEightBits ? kv_row_bytes(args.D) : args.D; }
  int64_t columns() const { return kEightBits ? kKvGroup : args.D; }

  const E* cache(const void* base, int64_t s) const {
    return static_cast<const E*>(base) + ((b * args.Hkv + hk) * part.S + s) * stride();
  }

  // What a row's value is to be multiplied by.
  float scale_at(const E* row, int64_t column) const {
    if constexpr (kEightBits)
      return kv_scale(row, args.D, column / kKvGroup);
    else
      return 1.0f;
  }

  void load_q(float* q) const {
    const T* of_part = static_cast<const T*>(args.q) + part.first * args.Hq * args.D;
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t head = hk * group() + r / tokens;
      float* row = q + r * args.D;
      load_floats(of_part + ((b * args.Hq + head) * part.T + token + r % tokens) * args.D, args.D, row);
      scale(args.scale, args.D, row);
    }
  }

  // Scores [rows, kBlock] to weights relative to each row's new maximum; what was summed so far is rescaled.
  void soften(float* scores, int64_t s, int64_t count, const Partial& p) const {
    for (int64_t r = 0; r < rows(); ++r) {
      float* row = scores + r * kBlock;
      const int64_t seen = visible(r, s, count);
      fill(row + seen, kBlock - seen, kNone);
      F largest = load(row);
      for (int64_t i = W; i < kBlock; i += W) largest = vmax(largest, load(row + i));
      const float max = most(p.max[r], max_lane(largest));
      F sums{};
      for (int64_t i = 0; i < kBlock; i += W) {
        const F x = load(row + i);
        const F weight = select(I(x > kNone), exp(x - max), F{});
        sums += weight;
        store(weight, row + i);
      }
      const float rescale = p.max[r] > kNone ? expf(p.max[r] - max) : 0.0f;
      p.sum[r] = p.sum[r] * rescale + sum(sums);
      if (rescale != 1.0f) scale(rescale, args.D, p.out + r * args.D);
      p.max[r] = max;
    }
  }

  // A few tokens: each key and value is converted once and used for up to four rows from registers. The values of
  // the block are asked for while its keys are read, and the next block's keys while its values are.
  void stream_block(const float* q, float* scores, int64_t s, int64_t count, const Partial& p) const {
    const E *keys = cache(part.keys, s), *values = cache(part.values, s), *next = keys + count * stride();
    int64_t r = 0;
    for (; r + 4 <= rows(); r += 4) score<4>(q, keys, values, count, r, scores);
    for (; r < rows(); ++r) score<1>(q, keys, values, count, r, scores);
    soften(scores, s, count, p);
    for (r = 0; r + 4 <= rows(); r += 4) add_values<4>(scores, values, next, count, r, p.out);
    for (; r < rows(); ++r) add_values<1>(scores, values, next, count, r, p.out);
  }

  template <int R>
  void score(const float* q, const E* keys, const E* ahead, int64_t count, int64_t first, float* scores) const {
    int64_t s = 0;
    for (; s + kKeys <= count; s += kKeys)
      score_keys<R, kKeys>(q, keys + s * stride(), ahead + s * stride(), first, scores + s);
    for (; s < count; ++s) score_keys<R, 1>(q, keys + s * stride(), ahead + s * stride(), first, scores + s);
  }

  template <int R, int keys>
  void score_keys(const float* q, const E* key, const E* ahead, int64_t first, float* scores) const {
    const int64_t D = args.D, step = stride();
    F sums[keys][4] = {};
    int64_t c = 0;
    for (int64_t group = 0; group < D; group += columns()) {
      F scales[keys];
      if constexpr (kEightBits) MLX_DELTA_UNROLL
      for (int i = 0; i < keys; ++i) {
        scales[i] = splat(scale_at(key + i * step, group));
        prefetch(ahead + i * step + group);
      }
      for (const int64_t end = least(D, group + columns()); c + W <= end; c += W) {
        F k[keys];
        MLX_DELTA_UNROLL
        for (int i = 0; i < keys; ++i) {
          k[i] = load(key + i * step + c);
          if constexpr (kEightBits)
            k[i] *= scales[i];
          else
            prefetch(ahead + i * step + c);
        }
        MLX_DELTA_UNROLL
        for (int r = 0; r < R; ++r) {
          const F qr = load(q + (first + r) * D + c);
          MLX_DELTA_UNROLL
          for (int i = 0; i < keys; ++i) sums[i][r] += k[i] * qr;
        }
      }
    }
    MLX_DELTA_UNROLL
    for (int i = 0; i < keys; ++i) {
      float totals[4];
      sum4(sums[i], totals);
      MLX_DELTA_UNROLL
      for (int r = 0; r < R; ++r) {
        for (int64_t d = c; d < D; ++d)
          totals[r] += to_float(key[i * step + d]) * scale_at(key + i * step, d) * q[(first + r) * D + d];
        scores[(first + r) * kBlock + i] = totals[r];
      }
    }
  }

  template <int R>
  void add_values(const float* scores, const E* values, const E* ahead, int64_t count, int64_t first,
                  float* out) const {
    const int64_t D = args.D, step = stride();
    const float* weights = scores + first * kBlock;
    float scaled[R * kBlock];
    for (int64_t group = 0; group < D; group += columns()) {
      if constexpr (kEightBits) {
        for (int64_t s = 0; s < count; ++s) {
          const float scale = scale_at(values + s * step, group);
          MLX_DELTA_UNROLL
          for (int r = 0; r < R; ++r) scaled[r * kBlock + s] = scores[(first + r) * kBlock + s] * scale;
          prefetch(ahead + s * step + group);
        }
        weights = scaled;
      }
      const int64_t end = least(D, group + columns());
      int64_t c = group;
      for (; c + kWide * W <= end; c += kWide * W) {
        F sums[R][kWide];
        MLX_DELTA_UNROLL
        for (int r = 0; r < R; ++r) MLX_DELTA_UNROLL
        for (int v = 0; v < kWide; ++v) sums[r][v] = load(out + (first + r) * D + c + v * W);
        for (int64_t s = 0; s < count; ++s) {
          F value[kWide];
          MLX_DELTA_UNROLL
          for (int v = 0; v < kWide; ++v) {
            value[v] = load(values + s * step + c + v * W);
            if constexpr (!kEightBits) prefetch(ahead + s * step + c + v * W);
          }
          MLX_DELTA_UNROLL
          for (int r = 0; r < R; ++r) {
            const float weight = weights[r * kBlock + s];
            MLX_DELTA_UNROLL
            for (int v = 0; v < kWide; ++v) sums[r][v] += weight * value[v];
          }
        }
        MLX_DELTA_UNROLL
        for (int r = 0; r < R; ++r) MLX_DELTA_UNROLL
        for (int v = 0; v < kWide; ++v) store(sums[r][v], out + (first + r) * D + c + v * W);
      }
      for (; c < end; ++c) MLX_DELTA_UNROLL
      for (int r = 0; r < R; ++r)
        for (int64_t s = 0; s < count; ++s)
          out[(first + r) * D + c] += weights[r * kBlock + s] * to_float(values[s * step + c]);
    }
  }

  void load_rows(const E* rows, int64_t count, float* to) const {
    if constexpr (kEightBits)
      load_kv_rows(rows, count, args.D, to);
    else
      load_floats(rows, count * args.D, to);
  }

  // Many tokens: keys (transposed) and values of the block as floats, then two matrix products.
  void tile_block(const float* q, float* scores, float* block, int64_t s, int64_t count, const Partial& p) const {
    const int64_t D = args.D;
    float* transposed = block + kBlock * D;
    load_rows(cache(part.keys, s), count, block);
    fill(block + count * D, (kBlock - count) * D, 0.0f);
    transpose(block, D, kBlock, D, transposed, kBlock);
    fill(scores, rows() * kBlock, 0.0f);
    gemm(q, D, transposed, kBlock, scores, kBlock, rows(), kBlock, D);
    soften(scores, s, count, p);
    load_rows(cache(part.values, s), count, block);
    gemm(scores, kBlock, block, D, p.out, D, rows(), D, count);
  }

  void run(const Partial& p) const {
    const int64_t D = args.D;
    float* q = scratch_of<float>(kQuerySlot, rows() * D);
    float* scores = scratch_of<float>(kScoreSlot, rows() * kBlock);
    float* block = args.few ? nullptr : scratch_of<float>(kBlockSlot, 2 * kBlock * D);
    load_q(q);
    fill(p.max, rows(), kNone);
    fill(p.sum, rows(), 0.0f);
    fill(p.out, rows() * D, 0.0f);
    const int64_t last = least(to, part.offset + token + tokens);
    for (int64_t s = from; s < last; s += kBlock) {
      const int64_t count = least(kBlock, last - s);
      block ? tile_block(q, scores, block, s, count, p) : stream_block(q, scores, s, count, p);
    }
  }

  // Row r: the weighted values divided by the sum of weights, times the sigmoid of the gate.
  void finish(const Partial& p) const {
    const int64_t D = args.D;
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t h = hk * group() + r / tokens;
      const int64_t at = part.first + b * part.T + token + r % tokens;
      const T* gate = static_cast<const T*>(args.projection) + at * args.width + (2 * h + 1) * D;
      T* y = static_cast<T*>(args.y) + (at * args.Hq + h) * D;
      const float* out = p.out + r * D;
      const float inverse = p.sum[r] > 0 ? 1.0f / p.sum[r] : 0.0f;  // a padding token sees nothing: 0
      int64_t i = 0;
      for (; i + W <= D; i += W) store(load(out + i) * inverse * sigmoid(load(gate + i)), y + i);
      for (; i < D; ++i) y[i] = from_float<T>(out[i] * inverse * sigmoid(to_float(gate[i])));
    }
  }
};

// Folds `more` into `p`, row by row.
void fold(const Partial& p, const Partial& more, int64_t rows, int64_t D) {
  for (int64_t r = 0; r < rows; ++r) {
    if (!(more.sum[r] > 0)) continue;
    const float max = most(p.max[r], more.max[r]);
    const float mine = p.sum[r] > 0 ? expf(p.max[r] - max) : 0.0f, theirs = expf(more.max[r] - max);
    p.max[r] = max;
    p.sum[r] = p.sum[r] * mine + more.sum[r] * theirs;
    scale(mine, D, p.out + r * D);
    axpy(theirs, more.out + r * D, D, p.out + r * D);
  }
}

int64_t partial_size(const AttentionArgs& args, int64_t tokens) { return args.Hq / args.Hkv * tokens * (args.D + 2); }

Partial partial_at(float* at, int64_t size, int64_t D) {
  const int64_t rows = size / (D + 2);
  return {at + rows * D, at + rows * (D + 1), at};
}

// From where the sequence begins, so that padding on its left does not change a bit of it.
int64_t first_row(const AttentionArgs& args, int64_t b) { return args.start ? most<int64_t>(args.start[b], 0) : 0; }

// A prompt's tokens, of one part. The last tokens see most of the cache: they go first.
template <typename T, typename E>
void attend_prompt(const AttentionArgs& args) {
  const KvPart& part = args.part[0];
  const int64_t heads = part.B * args.Hkv, token_parts = (part.T + kTokens - 1) / kTokens;
  const int64_t size = partial_size(args, least(kTokens, part.T));
  parallel_for(heads * token_parts, 1, [&](int64_t first, int64_t last) {
    const Partial p = partial_at(scratch_of<float>(kOutSlot, size), size, args.D);
    for (int64_t i = first; i < last; ++i) {
      const int64_t head = i % heads, b = head / args.Hkv, token = (token_parts - 1 - i / heads) * kTokens;
      const Item<T, E> one{
          args, part, b, head % args.Hkv, token, least(kTokens, part.T - token), first_row(args, b), part.length()};
      one.run(p);
      one.finish(p);
    }
  });
}

// Few tokens of each of several sequences: an item is a head and a stretch of one.
template <typename T, typename E>
void attend_few(const AttentionArgs& args) {
  struct Of {
    int64_t stretches, size;  // size: of what is known of an item's query rows
    int64_t item, partial;    // its first item; where what is known of its items goes, where a head has several
  } of[kKvParts + 1];
  int64_t items = 0, partials = 0, largest = 0, split_heads = 0;
  for (int64_t i = 0; i < args.parts; ++i) {
    const KvPart& part = args.part[i];
    const int64_t stretches = (part.length() + kStretch - 1) / kStretch, size = partial_size(args, part.T);
    const int64_t heads = part.B * args.Hkv;
    of[i] = {stretches, size, items, partials};
    items += heads * stretches;
    largest = most(largest, size);
    if (stretches == 1) continue;
    partials += heads * stretches * size;
    split_heads += heads;
  }
  of[args.parts].item = items;
  const auto item = [&](const KvPart& part, int64_t head, int64_t stretch, int64_t stretches) {
    const int64_t b = head / args.Hkv, from = first_row(args, b) + stretch * kStretch;
    const int64_t to = stretches == 1 ? part.length() : least(part.length(), from + kStretch);
    return Item<T, E>{args, part, b, head % args.Hkv, 0, part.T, from, to};
  };
  float* shared = partials > 0 ? scratch_of<float>(kPartialSlot, partials) : nullptr;
  parallel_for(items, 1, [&](int64_t first, int64_t last) {
    float* own = scratch_of<float>(kOutSlot, largest);
    int64_t i = 0;
    for (int64_t at = first; at < last; ++at) {
      while (at >= of[i + 1].item) ++i;
      const int64_t number = at - of[i].item, stretches = of[i].stretches, size = of[i].size;
      const Item<T, E> one = item(args.part[i], number / stretches, number % stretches, stretches);
      const Partial p = partial_at(stretches == 1 ? own : shared + of[i].partial + number * size, size, args.D);
      one.run(p);
      if (stretches == 1) one.finish(p);
    }
  });
  // Of one sequence alone it does not pay to hand this to the other threads.
  parallel_for(split_heads, args.Hkv, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) {
      int64_t i = 0, head = at;
      for (;; ++i) {
        const int64_t heads = of[i].stretches == 1 ? 0 : args.part[i].B * args.Hkv;
        if (head < heads) break;
        head -= heads;
      }
      const int64_t stretches = of[i].stretches, size = of[i].size;
      float* own = shared + of[i].partial + head * stretches * size;
      const Partial p = partial_at(own, size, args.D);
      for (int64_t s = 1; s < stretches; ++s)
        fold(p, partial_at(own + s * size, size, args.D), size / (args.D + 2), args.D);
      item(args.part[i], head, 0, stretches).finish(p);
    }
  });
}

template <typename T, typename E>
void attend_over(const AttentionArgs& args) {
  args.few ? attend_few<T, E>(args) : attend_prompt<T, E>(args);
}

template <typename T>
void attend(const AttentionArgs& args) {
  args.eight_bits ? attend_over<T, int8_t>(args) : attend_over<T, T>(args);
}

}  // namespace

void attention(DType type, const AttentionArgs& args) { MLX_DELTA_DISPATCH(type, attend, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

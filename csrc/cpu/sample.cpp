// No logit is sorted. What the filters keep is a threshold, and how many of the tokens that equal it: the largest
// tokens up to a number (top_k) or a mass (top_p). It is found by histograms over the bits of the logits, the first
// over a range that is known to hold it, the next over the bucket that does, until a bucket is one value.
//
// Masses are integers, in 2^-43 of the likeliest token's, so that their sums are the same in any order: a draw depends
// neither on threads nor on the width of vectors.
#include "cpu/sample.h"

#include "cpu/runtime/threads.h"
#include "cpu/simd/math.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kBlock = 1024;              // columns whose mass is known
constexpr int64_t kBuckets = 2048;            // of a histogram
constexpr int64_t kHistogram = kBuckets + W;  // what is outside its range goes beyond: each lane has its place there,
                                              // for additions to one place wait for each other

typedef uint8_t Bytes __attribute__((vector_size(W)));
typedef float HalfF __attribute__((vector_size(2 * W)));
typedef double HalfD __attribute__((vector_size(4 * W)));
typedef uint64_t Mass __attribute__((vector_size(4 * W)));  // W / 2 of them

const float kNothing = -__builtin_inff();

// ---- a logit and its place in the order

inline I marked(const bool* p) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return I(__builtin_convertvector(bytes, I) != 0);
}

struct Masks {
  const bool *allowed, *prompt, *generated;  // each may be null
};

// Penalties, mask and temperature on W logits, none of them NaN. -0 becomes 0.
template <typename T>
inline F adjusted(const SampleArgs& args, const T* logits, const Masks& masks) {
  F x = load(logits);
  if (masks.prompt || masks.generated) {
    const I generated = masks.generated ? marked(masks.generated) : I{};
    const I seen = generated | (masks.prompt ? marked(masks.prompt) : I{});
    x = select(seen, select(I(x > 0), x / args.repetition_penalty, x * args.repetition_penalty), x);
    x = select(generated, x - args.presence_penalty, x);
  }
  if (masks.allowed) x = select(marked(masks.allowed), x, splat(kNothing));
  return (args.temperature == 1 ? x : x / args.temperature) + 0.0f;
}

// Larger floats have larger keys.
inline U keys(F x) {
  const I bits = I(x);
  return U(bits ^ ((bits >> 31) & 0x7fffffff)) ^ 0x80000000u;
}
inline uint32_t key(float x) { return keys(splat(x))[0]; }
inline float value(uint32_t key) {
  const uint32_t bits = key ^ 0x80000000u;
  return bits_as<float>(bits ^ (uint32_t(int32_t(bits) >> 31) & 0x7fffffffu));
}

// ---- masses

// e in 2^-43: at 2^9 that is the last digit of a double.
inline Mass fixed_point(HalfF e) { return Mass(__builtin_convertvector(e, HalfD) + 512.0) - bits_as<uint64_t>(512.0); }

constexpr double kUnit = 0x1p43;

// exp(x - max) of lanes 0 to W / 2, and of the others.
inline void masses(F x, float max, Mass out[2]) {
  const F e = exp(select(I(x == max), F{}, x - max));  // inf - inf is no number
  HalfF halves[2];
  std::memcpy(halves, &e, sizeof(e));
  out[0] = fixed_point(halves[0]);
  out[1] = fixed_point(halves[1]);
}

// Of those at or above `least`.
inline void masses_from(F x, float least, float max, Mass out[2]) {
  masses(select(I(x >= least), x, splat(kNothing)), max, out);
}

// ---- one row

struct Range {
  uint32_t low, high;  // keys, both in it
};

class Row {
 public:
  // Of a row's memory, which lasts until the next one's.
  explicit Row(int64_t columns)
      : columns_(columns),
        blocks_((columns + kBlock - 1) / kBlock),
        x_(scratch_of<float>(0, blocks_ * kBlock)),
        largest_(scratch_of<float>(1, blocks_)),
        masses_(scratch_of<uint64_t>(2, blocks_)),
        histograms_(scratch_of<uint64_t>(3, thread_count() * kHistogram)) {}

  template <typename T>
  int32_t choose(const SampleArgs& args, int64_t row) {
    read<T>(args, row);
    if (max_ != max_) return -1;
    if (max_ == kNothing) return 0;
    if (!args.random) return likeliest<T>(args, row);
    if (args.top_k > 0 && args.top_k < columns_) keep_most(uint64_t(args.top_k), kth_largest(args.top_k), false);
    if (args.top_p < 1) {
      const double total = double(total_mass());
      // All tokens below this have, together, less than what top_p leaves out. The 0.01 is for rounding.
      const double floor = max_ + log((1 - args.top_p) * (total / kUnit) / double(columns_)) - 0.01;
      keep_most(uint64_t(ceil(args.top_p * total)), most(least_, float(floor)), true);
    }
    least_ = most(least_, max_ + args.log_min_p);
    return draw(args.random[row]);
  }

 private:
  // Adjusts a block of a row into x; its largest, NaN if a logit is.
  template <typename T>
  float read_block(const SampleArgs& args, int64_t row, int64_t block, float* x) const {
    const int64_t first = block * kBlock, count = least<int64_t>(kBlock, columns_ - first);
    const T* logits = static_cast<const T*>(args.logits) + row * args.V + first;
    const auto of = [&](const bool* mask, int64_t stride) { return mask ? mask + row * stride + first : nullptr; };
    const Masks masks{of(args.allowed, args.allowed_stride), of(args.prompt, args.prompt_stride),
                      of(args.generated, args.generated_stride)};
    const auto at = [&](int64_t i) {
      return Masks{masks.allowed ? masks.allowed + i : nullptr, masks.prompt ? masks.prompt + i : nullptr,
                   masks.generated ? masks.generated + i : nullptr};
    };
    F largest = splat(kNothing);
    I broken{};
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      const F raw = load(logits + i), v = adjusted(args, logits + i, at(i));
      broken |= I(raw != raw);
      largest = vmax(v, largest);
      store(v, x + i);
    }
    if (i < count) {
      T tail[W];
      bool marks[3][W] = {};
      const Masks rest = at(i);
      const bool* from[3] = {rest.allowed, rest.prompt, rest.generated};
      for (int lane = 0; lane < W; ++lane) {
        const bool inside = i + lane < count;
        tail[lane] = inside ? logits[i + lane] : from_float<T>(kNothing);
        for (int m = 0; m < 3; ++m) marks[m][lane] = inside && from[m] && from[m][lane];
      }
      const auto padded = [&](int m) { return from[m] ? marks[m] : nullptr; };
      const F raw = load(tail), v = adjusted(args, tail, Masks{padded(0), padded(1), padded(2)});
      broken |= I(raw != raw);
      largest = vmax(v, largest);
      store(v, x + i);
      i += W;
    }
    fill(x + i, kBlock - i, kNothing);
    for (int lane = 0; lane < W; ++lane)
      if (broken[lane]) return __builtin_nanf("");
    return max_lane(largest);
  }

  template <typename T>
  void read(const SampleArgs& args, int64_t row) {
    // For the likeliest token nothing more than each block's largest is needed: x stays in the cache.
    parallel_for_shrinking(blocks_, 8, [&](int64_t first, int64_t last) {
      float unused[kBlock];
      for (int64_t b = first; b < last; ++b)
        largest_[b] = read_block<T>(args, row, b, args.random ? x_ + b * kBlock : unused);
    });
    max_ = kNothing;
    for (int64_t b = 0; b < blocks_ && max_ == max_; ++b)
      max_ = largest_[b] == largest_[b] ? most(max_, largest_[b]) : largest_[b];
    least_ = kNothing;
  }

  template <typename T>
  int32_t likeliest(const SampleArgs& args, int64_t row) const {
    int64_t b = 0, i = 0;
    while (largest_[b] != max_) ++b;
    float x[kBlock];
    read_block<T>(args, row, b, x);
    while (x[i] != max_) ++i;
    return int32_t(b * kBlock + i);
  }

  // No more than the k-th largest logit: the k-th largest of the blocks' maxima. It is close to it, for few blocks have
  // more than one of the k.
  float kth_largest(int64_t k) const {
    if (k > blocks_) return kNothing;
    float* sorted = reinterpret_cast<float*>(masses_);
    // Insertion into the k largest so far.
    int64_t count = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      int64_t at = count < k ? count++ : k;
      if (at == k && !(largest_[b] > sorted[--at])) continue;
      for (; at > 0 && sorted[at - 1] < largest_[b]; --at) sorted[at] = sorted[at - 1];
      sorted[at] = largest_[b];
    }
    return sorted[k - 1];
  }

  // Keeps the shortest beginning of the order (logits descending, ids ascending) that has `limit` tokens, or their
  // mass; of the others those that equal its last become -inf. The last one is no less than `floor`.
  void keep_most(uint64_t limit, float floor, bool by_mass) {
    Range range{key(floor), key(max_)};
    uint64_t above = 0;  // tokens, or mass, beyond the range
    // First buckets of one width in x, for logits are spread evenly over a hundredth of a range, and over the bits of a
    // range around 0 they are not.
    const float scale = float(kBuckets) / least(max_ - floor, 64.0f);
    const auto even = [max = max_, scale](F x) {
      const F distance = select(I(x == max), F{}, (max - x) * scale);
      return U(__builtin_convertvector(select(I(distance < kBuckets - 1.0f), distance, splat(kBuckets - 1.0f)), I));
    };
    const uint32_t chosen = narrow(range, limit, by_mass, above, even);
    const auto first_key = [&](auto is_reached) {
      Range rest = range;
      while (rest.low < rest.high) {
        const uint32_t middle = rest.low + (rest.high - rest.low) / 2;
        if (is_reached(even(splat(value(middle)))[0]))
          rest.high = middle;
        else
          rest.low = middle + 1;
      }
      return rest.low;
    };
    const uint32_t low = first_key([&](uint32_t bucket) { return bucket <= chosen; });
    if (chosen > 0) range.high = first_key([&](uint32_t bucket) { return bucket < chosen; }) - 1;
    range.low = low;
    // Then by bits.
    while (range.low < range.high) {
      int shift = 0;
      while (((range.high - range.low) >> shift) >= kBuckets) ++shift;
      const uint32_t high = range.high;
      const uint32_t bucket = narrow(range, limit, by_mass, above, [=](F x) { return (high - keys(x)) >> shift; });
      range.high -= bucket << shift;
      range.low = most(range.low, range.high - least(range.high, (1u << shift) - 1));
    }
    least_ = value(range.low);
    Mass one[2];
    masses(splat(least_), max_, one);
    const uint64_t weight = by_mass ? one[0][0] : 1;
    if (weight > 0) drop_ties((limit - above + weight - 1) / weight);
  }

  // The bucket of x in `range` with which the sum from the first, of tokens or their mass, reaches `limit`. Buckets
  // have x descending; `above` is what lies before the range, and becomes what lies before the bucket.
  template <typename BucketOf>
  uint32_t narrow(const Range& range, uint64_t limit, bool by_mass, uint64_t& above, const BucketOf& bucket_of) {
    const int64_t shares = least<int64_t>(thread_count(), blocks_);
    parallel_for(shares, 1, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        uint64_t* histogram = histograms_ + t * kHistogram;
        fill(histogram, kHistogram, uint64_t{0});
        U outside;
        for (int lane = 0; lane < W; ++lane) outside[lane] = uint32_t(kBuckets + lane);
        const int64_t end = (t + 1) * blocks_ / shares * kBlock;
        for (int64_t block = t * blocks_ / shares * kBlock; block < end; block += kBlock) {
          // By way of memory: GCC takes single lanes out of a vector by a chain of shuffles.
          uint32_t buckets[kBlock];
          uint64_t weights[kBlock];
          int64_t count = 0;
          for (int64_t i = block; i < block + kBlock; i += W) {
            const F x = load(x_ + i);
            const I inside = I((keys(x) - range.low) <= (range.high - range.low));
            if (!any(inside)) continue;
            const U bucket = (U(inside) & bucket_of(x)) | (~U(inside) & outside);
            Mass some[2] = {Mass{} + 1, Mass{} + 1};
            if (by_mass) masses(x, max_, some);
            std::memcpy(buckets + count, &bucket, sizeof(bucket));
            std::memcpy(weights + count, some, sizeof(some));
            count += W;
          }
          for (int64_t i = 0; i < count; ++i) histogram[buckets[i]] += weights[i];
        }
      }
    });
    uint32_t bucket = 0;
    for (; bucket < kBuckets - 1; ++bucket) {
      uint64_t weight = 0;
      for (int64_t t = 0; t < shares; ++t) weight += histograms_[t * kHistogram + bucket];
      if (above + weight >= limit) break;
      above += weight;
    }
    return bucket;
  }

  // All but the first `count` of the tokens that equal least_ become -inf.
  void drop_ties(uint64_t count) {
    for (int64_t i = 0; i < blocks_ * kBlock; i += W) {
      if (!any(I(load(x_ + i) == least_))) continue;
      for (int lane = 0; lane < W; ++lane) {
        if (x_[i + lane] != least_) continue;
        if (count > 0)
          --count;
        else
          x_[i + lane] = kNothing;
      }
    }
  }

  // Of what is kept; masses_ has each block's.
  uint64_t total_mass() {
    parallel_for_shrinking(blocks_, 8, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        Mass sums[2] = {};
        if (largest_[b] >= least_)
          for (int64_t i = b * kBlock; i < (b + 1) * kBlock; i += W) {
            const F x = load(x_ + i);
            if (!any(I(x >= least_))) continue;
            Mass some[2];
            masses_from(x, least_, max_, some);
            sums[0] += some[0];
            sums[1] += some[1];
          }
        uint64_t sum = 0;
        for (int lane = 0; lane < W / 2; ++lane) sum += sums[0][lane] + sums[1][lane];
        masses_[b] = sum;
      }
    });
    uint64_t total = 0;
    for (int64_t b = 0; b < blocks_; ++b) total += masses_[b];
    return total;
  }

  // The token in whose mass lies the point random / 2^64 of all, laid end to end by id.
  int32_t draw(uint64_t random) {
    const uint64_t total = total_mass();
    uint64_t rest = uint64_t((static_cast<unsigned __int128>(random) * total) >> 64);
    int64_t i = 0;
    for (int64_t b = 0; rest >= masses_[b]; rest -= masses_[b++]) i += kBlock;
    int64_t last = i;  // should the compiler have fused other multiplications here than in total_mass
    for (const int64_t end = i + kBlock; i < end; i += W) {
      Mass some[2];
      masses_from(load(x_ + i), least_, max_, some);
      for (int lane = 0; lane < W; ++lane) {
        const uint64_t mass = some[lane / (W / 2)][lane % (W / 2)];
        if (rest < mass) return int32_t(i + lane);
        if (mass > 0) last = i + lane;
        rest -= mass;
      }
    }
    return int32_t(last);
  }

  int64_t columns_, blocks_;
  float* x_;          // [blocks, kBlock]: the adjusted logits, -inf beyond the last
  float* largest_;    // [blocks]
  uint64_t* masses_;  // [blocks]
  uint64_t* histograms_;
  float max_ = 0;
  float least_ = 0;  // what is smaller is not kept
};

template <typename T>
void choose_rows(const SampleArgs& args) {
  Row row(args.N);
  for (int64_t b = 0; b < args.B; ++b) args.tokens[b] = row.choose<T>(args, b);
}

}  // namespace

void sample(DType type, const SampleArgs& args) { MLX_DELTA_DISPATCH(type, choose_rows, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

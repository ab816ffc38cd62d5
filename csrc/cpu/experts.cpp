// Tokens are sorted by their experts, so that each expert that any of them chose is read once for all of its tokens, by
// two pools of products: gate and up of all of these with SwiGLU, then down. What comes of them is weighted and added
// up in the order in which a token chose, so that other tokens change no bit of it.
#include "cpu/experts.h"

#include "cpu/qmm/products.h"
#include "cpu/runtime/threads.h"
#include "cpu/simd/rows.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

enum { kProductSlot = 2, kRowSlot = 6 };

// Tokens that go together: of a long prompt's, each expert gets a tile's rows or more of so many.
constexpr int64_t kTokens = 1024;

// Parts of one piece of scratch.
struct Parts {
  char* base;
  int64_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    char* at = base + used;
    used += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
};

template <typename T>
struct Tokens {
  const ExpertsArgs& args;
  const T* x;
  const uint32_t* chosen;
  const float* weights;
  T* y;
  int64_t M, pairs;
  int64_t I = args.experts[0].rows / args.E, shared_I = args.shared[0].rows;
  // Pairs of a token and an expert, sorted by expert; `place` of a pair is where it comes. Rows of x, and then of what
  // down reads, are in that order.
  int64_t* first;  // [E + 1], of each expert
  int32_t* place;  // [M, k], -1: no such expert
  T* rows;
  float* inner;
  float* shared_inner;
  float* products;
  float* shared_products;

  Tokens(const ExpertsArgs& a, int64_t from, int64_t count)
      : args(a),
        x(static_cast<const T*>(a.x) + from * a.K),
        chosen(a.chosen + from * a.k),
        weights(a.weights + from * (a.k + 1)),
        y(static_cast<T*>(a.y) + from * a.K),
        M(count),
        pairs(count * a.k) {
    Parts space{nullptr};
    place_in(space);
    Parts parts{scratch_of<char>(kRowSlot, space.used)};
    place_in(parts);
  }

  void place_in(Parts& parts) {
    first = parts.take<int64_t>(args.E + 1);
    place = parts.take<int32_t>(pairs);
    rows = parts.take<T>(M == 1 ? 0 : pairs * args.K);
    inner = parts.take<float>(pairs * I);
    shared_inner = parts.take<float>(M * shared_I);
    products = parts.take<float>(pairs * args.K);
    shared_products = parts.take<float>(M * args.K);
  }

  void sort() const {
    std::memset(first, 0, size_t(args.E + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < pairs; ++i)
      if (chosen[i] < args.E) ++first[chosen[i] + 1];
    for (int64_t e = 0; e < args.E; ++e) first[e + 1] += first[e];
    for (int64_t i = 0; i < pairs; ++i) place[i] = chosen[i] < args.E ? int32_t(first[chosen[i]]++) : -1;
    for (int64_t e = args.E; e > 0; --e) first[e] = first[e - 1];
    first[0] = 0;
    if (M == 1) return;  // all experts read the one row
    parallel_for(M, 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from * args.k; i < to * args.k; ++i)
        if (place[i] >= 0) std::memcpy(rows + place[i] * args.K, x + i / args.k * args.K, size_t(args.K) * sizeof(T));
    });
  }

  void multiply(DType type) const {
    auto* products_of =
        static_cast<QmmArgs*>(scratch(kProductSlot, size_t(least(pairs, args.E) + 1) * sizeof(QmmArgs)));
    const auto run = [&](DType type_of_x, const auto& product, const QmmArgs& shared_product) {
      int64_t count = 0;
      for (int64_t e = 0; e < args.E; ++e)
        if (first[e] < first[e + 1]) products_of[count++] = product(e, first[e], first[e + 1] - first[e]);
      products_of[count++] = shared_product;
      multiply_all(type_of_x, {products_of, count});
    };
    const auto gate_up = [&](const MatrixView& gate, const MatrixView& up, const T* in, float* out, int64_t count) {
      return QmmArgs{in,       args.norm, nullptr, out,        count, args.positions, args.K, gate.rows,
                     args.eps, true,      2,       {gate, up}, true};
    };
    // Where x is bfloat16 its fixed point is far closer than it is itself, so what comes of it is rounded to that
    // alone.
    const auto down = [&](const MatrixView& matrix, const float* in, float* out, int64_t count) {
      return QmmArgs{in,     nullptr,  nullptr, out, count,    args.positions, matrix.cols,
                     args.K, args.eps, false,   1,   {matrix}, true,           type == DType::bf16};
    };
    run(
        type,
        [&](int64_t e, int64_t at, int64_t count) {
          return gate_up(args.experts[0].part(e * I, I), args.experts[1].part(e * I, I),
                         M == 1 ? x : rows + at * args.K, inner + at * I, count);
        },
        gate_up(args.shared[0], args.shared[1], x, shared_inner, M));
    run(
        DType::f32,
        [&](int64_t e, int64_t at, int64_t count) {
          return down(args.experts[2].part(e * args.K, args.K), inner + at * I, products + at * args.K, count);
        },
        down(args.shared[2], shared_inner, shared_products, M));
  }

  void add_up() const {
    parallel_for(M, most<int64_t>(1, 65536 / (args.K * (args.k + 1))), [&](int64_t from, int64_t to) {
      for (int64_t m = from; m < to; ++m) {
        const float* of = weights + m * (args.k + 1);
        const auto vector = [&](auto full, int64_t c, int64_t left) __attribute__((always_inline)) {
          const auto read = [&](const auto* p) { return full ? load(p + c) : load_part(p + c, left); };
          F sum = read(x + m * args.K);
          for (int64_t i = 0; i < args.k; ++i) {
            const int32_t at = place[m * args.k + i];
            // A wrong expert must show: which there are is only known when the graph runs, too late to raise.
            sum += at < 0 ? splat(bits_as<float>(0x7fc00000u)) : of[i] * read(products + at * args.K);
          }
          sum += of[args.k] * read(shared_products + m * args.K);
          if constexpr (full)
            store(sum, y + m * args.K + c);
          else
            store_part(sum, y + m * args.K + c, left);
        };
        int64_t c = 0;
        for (; c + W <= args.K; c += W) vector(std::true_type{}, c, W);
        if (c < args.K) vector(std::false_type{}, c, args.K - c);
      }
    });
  }
};

template <typename T>
void run_tokens(const ExpertsArgs& args) {
  for (int64_t m = 0; m < args.M; m += kTokens) {
    const Tokens<T> tokens(args, m, least(kTokens, args.M - m));
    tokens.sort();
    tokens.multiply(dtype_of<T>());
    tokens.add_up();
  }
}

}  // namespace

void experts(DType type, const ExpertsArgs& args) { MLX_DELTA_DISPATCH(type, run_tokens, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

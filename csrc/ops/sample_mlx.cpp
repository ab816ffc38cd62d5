#include "ops/sample_mlx.h"

#include <cmath>
#include <limits>

#include "mlx/ops.h"

namespace mlx_delta {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int kBlock = 128;  // columns; 64 to 256 are alike for a vocabulary of 248k

// [B, N] -> [B, blocks, kBlock], with -inf at the end
mx::array blocked(const mx::array& x) {
  const int B = x.shape(0), N = x.shape(1), blocks = (N + kBlock - 1) / kBlock;
  const mx::array padded = mx::pad(x, {{0, 0}, {0, blocks * kBlock - N}}, mx::array(kNothing));
  return mx::reshape(padded, {B, blocks, kBlock});
}

mx::array adjusted(const mx::array& logits, const SampleFilters& filters, const SampleMasks& masks) {
  mx::array x = mx::astype(logits, mx::float32);
  x = mx::where(mx::isnan(x), mx::array(kNothing), x);
  if (filters.repetition_penalty != 1 && (masks.prompt || masks.generated)) {
    const mx::array p(filters.repetition_penalty);
    const mx::array seen = !masks.prompt     ? *masks.generated
                           : masks.generated ? mx::logical_or(*masks.prompt, *masks.generated)
                                             : *masks.prompt;
    x = mx::where(seen, mx::where(mx::greater(x, mx::array(0.0f)), mx::divide(x, p), mx::multiply(x, p)), x);
  }
  if (filters.presence_penalty != 0 && masks.generated)
    x = mx::where(*masks.generated, mx::subtract(x, mx::array(filters.presence_penalty)), x);
  if (masks.allowed) x = mx::where(*masks.allowed, x, mx::array(kNothing));
  return x;
}

// The k largest of each row, descending, ties by id: ids [B, k]. They lie in the k blocks of columns that have the
// largest maxima, so only those are sorted: MLX's partition of a row is a full sort on a GPU.
mx::array largest(const mx::array& x, int k) {
  const int B = x.shape(0);
  const mx::array blocks = blocked(x);
  const int count = std::min(k, blocks.shape(1));
  mx::array best = mx::argsort(mx::negative(mx::max(blocks, -1)), -1);
  best = mx::sort(mx::slice(best, {0, 0}, {B, count}), -1);  // ascending ids, so that the stable sort below keeps them
  const mx::array index = mx::astype(mx::reshape(best, {B, count, 1}), mx::int32);
  const mx::array values = mx::reshape(mx::take_along_axis(blocks, index, 1), {B, count * kBlock});
  const mx::array ids = mx::add(mx::multiply(index, mx::array(kBlock)), mx::arange(kBlock, mx::int32));
  const mx::array order = mx::slice(mx::argsort(mx::negative(values), -1), {0, 0}, {B, k});
  return mx::take_along_axis(mx::reshape(ids, {B, count * kBlock}), order, -1);
}

// x with -inf where top_k and top_p keep nothing.
mx::array most(const mx::array& x, const SampleFilters& filters) {
  const int N = x.shape(1);
  const bool by_count = filters.top_k > 0 && filters.top_k < N;
  if (!by_count && filters.top_p >= 1) return x;
  const mx::array ids = by_count ? largest(x, filters.top_k) : mx::argsort(mx::negative(x), -1);
  mx::array kept = mx::take_along_axis(x, ids, -1);
  if (filters.top_p < 1) {
    const mx::array masses = mx::exp(mx::subtract(kept, mx::max(kept, -1, true)));
    const mx::array limit = mx::multiply(mx::sum(masses, -1, true), mx::array(float(filters.top_p)));
    kept = mx::where(mx::less(mx::cumsum(masses, -1, false, false), limit), kept, mx::array(kNothing));
  }
  return mx::put_along_axis(mx::full(x.shape(), kNothing), ids, kept, -1);
}

// In float32, by 24 bits of random for the block of columns, and the other 40 to be finer within it.
mx::array draw(const mx::array& x, const mx::array& random) {
  const int B = x.shape(0);
  const auto scaled = [&](const mx::array& bits, float step) {
    return mx::multiply(mx::astype(bits, mx::float32), mx::array(step));
  };
  const mx::array words = mx::reshape(mx::view(random, mx::uint32), {B, 2});  // the low one first
  const mx::array low = mx::slice(words, {0, 0}, {B, 1}), high = mx::slice(words, {0, 1}, {B, 2});
  const mx::array coarse = scaled(mx::right_shift(high, mx::array(8u)), 0x1p-24f);
  const mx::array fine = mx::add(scaled(mx::bitwise_and(high, mx::array(255u)), 0x1p-32f), scaled(low, 0x1p-64f));

  const mx::array blocks = blocked(mx::subtract(x, mx::max(x, -1, true)));
  const mx::array parts = mx::exp(blocks);
  const mx::array sums = mx::sum(parts, -1), ends = mx::cumsum(sums, -1);
  const mx::array total = mx::slice(ends, {0, ends.shape(1) - 1}, {B, ends.shape(1)});
  const mx::array point = mx::multiply(coarse, total);
  // The first that ends beyond the point; should rounding leave none, the last that has any mass.
  const auto first_beyond = [](const mx::array& ends, const mx::array& sums, const mx::array& point) {
    const mx::array ids = mx::arange(ends.shape(1), mx::int32);
    const mx::array beyond = mx::logical_and(mx::greater(ends, point), mx::greater(sums, mx::array(0.0f)));
    const mx::array last = mx::max(mx::where(mx::greater(sums, mx::array(0.0f)), ids, mx::array(0)), -1, true);
    return mx::minimum(mx::min(mx::where(beyond, ids, mx::array(ends.shape(1))), -1, true), last);
  };
  const mx::array block = first_beyond(ends, sums, point);
  const mx::array before = mx::subtract(mx::take_along_axis(ends, block, -1), mx::take_along_axis(sums, block, -1));
  const mx::array part = mx::squeeze(mx::take_along_axis(parts, mx::reshape(block, {B, 1, 1}), 1), 1);
  const mx::array rest = mx::add(mx::subtract(point, before), mx::multiply(fine, total));
  const mx::array column = first_beyond(mx::cumsum(part, -1), part, rest);
  return mx::squeeze(mx::add(mx::multiply(block, mx::array(kBlock)), column), 1);
}

}  // namespace

mx::array sample_mlx(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
                     const SampleMasks& masks, std::optional<int> vocab_size, mx::StreamOrDevice stream) {
  const mx::StreamContext on(mx::to_stream(stream));
  const int N = vocab_size.value_or(logits.shape(1));
  mx::array x = adjusted(mx::slice(logits, {0, 0}, {logits.shape(0), N}), filters, masks);
  if (!random) return mx::astype(mx::argmax(x, -1), mx::int32);
  x = most(mx::divide(x, mx::array(filters.temperature)), filters);
  if (filters.min_p > 0) {
    const mx::array least = mx::add(mx::max(x, -1, true), mx::array(float(std::log(filters.min_p))));
    x = mx::where(mx::greater_equal(x, least), x, mx::array(kNothing));
  }
  return draw(x, *random);
}

}  // namespace mlx_delta

// sample: the next token of each row of logits, chosen by 64 random bits a row.
//
//   logits [B, V], of which the first N = vocab_size columns are tokens; random: uint64 [B] -> tokens int32 [B]
//
//   x = logits, in float32
//   x = x / repetition_penalty if x > 0, else x * repetition_penalty     where prompt | generated
//   x = x - presence_penalty                                             where generated
//   x = -inf                                                             where not allowed
//   x = x / temperature
//   keep, in the order of descending x, ascending id:
//     the first top_k                                                    0: all
//     those before which lies less than top_p of the mass of exp(x)      1: all; of what top_k kept
//     those with x >= max(x) + log(min_p)                                0: all
//   token = the one in whose part of the mass lies the point random / 2^64, parts laid end to end by ascending id
//
// Without random: the first token of the order. Masks are bool, [B, N] or [1, N] for all rows. A row that has nothing
// but -inf gives token 0, one that has a NaN token -1, whatever the masks.
#include "cpu/sample.h"

#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "gpu/plans/sample.h"
#include "mlx/ops.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "sample";
constexpr int kMaxVocabulary = 1 << 20;  // masses are summed in 64 bits (cpu/sample.cpp)

struct SampleFilters {
  float temperature;
  int top_k;
  double top_p, min_p;
  float presence_penalty, repetition_penalty;
};

struct SampleMasks {
  std::optional<mx::array> allowed, prompt, generated;
};

class Sample : public Primitive {
 public:
  Sample(mx::Stream stream, const SampleFilters& filters, int N, int random, int allowed, int prompt, int generated)
      : Primitive(kOp, stream),
        filters_(filters),
        N_(N),
        random_(random),
        allowed_(allowed),
        prompt_(prompt),
        generated_(generated) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& logits = inputs[0];
    allocate(outputs[0]);
    const auto stride = [&](int index) -> int64_t { return index < 0 || inputs[size_t(index)].shape(0) == 1 ? 0 : N_; };
    const cpu::SampleArgs args{logits.data<void>(),
                               data_or_null<uint64_t>(inputs, random_),
                               data_or_null<bool>(inputs, allowed_),
                               data_or_null<bool>(inputs, prompt_),
                               data_or_null<bool>(inputs, generated_),
                               outputs[0].data<int32_t>(),
                               logits.shape(0),
                               logits.shape(1),
                               N_,
                               stride(allowed_),
                               stride(prompt_),
                               stride(generated_),
                               filters_.top_k,
                               filters_.top_p,
                               float(std::log(filters_.min_p)),
                               random_ < 0 ? 1.0f : filters_.temperature,
                               filters_.presence_penalty,
                               filters_.repetition_penalty};
    run_kernel(stream(), cpu::kernels().sample, logits.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array& logits = inputs[0];
    const auto stride = [&](int index) { return index < 0 || inputs[size_t(index)].shape(0) == 1 ? 0 : N_; };
    return gpu::plan(gpu::SampleShape{metal_type(logits.dtype()), logits.shape(0), logits.shape(1), N_, random_,
                                      allowed_, prompt_, generated_, stride(allowed_), stride(prompt_),
                                      stride(generated_), filters_.temperature, filters_.presence_penalty,
                                      filters_.repetition_penalty, filters_.top_k, filters_.top_p, filters_.min_p});
  }

 private:
  SampleFilters filters_;
  int N_, random_, allowed_, prompt_, generated_;  // indices of inputs, -1 if absent
};

void check_filters(const SampleFilters& filters) {
  const auto check = [](const char* name, double value, bool ok, const char* expected) {
    if (!ok) fail(kOp, name, expected, std::to_string(value));
  };
  check_positive(kOp, "temperature", filters.temperature);
  check("top_k", filters.top_k, filters.top_k >= 0, "0 or more");
  check("top_p", filters.top_p, filters.top_p > 0 && filters.top_p <= 1, "above 0, at most 1");
  check("min_p", filters.min_p, filters.min_p >= 0 && filters.min_p <= 1, "0 to 1");
  check("presence_penalty", filters.presence_penalty, std::isfinite(filters.presence_penalty), "a finite number");
  check_positive(kOp, "repetition_penalty", filters.repetition_penalty);
}

int check_logits(const mx::array& logits, std::optional<int> vocab_size) {
  check_float(kOp, "logits", logits);
  check_rank(kOp, "logits", logits, 2, "[B, V]");
  const int V = logits.shape(1), N = vocab_size.value_or(V);
  if (N < 1 || N > V) fail(kOp, "vocab_size", "1 to " + std::to_string(V), std::to_string(N));
  if (N > kMaxVocabulary)
    fail(kOp, "vocab_size", "at most " + std::to_string(kMaxVocabulary) + " tokens", std::to_string(N));
  return N;
}

void check_mask(const char* name, const std::optional<mx::array>& mask, int B, int N) {
  if (!mask) return;
  check_shape(kOp, name, *mask, {mask->ndim() == 2 && mask->shape(0) == 1 ? 1 : B, N});
  check_same_dtype(kOp, name, *mask, mx::bool_);
}

// The arguments, checked: how many columns are tokens.
int check(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
          const SampleMasks& masks, std::optional<int> vocab_size) {
  const int N = check_logits(logits, vocab_size), B = logits.shape(0);
  check_filters(filters);
  check_mask("allowed", masks.allowed, B, N);
  check_mask("prompt", masks.prompt, B, N);
  check_mask("generated", masks.generated, B, N);
  if (random) {
    check_shape(kOp, "random", *random, {B});
    check_same_dtype(kOp, "random", *random, mx::uint64);
  }
  return N;
}

mx::array sample(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
                 const SampleMasks& masks, std::optional<int> vocab_size, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  const int N = check(logits, random, filters, masks, vocab_size);
  std::vector<mx::array> inputs{contiguous(logits, s)};
  const auto push = [&](const std::optional<mx::array>& a) {
    return a ? push_optional(inputs, contiguous(*a, s)) : -1;
  };
  const int random_index = push(random);
  const int allowed = push(masks.allowed), prompt = push(masks.prompt), generated = push(masks.generated);
  return mx::array({logits.shape(0)}, mx::int32,
                   std::make_shared<Sample>(s, filters, N, random_index, allowed, prompt, generated),
                   std::move(inputs));
}

const Binding binding([](nb::module_& m) {
  m.def(
      kOp,
      [](const mx::array& logits, const std::optional<mx::array>& random, float temperature, int top_k, double top_p,
         double min_p, const std::optional<mx::array>& allowed, const std::optional<mx::array>& prompt,
         const std::optional<mx::array>& generated, float presence_penalty, float repetition_penalty,
         std::optional<int> vocab_size, mx::StreamOrDevice stream) {
        const SampleFilters filters{temperature, top_k, top_p, min_p, presence_penalty, repetition_penalty};
        return sample(logits, random, filters, {allowed, prompt, generated}, vocab_size, stream);
      },
      "logits"_a, "random"_a = nb::none(), nb::kw_only(), "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0,
      "min_p"_a = 0.0, "allowed"_a = nb::none(), "prompt"_a = nb::none(), "generated"_a = nb::none(),
      "presence_penalty"_a = 0.0f, "repetition_penalty"_a = 1.0f, "vocab_size"_a = nb::none(), "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

// delta_mixer: everything between the two projections of a gated-delta layer, for decoding (T small).
//
//   projection = [q | k | v | z | b | a]                     [B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv]
//   q, k, v = conv1d([q | k | v])                            as ops/conv1d.cpp
//   y = gated_delta(q, k, v, a, b)                           as ops/gated_delta.cpp, token by token
//   y = norm * y * rsqrt(mean(y^2) + eps) * silu(z)          per value head
//
// Returns y [B, T, Hv Dv] and the new conv state [B, 3, C] and delta state float32 [B, Hv, Dv, Dk], both updated in
// place where possible; C = 2 Hk Dk + Hv Dv. projection, conv state and y: one float dtype; nothing between is rounded.
// mask [B, T]: a token whose mask is false is not there: it leaves both states alone, its y is 0.
//
// For tokens that may be taken back (speculation): with keep = false the states returned are those before them. Which
// ones count is known later; their projections come again as `pending` [B, P, ..] of the next call, which takes the
// states through them first. So states are read and written once a call, however many tokens come, and no copy of them
// is made; bit for bit they are what those tokens alone leave.
//
// delta_mixer_rows: the same of several sequences, each with states of its own, whose tokens are rows of one
// projection.
#include "cpu/delta_mixer.h"

#include <algorithm>

#include "cpu/conv1d.h"
#include "cpu/kernels.h"
#include "gpu/plans/delta_mixer.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/delta_inputs.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "delta_mixer";

// Of one part, or of several with one sequence each.
class DeltaMixer : public Primitive {
 public:
  using Part = gpu::DeltaMixerPart;
  DeltaMixer(mx::Stream stream, std::vector<Part> parts, int key_heads, int mask, float eps)
      : Primitive(kOp, stream), parts_(std::move(parts)), Hk_(key_heads), mask_(mask), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    allocate(outputs[0]);
    std::vector<int> states;
    for (size_t i = 0; i < parts_.size(); ++i)
      for (const int state : {0, 1}) {
        states.push_back(int(1 + i + size_t(state) * parts_.size()));
        donate_or_copy(inputs[size_t(parts_[i].states + state)], outputs[size_t(states.back())], stream());
      }
    for (size_t first = 0; first < parts_.size(); first += cpu::kMixerParts) {
      const size_t last = std::min(first + cpu::kMixerParts, parts_.size());
      run_kernel(stream(), cpu::kernels().delta_mixer, outputs[0].dtype(), arguments(inputs, outputs, first, last));
    }
    note_states(inputs, outputs, {}, states, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const mx::array& delta = inputs[size_t(parts_.front().states + 1)];
    return gpu::plan(gpu::DeltaMixerShape{metal_type(inputs[0].dtype()), Hk_, delta.shape(1), delta.shape(3),
                                          delta.shape(2), eps_, mask_, parts_});
  }

 private:
  // The call of the CPU kernel for the parts [first, last).
  cpu::DeltaMixerArgs arguments(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, size_t first,
                                size_t last) const {
    const mx::array& delta = outputs.back();
    cpu::DeltaMixerArgs args{inputs[0].data<void>(),
                             inputs[1].data<float>(),
                             inputs[2].data<float>(),
                             inputs[3].data<float>(),
                             inputs[4].data<float>(),
                             data_or_null<bool>(inputs, mask_),
                             outputs[0].data<void>(),
                             Hk_,
                             delta.shape(1),
                             delta.shape(3),
                             delta.shape(2),
                             int64_t(last - first),
                             {},
                             eps_};
    for (size_t i = first; i < last; ++i) {
      const Part& part = parts_[i];
      void* conv = outputs[1 + i].data<void>();
      args.part[i - first] = {data_or_null<void>(inputs, part.pending),
                              conv,
                              conv,
                              outputs[1 + parts_.size() + i].data<float>(),
                              part.first,
                              part.B,
                              part.P,
                              part.T,
                              part.keep};
    }
    return args;
  }

  std::vector<Part> parts_;
  int Hk_;
  int mask_;  // index of the input, or -1
  float eps_;
};

// What all sequences share, checked: the first inputs of the primitive.
struct Mixer {
  Mixer(const mx::array& projection, const mx::array& conv_weight, const mx::array& A_log, const mx::array& dt_bias,
        const mx::array& norm, int key_heads, int key_dim, float eps, mx::StreamOrDevice where)
      : stream(mx::to_stream(where)), dtype(projection.dtype()), Hk(key_heads), Dk(key_dim) {
    check_float(kOp, "projection", projection);
    check_rank(kOp, "projection", projection, 3, "[B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv]");
    check_rank(kOp, "A_log", A_log, 1, "[Hv]");
    check_rank(kOp, "norm", norm, 1, "[Dv]");
    check_float(kOp, "norm", norm);
    check_positive(kOp, "key_dim", key_dim);
    check_positive(kOp, "eps", eps);
    Hv = A_log.shape(0);
    Dv = norm.shape(0);
    check_delta_heads(kOp, key_heads, Hv, A_log, dt_bias);
    C = 2 * key_heads * key_dim + Hv * Dv;
    width = C + Hv * Dv + 2 * Hv;
    check_shape(kOp, "projection", projection, {projection.shape(0), projection.shape(1), width});
    if (on_gpu(stream)) gpu::check_head_dims(kOp, {key_dim, Dv});
    inputs = {contiguous(projection, stream), conv_taps(kOp, conv_weight, C, stream), float_parameter(A_log, stream),
              float_parameter(dt_bias, stream), float_parameter(norm, stream)};
  }

  // Adds a part's states, which may be none yet, and its pending tokens.
  void add(int first, int B, int T, const std::optional<mx::array>& conv, const std::optional<mx::array>& delta,
           const std::optional<mx::array>& pending, bool keep) {
    const int states = int(inputs.size());
    inputs.push_back(conv_state(kOp, conv, B, C, dtype, stream));
    inputs.push_back(delta_state(kOp, delta, B, Hv, Dv, Dk, stream));
    int index = -1;
    if (pending) {
      check_rank(kOp, "pending", *pending, 3, "[B, P, 2 Hk Dk + 2 Hv Dv + 2 Hv]");
      check_shape(kOp, "pending", *pending, {B, pending->shape(1), width});
      check_same_dtype(kOp, "pending", *pending, dtype);
      index = push_optional(inputs, contiguous(*pending, stream));
    }
    parts.push_back({first, B, T, pending ? pending->shape(1) : 0, keep, states, index});
  }

  // y, each part's conv state, each part's delta state.
  std::vector<mx::array> results(int mask, float eps) {
    std::vector<mx::Shape> shapes{{inputs[0].shape(0), inputs[0].shape(1), Hv * Dv}};
    std::vector<mx::Dtype> dtypes(1 + parts.size(), dtype);
    dtypes.resize(1 + 2 * parts.size(), mx::float32);
    for (const DeltaMixer::Part& part : parts) shapes.push_back({part.B, cpu::kConvState, C});
    for (const DeltaMixer::Part& part : parts) shapes.push_back({part.B, Hv, Dv, Dk});
    auto primitive = std::make_shared<DeltaMixer>(stream, std::move(parts), Hk, mask, eps);
    return mx::array::make_arrays(std::move(shapes), dtypes, primitive, inputs);
  }

  mx::Stream stream;
  mx::Dtype dtype;
  int Hk, Hv, Dk, Dv, C, width;
  std::vector<mx::array> inputs;
  std::vector<DeltaMixer::Part> parts;
};

std::tuple<mx::array, mx::array, mx::array> delta_mixer(const mx::array& projection, const mx::array& conv_weight,
                                                        const mx::array& A_log, const mx::array& dt_bias,
                                                        const mx::array& norm, const std::optional<mx::array>& conv,
                                                        const std::optional<mx::array>& delta, int key_heads,
                                                        int key_dim, float eps, const std::optional<mx::array>& mask,
                                                        const std::optional<mx::array>& pending, bool keep,
                                                        mx::StreamOrDevice stream) {
  Mixer mixer(projection, conv_weight, A_log, dt_bias, norm, key_heads, key_dim, eps, stream);
  const int B = projection.shape(0), T = projection.shape(1);
  mixer.add(0, B, T, conv, delta, pending, keep);
  int mask_index = -1;
  if (mask) mask_index = push_optional(mixer.inputs, token_mask(kOp, *mask, B, T, mixer.stream));
  const auto out = mixer.results(mask_index, eps);
  return {out[0], out[1], out[2]};
}

using States = std::vector<std::optional<mx::array>>;

std::tuple<mx::array, std::vector<mx::array>, std::vector<mx::array>> delta_mixer_rows(
    const mx::array& projection, const mx::array& conv_weight, const mx::array& A_log, const mx::array& dt_bias,
    const mx::array& norm, const States& conv, const States& delta, int key_heads, int key_dim, float eps,
    const std::optional<std::vector<int>>& counts, const std::optional<States>& pending,
    const std::optional<std::vector<bool>>& keep, mx::StreamOrDevice stream) {
  Mixer mixer(projection, conv_weight, A_log, dt_bias, norm, key_heads, key_dim, eps, stream);
  const int R = projection.shape(0);
  check_shape(kOp, "projection", projection, {R, 1, mixer.width});
  const auto check_length = [&](const char* name, size_t length) {
    if (length != conv.size() || length == 0)
      fail(kOp, name, "one for each of " + std::to_string(conv.size()) + " sequences, at least one",
           std::to_string(length));
  };
  check_length("delta_states", delta.size());
  if (counts) check_length("counts", counts->size());
  if (pending) check_length("pending", pending->size());
  if (keep) check_length("keep", keep->size());
  int64_t rows = counts ? 0 : int64_t(conv.size());  // wider than counts, whose sum may be anything
  for (const int count : counts.value_or(std::vector<int>{})) {
    check_positive(kOp, "counts", count);
    rows += count;
  }
  if (rows != R) fail(kOp, "counts", "tokens of all " + std::to_string(R) + " rows", std::to_string(rows));
  int first = 0;
  for (size_t i = 0; i < conv.size(); ++i) {
    const int count = counts ? (*counts)[i] : 1;
    mixer.add(first, 1, count, conv[i], delta[i], pending ? (*pending)[i] : std::nullopt, keep ? (*keep)[i] : true);
    first += count;
  }
  const auto out = mixer.results(-1, eps);
  const auto deltas = out.begin() + 1 + long(conv.size());
  return {out[0], {out.begin() + 1, deltas}, {deltas, out.end()}};
}

const Binding binding([](nb::module_& m) {
  m.def("delta_mixer", &delta_mixer, "projection"_a, "conv_weight"_a, "A_log"_a, "dt_bias"_a, "norm"_a,
        "conv_state"_a.none(), "delta_state"_a.none(), nb::kw_only(), "key_heads"_a, "key_dim"_a, "eps"_a = 1e-6,
        "mask"_a = nb::none(), "pending"_a = nb::none(), "keep"_a = true, "stream"_a = nb::none());
  m.def("delta_mixer_rows", &delta_mixer_rows, "projection"_a, "conv_weight"_a, "A_log"_a, "dt_bias"_a, "norm"_a,
        "conv_states"_a, "delta_states"_a, nb::kw_only(), "key_heads"_a, "key_dim"_a, "eps"_a = 1e-6,
        "counts"_a = nb::none(), "pending"_a = nb::none(), "keep"_a = nb::none(), "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

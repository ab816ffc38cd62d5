// attention_rows: attention_prepare and attention of several sequences, each with keys and values of its own, whose
// tokens are rows of one projection.
//
//   q, keys[i], values[i] = attention_prepare(projection[r], .., keys[i], values[i], offset = offsets[i])
//   y[r] = attention(q, projection[r], keys[i], values[i], length = offsets[i] + counts[i])
//                                                                                 r: the counts[i] rows of sequence i
//
// Every row has the bits of that row alone, as the next token of its sequence. Keys and values are updated in place
// where possible, each array by itself; the query never leaves the op. One float dtype.
#include "cpu/attention_rows.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "gpu/plans/attention_rows.h"
#include "ops/attention_inputs.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/donation.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/kv_rows.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "attention_rows";

// Inputs: projection, q_norm, k_norm, each part's keys, each part's values [, positions].
class AttentionRows : public Primitive {
 public:
  using Part = gpu::AttentionRowsPart;
  AttentionRows(mx::Stream stream, std::vector<Part> parts, AttentionHeads heads, int positions, Rope rope, float eps,
                float scale)
      : Primitive(kOp, stream),
        parts_(std::move(parts)),
        heads_(heads),
        positions_(positions),
        rope_(rope),
        eps_(eps),
        scale_(scale) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    release_sibling_inputs(inputs, outputs);
    allocate(outputs[0]);
    std::vector<int> states;
    for (size_t i = 1; i <= 2 * parts_.size(); ++i) {
      states.push_back(int(i));
      donate_or_copy(inputs[2 + i], outputs[i], stream());
    }
    for (size_t first = 0; first < parts_.size(); first += cpu::kKvParts) {
      const size_t last = std::min(first + cpu::kKvParts, parts_.size());
      run_kernel(stream(), cpu::kernels().attention_rows, outputs[0].dtype(), arguments(inputs, outputs, first, last));
    }
    note_states(inputs, outputs, {}, states, stream());
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    return gpu::plan(gpu::AttentionRowsShape{metal_type(inputs[0].dtype()), in_eight_bits(inputs[3]), heads_.Hq,
                                             heads_.Hkv, heads_.D, inputs[0].shape(0), rope_.theta, rope_.dim,
                                             rope_.sections, eps_, scale_, positions_, parts_});
  }

 private:
  // The call of the CPU kernel for the parts [first, last).
  cpu::AttentionRowsArgs arguments(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, size_t first,
                                   size_t last) const {
    const int64_t parts = int64_t(last - first), rows = inputs[0].shape(0);
    cpu::AttentionRowsArgs args{{inputs[0].data<void>(),
                                 inputs[1].data<float>(),
                                 inputs[2].data<float>(),
                                 data_or_null<int32_t>(inputs, positions_),
                                 nullptr,
                                 heads_.Hq,
                                 heads_.Hkv,
                                 heads_.D,
                                 rows,
                                 rope_.dim,
                                 {rope_.sections[0], rope_.sections[1], rope_.sections[2]},
                                 rope_.theta,
                                 eps_,
                                 in_eight_bits(inputs[3]),
                                 parts,
                                 {}},
                                {nullptr,
                                 inputs[0].data<void>(),
                                 nullptr,
                                 outputs[0].data<void>(),
                                 heads_.Hq,
                                 heads_.Hkv,
                                 heads_.D,
                                 inputs[0].shape(2),
                                 scale_,
                                 in_eight_bits(inputs[3]),
                                 true,
                                 parts,
                                 {}}};
    for (size_t i = first; i < last; ++i) {
      const Part& part = parts_[i];
      args.prepare.part[i - first] = {outputs[1 + i].data<void>(),
                                      outputs[1 + parts_.size() + i].data<void>(),
                                      part.first,
                                      1,
                                      part.T,
                                      part.S,
                                      part.offset};
      args.attention.part[i - first] = args.prepare.part[i - first];
    }
    return args;
  }

  std::vector<Part> parts_;
  AttentionHeads heads_;
  int positions_;  // index of the input, or -1
  Rope rope_;
  float eps_;
  float scale_;
};

using Arrays = std::vector<mx::array>;

std::tuple<mx::array, Arrays, Arrays> attention_rows(const mx::array& projection, const mx::array& q_norm,
                                                     const mx::array& k_norm, const Arrays& keys, const Arrays& values,
                                                     const std::vector<int>& offsets, const Rope& rope, float eps,
                                                     float scale, const std::optional<std::vector<int>>& counts,
                                                     const std::optional<mx::array>& positions,
                                                     mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  const auto check_length = [&](const char* name, size_t length) {
    if (length != keys.size() || length == 0)
      fail(kOp, name, "one for each of " + std::to_string(keys.size()) + " sequences, at least one",
           std::to_string(length));
  };
  check_length("values", values.size());
  check_length("offsets", offsets.size());
  if (counts) check_length("counts", counts->size());
  const AttentionHeads heads = attention_heads(kOp, projection, q_norm, k_norm, keys[0], rope, eps, s);
  const int R = projection.shape(0);
  check_shape(kOp, "projection", projection, {R, 1, projection.shape(2)});
  check_positive(kOp, "scale", scale);
  int64_t rows = counts ? 0 : int64_t(keys.size());  // wider than counts, whose sum may be anything
  for (const int count : counts.value_or(std::vector<int>{})) {
    check_positive(kOp, "counts", count);
    rows += count;
  }
  if (rows != R) fail(kOp, "counts", "tokens of all " + std::to_string(R) + " rows", std::to_string(rows));

  Arrays inputs{contiguous(projection, s), float_parameter(q_norm, s), float_parameter(k_norm, s)};
  std::vector<AttentionRows::Part> parts;
  int first = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const int count = counts ? (*counts)[i] : 1;
    check_room(kOp, keys[i], values[i], heads, projection.dtype(), 1, count, offsets[i], "offsets");
    check_same_dtype(kOp, "keys", keys[i], keys[0].dtype());
    check_shape(kOp, "keys", keys[i], {1, heads.Hkv, -1, -1});
    parts.push_back({first, count, offsets[i], keys[i].shape(2)});
    first += count;
  }
  for (const Arrays* cached : {&keys, &values})
    for (const mx::array& each : *cached) inputs.push_back(contiguous(each, s));
  int positions_index = -1;
  if (positions) positions_index = push_optional(inputs, position_axes(kOp, *positions, {R}, s));

  std::vector<mx::Shape> shapes{{R, 1, heads.Hq * heads.D}};
  std::vector<mx::Dtype> dtypes{projection.dtype()};
  for (size_t i = 3; i < 3 + 2 * keys.size(); ++i) {
    shapes.push_back(inputs[i].shape());
    dtypes.push_back(inputs[i].dtype());
  }
  const auto out = mx::array::make_arrays(
      std::move(shapes), dtypes,
      std::make_shared<AttentionRows>(s, std::move(parts), heads, positions_index, rope, eps, scale), inputs);
  const auto middle = out.begin() + 1 + long(keys.size());
  return {out[0], {out.begin() + 1, middle}, {middle, out.end()}};
}

const Binding binding([](nb::module_& m) {
  m.def(
      "attention_rows",
      [](const mx::array& projection, const mx::array& q_norm, const mx::array& k_norm, const Arrays& keys,
         const Arrays& values, const std::vector<int>& offsets, float rope_theta, int rope_dim,
         std::tuple<int, int, int> rope_sections, float scale, float eps, const std::optional<std::vector<int>>& counts,
         const std::optional<mx::array>& positions, mx::StreamOrDevice stream) {
        const auto [t, h, w] = rope_sections;
        return attention_rows(projection, q_norm, k_norm, keys, values, offsets, {rope_theta, rope_dim, {t, h, w}}, eps,
                              scale, counts, positions, stream);
      },
      "projection"_a, "q_norm"_a, "k_norm"_a, "keys"_a, "values"_a, nb::kw_only(), "offsets"_a, "rope_theta"_a,
      "rope_dim"_a, "rope_sections"_a, "scale"_a, "eps"_a = 1e-6, "counts"_a = nb::none(), "positions"_a = nb::none(),
      "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

// qmm: x times one or more row-concatenated weight matrices, with the work around it fused in.
//
//   h = norm ? x * rsqrt(mean(x^2) + eps) * norm : x                         [.., K]
//   y = concat_s(h @ W_s^T)                                                  [.., N]   N = sum of the rows
//   y = silu(h @ W_0^T) * (h @ W_1^T)      with activation = "swiglu"        [.., N]   segments = {gate, up}
//   y = y + residual                       with residual                     [.., N]
//
// x: float32, float16 or bfloat16; so are y and residual. Segments may differ in width and dtype. Sums are float32;
// x is never rounded. A row of y has the same bits whatever the number of rows of x.
#include "cpu/qmm.h"

#include "cpu/kernels.h"
#include "decode_tokens.h"
#include "gpu/plans/qmm.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/matrix.h"
#include "ops/primitive.h"
#include "ops/qmm_mlx.h"
#include "ops/qmm_segment.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "qmm";

class Qmm : public Primitive {
 public:
  Qmm(mx::Stream stream, std::vector<Matrix> segments, int norm, int residual, int first_segment, float eps,
      bool swiglu)
      : Primitive(kOp, stream),
        segments_(std::move(segments)),
        norm_(norm),
        residual_(residual),
        first_segment_(first_segment),
        eps_(eps),
        swiglu_(swiglu) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& x = inputs[0];
    mx::array& y = outputs[0];
    allocate(y);
    const int64_t K = x.shape(-1), N = y.shape(-1);
    cpu::QmmArgs args{x.data<void>(),
                      data_or_null<float>(inputs, norm_),
                      data_or_null<void>(inputs, residual_),
                      y.data<void>(),
                      int64_t(x.size()) / K,
                      x.ndim() > 1 ? x.shape(-2) : 1,
                      K,
                      N,
                      eps_,
                      swiglu_,
                      int(segments_.size()),
                      {}};
    const mx::array* next = inputs.data() + first_segment_;
    for (size_t s = 0; s < segments_.size(); next += segments_[s].input_count(), ++s)
      args.segments[s] = segments_[s].view(next);
    run_kernel(stream(), cpu::kernels().qmm, x.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::array& x = inputs[0];
    const int K = x.shape(-1), N = outputs[0].shape(-1);
    gpu::QmmShape shape{metal_type(x.dtype()), int(x.size()) / K, K, N, eps_, swiglu_, norm_, residual_, {}};
    int next = first_segment_;
    for (const Matrix& segment : segments_) shape.segments.push_back(qmm_segment(segment, next));
    return gpu::plan(shape);
  }

 private:
  std::vector<Matrix> segments_;
  int norm_, residual_, first_segment_;  // indices of inputs, -1 if absent
  float eps_;
  bool swiglu_;
};

int output_columns(const std::vector<Matrix>& segments, int K, bool swiglu) {
  if (segments.empty() || segments.size() > cpu::kMaxSegments)
    fail(kOp, "segments", "1 to " + std::to_string(cpu::kMaxSegments) + " matrices", std::to_string(segments.size()));
  int columns = 0;
  for (const Matrix& segment : segments) {
    if (segment.cols != K) fail(kOp, "segments", "K = " + std::to_string(K) + " columns as x has", segment.repr());
    columns += segment.rows;
  }
  if (!swiglu) return columns;
  if (segments.size() != 2 || segments[0].rows != segments[1].rows)
    fail(kOp, "segments", "a gate and an up matrix with as many rows each for swiglu",
         std::to_string(segments.size()) + " matrices, " + segments.front().repr() + " first");
  return segments[0].rows;
}

mx::array qmm(const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm, float eps,
              const std::optional<mx::array>& residual, const std::optional<std::string>& activation,
              mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "x", x);
  if (x.ndim() == 0 || x.size() == 0) fail(kOp, "x", "non-empty [.., K]", describe(x));
  if (activation && *activation != "swiglu") fail(kOp, "activation", "'swiglu' or None", "'" + *activation + "'");
  const bool swiglu = activation.has_value();
  const int K = x.shape(-1);
  mx::Shape shape = x.shape();
  shape.back() = output_columns(segments, K, swiglu);

  if (norm) {
    check_shape(kOp, "norm", *norm, {K});
    check_float(kOp, "norm", *norm);
    check_positive(kOp, "eps", eps);
  }
  if (residual) {
    check_shape(kOp, "residual", *residual, shape);
    check_same_dtype(kOp, "residual", *residual, x.dtype());
  }
  const bool kernel = int(x.size()) / K <= kDecodeTokens && segments.size() <= gpu::kMaxQmmSegments;
  if (on_gpu(s) && !kernel) return qmm_mlx(x, segments, norm, eps, residual, swiglu, s);

  std::vector<mx::array> inputs{contiguous(x, s)};
  int norm_index = -1, residual_index = -1;
  if (norm) norm_index = push_optional(inputs, float_parameter(*norm, s));
  if (residual) residual_index = push_optional(inputs, contiguous(*residual, s));
  const int first_segment = int(inputs.size());
  for (const Matrix& segment : segments)
    for (mx::array& input : segment.inputs(s)) inputs.push_back(std::move(input));
  return mx::array(shape, x.dtype(),
                   std::make_shared<Qmm>(s, segments, norm_index, residual_index, first_segment, eps, swiglu),
                   std::move(inputs));
}

const Binding binding([](nb::module_& m) {
  m.def("qmm", &qmm, "x"_a, "segments"_a, nb::kw_only(), "norm"_a = nb::none(), "eps"_a = 1e-6,
        "residual"_a = nb::none(), "activation"_a = nb::none(), "stream"_a = nb::none());
  m.def(
      "set_qmm_variant", [](int rows, int simdgroups) { gpu::set_qmm_variant({rows, simdgroups}); }, "rows"_a,
      "simdgroups"_a,
      "For comparing: in place of what qmm's plan chooses for a Metal kernel, rows of weights of a simdgroup and\n"
      "simdgroups of a threadgroup; 0: as it chooses. A plan that the kernel cannot follow raises ValueError.");
  m.def(
      "qmm_mlx",
      [](const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm, float eps,
         const std::optional<mx::array>& residual, const std::optional<std::string>& activation,
         mx::StreamOrDevice stream) {
        return qmm_mlx(x, segments, norm, eps, residual, activation.has_value(), mx::to_stream(stream));
      },
      "x"_a, "segments"_a, nb::kw_only(), "norm"_a = nb::none(), "eps"_a = 1e-6, "residual"_a = nb::none(),
      "activation"_a = nb::none(), "stream"_a = nb::none(), "For tests: what qmm of many rows is on a GPU, anywhere.");
});

}  // namespace
}  // namespace mlx_delta

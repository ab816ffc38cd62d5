// experts: the MLPs that each token was routed to and the shared one, weighted and added to it.
//
//   h    = x * rsqrt(mean(x^2) + eps) * norm                                                     [.., K]
//   a_e  = silu(h @ gate_e^T) * (h @ up_e^T)                                                     [.., I]
//   y    = x + sum_i weights_i * a_e(i) @ down_e(i)^T + weights_k * a_shared @ down_shared^T     [.., K]
//
// e(i) = chosen_i, for i < k. x: float32, float16 or bfloat16; so is y. The experts of a kind lie one below the other:
// gate, up [E * I, K], down [E * K, I]. Sums, and the a, are float32. A row of y has the same bits whatever the number
// of rows of x. Where chosen_i is no expert, y is NaN.
#include "cpu/experts.h"

#include "cpu/kernels.h"
#include "gpu/plans/experts.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/experts_mlx.h"
#include "ops/inputs.h"
#include "ops/matrix.h"
#include "ops/primitive.h"
#include "ops/qmm_segment.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "experts";
constexpr int kMatrices = 3;  // gate, up, down

gpu::ExpertsShape shape_of(const mx::array& x, const mx::array& chosen, const std::vector<Matrix>& matrices,
                           int experts, float eps) {
  const int K = x.shape(-1);
  gpu::ExpertsShape shape{metal_type(x.dtype()), int(x.size()) / K, K, chosen.shape(-1), experts, eps, {}, {}};
  int next = 4;
  for (int i = 0; i < 2 * kMatrices; ++i)
    (i < kMatrices ? shape.matrices[i] : shape.shared[i - kMatrices]) = qmm_segment(matrices[size_t(i)], next);
  return shape;
}

class Experts : public Primitive {
 public:
  Experts(mx::Stream stream, std::vector<Matrix> matrices, int experts, float eps)
      : Primitive(kOp, stream), matrices_(std::move(matrices)), experts_(experts), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& x = inputs[0];
    allocate(outputs[0]);
    const int64_t K = x.shape(-1);
    cpu::ExpertsArgs args{x.data<void>(),
                          inputs[1].data<uint32_t>(),
                          inputs[2].data<float>(),
                          inputs[3].data<float>(),
                          outputs[0].data<void>(),
                          int64_t(x.size()) / K,
                          x.ndim() > 1 ? x.shape(-2) : 1,
                          K,
                          inputs[1].shape(-1),
                          experts_,
                          eps_,
                          {},
                          {}};
    const mx::array* next = inputs.data() + 4;
    for (int i = 0; i < 2 * kMatrices; next += matrices_[size_t(i)].input_count(), ++i)
      (i < kMatrices ? args.experts[i] : args.shared[i - kMatrices]) = matrices_[size_t(i)].view(next);
    run_kernel(stream(), cpu::kernels().experts, x.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const gpu::ExpertsShape shape = shape_of(inputs[0], inputs[1], matrices_, experts_, eps_);
    if (!has_kernel(shape)) throw gpu::NoKernel("experts: no kernel for " + std::to_string(shape.M) + " rows");
    return gpu::plan(shape);
  }

 private:
  std::vector<Matrix> matrices_;
  int experts_;
  float eps_;
};

// A gate, an up and a down that fit each other and K, `count` experts of them.
void check_matrices(const char* argument, const std::vector<Matrix>& matrices, int K, int count) {
  const std::string wanted = "gate, up and down of one size, with K = " + std::to_string(K);
  if (matrices.size() != kMatrices) fail(kOp, argument, wanted, std::to_string(matrices.size()) + " matrices");
  const Matrix &gate = matrices[0], &up = matrices[1], &down = matrices[2];
  const bool fit = gate.cols == K && up.cols == K && gate.rows == up.rows && down.rows == count * K &&
                   gate.rows == count * down.cols;
  if (!fit) fail(kOp, argument, wanted, gate.repr() + ", " + up.repr() + ", " + down.repr());
}

mx::array experts(const mx::array& x, const mx::array& chosen, const mx::array& weights,
                  const std::vector<Matrix>& matrices, const std::vector<Matrix>& shared, const mx::array& norm,
                  float eps, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "x", x);
  if (x.ndim() == 0 || x.size() == 0) fail(kOp, "x", "non-empty [.., K]", describe(x));
  const int K = x.shape(-1);
  if (matrices.size() != kMatrices || matrices[2].rows % K != 0)
    fail(kOp, "matrices", "gate, up and down, down with a multiple of K = " + std::to_string(K) + " rows",
         std::to_string(matrices.size()) + " matrices" +
             (matrices.empty() ? "" : ", the last " + matrices.back().repr()));
  const int count = matrices[2].rows / K;
  check_matrices("matrices", matrices, K, count);
  check_matrices("shared", shared, K, 1);
  if (chosen.ndim() != x.ndim()) fail(kOp, "chosen", "[.., k], as many dimensions as x", describe(chosen));
  mx::Shape shape = x.shape();
  shape.back() = chosen.shape(-1);
  if (shape.back() < 1) fail(kOp, "chosen", "one expert at least", describe(chosen));
  check_shape(kOp, "chosen", chosen, shape);
  check_same_dtype(kOp, "chosen", chosen, mx::uint32);
  ++shape.back();
  check_shape(kOp, "weights", weights, shape);
  check_same_dtype(kOp, "weights", weights, mx::float32);
  check_shape(kOp, "norm", norm, {K});
  check_float(kOp, "norm", norm);
  check_positive(kOp, "eps", eps);

  std::vector<Matrix> all = matrices;
  all.insert(all.end(), shared.begin(), shared.end());
  if (on_gpu(s) && !has_kernel(shape_of(x, chosen, all, count, eps)))
    return experts_mlx(x, chosen, weights, matrices, shared, norm, eps, s);
  std::vector<mx::array> inputs{contiguous(x, s), contiguous(chosen, s), contiguous(weights, s),
                                float_parameter(norm, s)};
  for (const Matrix& matrix : all)
    for (mx::array& input : matrix.inputs(s)) inputs.push_back(std::move(input));
  return mx::array(x.shape(), x.dtype(), std::make_shared<Experts>(s, std::move(all), count, eps), std::move(inputs));
}

const Binding binding([](nb::module_& m) {
  m.def("experts", &experts, "x"_a, "chosen"_a, "weights"_a, "matrices"_a, "shared"_a, "norm"_a, nb::kw_only(),
        "eps"_a = 1e-6, "stream"_a = nb::none());
  m.def(
      "experts_mlx",
      [](const mx::array& x, const mx::array& chosen, const mx::array& weights, const std::vector<Matrix>& matrices,
         const std::vector<Matrix>& shared, const mx::array& norm, float eps, mx::StreamOrDevice stream) {
        return experts_mlx(x, chosen, weights, matrices, shared, norm, eps, mx::to_stream(stream));
      },
      "x"_a, "chosen"_a, "weights"_a, "matrices"_a, "shared"_a, "norm"_a, nb::kw_only(), "eps"_a = 1e-6,
      "stream"_a = nb::none(), "For tests: what experts is on a GPU, anywhere.");
});

}  // namespace
}  // namespace mlx_delta

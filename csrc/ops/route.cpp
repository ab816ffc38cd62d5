// route: the experts of each token and how much each of them counts.
//
//   h       = x * rsqrt(mean(x^2) + eps) * norm                         [.., K]
//   share   = softmax(h @ router^T)                                     [.., E]    over all experts
//   chosen  = the k experts of the largest share, largest first         [.., k]    uint32; of equals the first
//   weights = share[chosen] / sum(share[chosen]), then                  [.., k + 1]    float32
//             sigmoid(h @ shared_gate^T), what the shared expert counts
//
// x: float32, float16 or bfloat16. Everything after x is float32, logits too, so that a token's experts do not depend
// on how far x's dtype would round them. A row has the same bits whatever the number of rows of x.
#include "cpu/route.h"

#include "cpu/kernels.h"
#include "decode_tokens.h"
#include "gpu/plans/route.h"
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

constexpr const char* kOp = "route";

class Route : public Primitive {
 public:
  Route(mx::Stream stream, Matrix router, Matrix shared_gate, float eps)
      : Primitive(kOp, stream), router_(std::move(router)), shared_gate_(std::move(shared_gate)), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array& x = inputs[0];
    for (mx::array& out : outputs) allocate(out);
    const int64_t K = x.shape(-1);
    const cpu::RouteArgs args{x.data<void>(),
                              inputs[1].data<float>(),
                              outputs[0].data<uint32_t>(),
                              outputs[1].data<float>(),
                              int64_t(x.size()) / K,
                              x.ndim() > 1 ? x.shape(-2) : 1,
                              K,
                              outputs[0].shape(-1),
                              eps_,
                              router_.view(inputs.data() + 2),
                              shared_gate_.view(inputs.data() + 2 + router_.input_count())};
    run_kernel(stream(), cpu::kernels().route, x.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::array& x = inputs[0];
    const int K = x.shape(-1), M = int(x.size()) / K;
    if (M > kDecodeTokens) throw gpu::NoKernel("route: no kernel for " + std::to_string(M) + " rows");
    int next = 2;
    const gpu::QmmSegment router = qmm_segment(router_, next), shared_gate = qmm_segment(shared_gate_, next);
    return gpu::plan(gpu::RouteShape{metal_type(x.dtype()), M, K, outputs[0].shape(-1), eps_, router, shared_gate});
  }

 private:
  Matrix router_, shared_gate_;
  float eps_;
};

std::vector<mx::array> route(const mx::array& x, const Matrix& router, const Matrix& shared_gate, const mx::array& norm,
                             int chosen, float eps, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "x", x);
  if (x.ndim() == 0 || x.size() == 0) fail(kOp, "x", "non-empty [.., K]", describe(x));
  const int K = x.shape(-1);
  if (router.cols != K) fail(kOp, "router", "K = " + std::to_string(K) + " columns as x has", router.repr());
  if (shared_gate.cols != K || shared_gate.rows != 1)
    fail(kOp, "shared_gate", "[1, " + std::to_string(K) + "]", shared_gate.repr());
  if (chosen < 1 || chosen > router.rows)
    fail(kOp, "chosen", "1 to the router's " + std::to_string(router.rows) + " rows", std::to_string(chosen));
  check_shape(kOp, "norm", norm, {K});
  check_float(kOp, "norm", norm);
  check_positive(kOp, "eps", eps);

  const bool kernel = int(x.size()) / K <= kDecodeTokens && chosen <= gpu::kMostChosen;
  if (on_gpu(s) && !kernel) return route_mlx(x, router, shared_gate, norm, chosen, eps, s);
  mx::Shape chosen_shape = x.shape(), weights_shape = x.shape();
  chosen_shape.back() = chosen;
  weights_shape.back() = chosen + 1;
  std::vector<mx::array> inputs{contiguous(x, s), float_parameter(norm, s)};
  for (const Matrix* matrix : {&router, &shared_gate})
    for (mx::array& input : matrix->inputs(s)) inputs.push_back(std::move(input));
  return mx::array::make_arrays({chosen_shape, weights_shape}, {mx::uint32, mx::float32},
                                std::make_shared<Route>(s, router, shared_gate, eps), inputs);
}

const Binding binding([](nb::module_& m) {
  m.def(
      "route",
      [](const mx::array& x, const Matrix& router, const Matrix& shared_gate, const mx::array& norm, int chosen,
         float eps, mx::StreamOrDevice stream) {
        auto found = route(x, router, shared_gate, norm, chosen, eps, stream);
        return std::make_tuple(found[0], found[1]);
      },
      "x"_a, "router"_a, "shared_gate"_a, "norm"_a, nb::kw_only(), "chosen"_a, "eps"_a = 1e-6, "stream"_a = nb::none());
  m.def(
      "route_mlx",
      [](const mx::array& x, const Matrix& router, const Matrix& shared_gate, const mx::array& norm, int chosen,
         float eps, mx::StreamOrDevice stream) {
        auto found = route_mlx(x, router, shared_gate, norm, chosen, eps, mx::to_stream(stream));
        return std::make_tuple(found[0], found[1]);
      },
      "x"_a, "router"_a, "shared_gate"_a, "norm"_a, nb::kw_only(), "chosen"_a, "eps"_a = 1e-6, "stream"_a = nb::none(),
      "For tests: what route is on a GPU, anywhere.");
});

}  // namespace
}  // namespace mlx_delta

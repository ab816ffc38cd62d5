// gated_norm: RMSNorm of each head's output, gated: what follows gated_delta in prefill.
//
//   out = norm * y * rsqrt(mean(y^2) + eps) * silu(z)      over the last axis; y, z, out: one float dtype; norm [D]
//
// Computed in float32, rounded once. On a GPU a composition of MLX's operations.
#include "cpu/gated_norm.h"

#include "cpu/kernels.h"
#include "mlx/compile.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "gated_norm";

class GatedNorm : public Primitive {
 public:
  GatedNorm(mx::Stream stream, float eps) : Primitive(kOp, stream), eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    allocate(out);
    const int64_t D = out.shape(-1), heads = out.ndim() > 2 ? out.shape(-2) : 1;
    const cpu::GatedNormArgs args{inputs[0].data<void>(),
                                  rows_of(inputs[1], heads > 1 ? 2 : 1, stream()),
                                  inputs[2].data<float>(),
                                  out.data<void>(),
                                  int64_t(out.size()) / (heads * D),
                                  heads,
                                  D,
                                  eps_};
    run_kernel(stream(), cpu::kernels().gated_norm, out.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>&, const std::vector<mx::array>&) const override {
    throw gpu::NoKernel("gated_norm: no kernel for a GPU: MLX's operations run there");
  }

 private:
  float eps_;
};

// normed * silu(z), of float32 and a dtype, in that dtype
std::vector<mx::array> gated(const std::vector<mx::array>& normed_z) {
  const mx::array z = mx::astype(normed_z[1], mx::float32);
  return {mx::astype(mx::multiply(normed_z[0], mx::multiply(z, mx::sigmoid(z))), normed_z[1].dtype())};
}

mx::array gated_norm(const mx::array& y, const mx::array& z, const mx::array& norm, float eps,
                     mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_float(kOp, "y", y);
  if (y.ndim() == 0 || y.size() == 0) fail(kOp, "y", "non-empty [.., D]", describe(y));
  check_shape(kOp, "z", z, y.shape());
  check_same_dtype(kOp, "z", z, y.dtype());
  check_shape(kOp, "norm", norm, {y.shape(-1)});
  check_float(kOp, "norm", norm);
  check_positive(kOp, "eps", eps);
  if (on_gpu(s)) {
    static const auto fused_gate = mx::compile(gated, /*shapeless=*/true);
    const mx::StreamContext on(s);
    return fused_gate({mx::fast::rms_norm(mx::astype(y, mx::float32), float_parameter(norm, s), eps), z})[0];
  }
  return mx::array(y.shape(), y.dtype(), std::make_shared<GatedNorm>(s, eps),
                   {contiguous(y, s), sliced(z, s), float_parameter(norm, s)});
}

const Binding binding([](nb::module_& m) {
  m.def("gated_norm", &gated_norm, "y"_a, "z"_a, "norm"_a, nb::kw_only(), "eps"_a = 1e-6, "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

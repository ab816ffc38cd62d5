// probe: what a GPU makes of single operations, for `mlx-delta selfcheck`; a CPU is not asked.
//
//   values: float32 [N], N a multiple of 32 -> float32 [MLX_DELTA_PROBES, N], by the rows of _core.PROBES
#include <stdexcept>

#include "gpu/launch.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/inputs.h"
#include "ops/primitive.h"
#include "params.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "probe";
constexpr int kSimdgroup = 32;
// In the order of metal/probe.metal.
constexpr const char* kProbes[MLX_DELTA_PROBES] = {
    "precise::exp", "fast::exp", "precise::log",   "fast::log", "precise::cos",      "fast::cos",
    "precise::sin", "fast::sin", "precise::rsqrt", "1/x",       "low half as float", "bfloat",
    "half",         "x*x-1",     "fma(x,x,-1)",    "simd_sum",  "thread_elements 0", "thread_elements 1"};

class Probe : public Primitive {
 public:
  explicit Probe(mx::Stream stream) : Primitive(kOp, stream) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("probe: expected a GPU, found a stream of the CPU");
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>&) const override {
    const int count = int(inputs[0].size());
    return {{{"probe",
              "probe",
              {"float"},
              {{gpu::Buffer::input, 0}, {gpu::Buffer::output, 0}},
              gpu::bytes_of(gpu::ProbeParams{count}),
              {count / kSimdgroup, 1, 1},
              {kSimdgroup, 1, 1}}},
            {},
            {}};
  }
};

mx::array probe(const mx::array& values, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  check_same_dtype(kOp, "values", values, mx::float32);
  if (values.ndim() != 1 || values.size() == 0 || values.size() % kSimdgroup != 0)
    fail(kOp, "values", "[N], N a multiple of 32", describe(values));
  return mx::array({MLX_DELTA_PROBES, values.shape(0)}, mx::float32, std::make_shared<Probe>(s),
                   {contiguous(values, s)});
}

const Binding binding([](nb::module_& m) {
  m.attr("PROBES") = std::vector<std::string>(std::begin(kProbes), std::end(kProbes));
  m.def(kOp, &probe, "values"_a, nb::kw_only(), "stream"_a = nb::none(),
        "What a GPU makes of single operations on values float32 [N]: float32 [len(PROBES), N].");
});

}  // namespace
}  // namespace mlx_delta

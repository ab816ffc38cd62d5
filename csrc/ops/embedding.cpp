// embedding: rows of a (quantized) table.
//
//   y[..] = W[tokens[..]]        tokens: integers [..]; y: dtype [.., K]
//
// A token outside [0, N) gives a row of NaN.
#include "cpu/embedding.h"

#include "cpu/kernels.h"
#include "gpu/plans/embedding.h"
#include "mlx/ops.h"
#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"
#include "ops/matrix.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

constexpr const char* kOp = "embedding";

class Embedding : public Primitive {
 public:
  Embedding(mx::Stream stream, Matrix table) : Primitive(kOp, stream), table_(std::move(table)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& out = outputs[0];
    allocate(out);
    const cpu::EmbeddingArgs args{inputs[0].data<int32_t>(), out.data<void>(), int64_t(inputs[0].size()),
                                  table_.view(inputs.data() + 1)};
    run_kernel(stream(), cpu::kernels().embedding, out.dtype(), args);
  }

  gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const mx::Dtype weight_type = table_.quantized() ? table_.scales->dtype() : table_.weight.dtype();
    return gpu::plan(gpu::EmbeddingShape{metal_type(outputs[0].dtype()), metal_type(weight_type), int(inputs[0].size()),
                                         table_.rows, table_.cols, table_.bits, table_.group_size});
  }

 private:
  Matrix table_;
};

mx::array embedding(const mx::array& tokens, const Matrix& table, mx::Dtype dtype, mx::StreamOrDevice stream) {
  const mx::Stream s = mx::to_stream(stream);
  if (!mx::issubdtype(tokens.dtype(), mx::integer) || tokens.size() == 0)
    fail(kOp, "tokens", "a non-empty array of integers", describe(tokens));
  if (!mx::issubdtype(dtype, mx::floating) || dtype == mx::float64)
    fail(kOp, "dtype", "float32, float16 or bfloat16", describe(mx::zeros({0}, dtype)));
  std::vector<mx::array> inputs{contiguous(tokens.dtype() == mx::int32 ? tokens : mx::astype(tokens, mx::int32, s), s)};
  for (mx::array& input : table.inputs(s)) inputs.push_back(std::move(input));
  mx::Shape shape = tokens.shape();
  shape.push_back(table.cols);
  return mx::array(shape, dtype, std::make_shared<Embedding>(s, table), std::move(inputs));
}

const Binding binding([](nb::module_& m) {
  m.def("embedding", &embedding, "tokens"_a, "table"_a, "dtype"_a, nb::kw_only(), "stream"_a = nb::none());
});

}  // namespace
}  // namespace mlx_delta

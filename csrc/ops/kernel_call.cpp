#include "ops/kernel_call.h"

#include <cstring>
#include <stdexcept>

#include "cpu/kernels.h"
#include "mlx/transforms.h"
#include "ops/binding.h"
#include "ops/evaluation.h"
#include "ops/primitive.h"

namespace mlx_delta {
namespace {

std::string name_of(void (*kernel)()) {
  const cpu::Kernels& table = cpu::kernels();
#define MLX_DELTA_KERNEL(name, Args) \
  if (kernel == reinterpret_cast<void (*)()>(table.name)) return #name;
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL
  throw std::invalid_argument("kernel_call: expected a kernel of the table in use");
}

// What lies between an array's first and last element.
std::string content(const mx::array& a) {
  int64_t last = 0;
  for (int axis = 0; axis < int(a.ndim()); ++axis) last += (a.shape(axis) - 1) * a.strides(axis);
  return {a.data<char>(), size_t(last + 1) * a.itemsize()};
}

}  // namespace

KernelCall kernel_call(const mx::array& result) {
  const std::vector<mx::array> inputs = inputs_of("kernel_call", result);
  mx::eval(inputs);
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& out : result.outputs()) {
    shapes.push_back(out.shape());
    dtypes.push_back(out.dtype());
  }
  // Outputs of their own, and inputs that others hold too: states are copied, as they are where they may not be taken.
  std::vector<mx::array> outputs = mx::array::make_arrays(shapes, dtypes, result.primitive_ptr(), inputs);
  KernelCall call;
  {
    const RecordedCalls recording([&](void (*kernel)(), cpu::DType type, const void* arguments, size_t bytes) {
      call.kernel = name_of(kernel);
      call.type = type;
      call.arguments.assign(static_cast<const char*>(arguments), static_cast<const char*>(arguments) + bytes);
    });
    result.primitive().eval_cpu(inputs, outputs);
  }
  mx::synchronize(result.primitive().stream());

  std::vector<const void*> starts;
  for (const auto* arrays : {&inputs, static_cast<const std::vector<mx::array>*>(&outputs)})
    for (const mx::array& a : *arrays) {
      starts.push_back(a.data<void>());
      call.buffers.emplace_back(content(a), arrays == &outputs);
    }
  for (size_t at = 0; at + sizeof(void*) <= call.arguments.size(); at += sizeof(void*)) {
    const void* word;
    std::memcpy(&word, call.arguments.data() + at, sizeof(word));
    for (size_t i = 0; i < starts.size(); ++i) {
      if (word != starts[i]) continue;
      const int64_t number = int64_t(i) + 1;
      std::memcpy(call.arguments.data() + at, &number, sizeof(number));
      call.pointers.push_back(int(at));
      break;
    }
  }
  return call;
}

namespace {

nb::bytes as_bytes(const std::string& text) { return nb::bytes(text.data(), text.size()); }

const Binding binding([](nb::module_& m) {
  nb::class_<KernelCall>(m, "KernelCall", "The call that an op makes of its CPU kernel.")
      .def_ro("kernel", &KernelCall::kernel, "Its name in csrc/cpu/kernels.def.")
      .def_prop_ro(
          "type", [](const KernelCall& call) { return int(call.type); }, "cpu::DType of the activations.")
      .def_prop_ro(
          "arguments", [](const KernelCall& call) { return nb::bytes(call.arguments.data(), call.arguments.size()); },
          "The struct, with the numbers of buffers, from 1, in the place of pointers; 0: null.")
      .def_ro("pointers", &KernelCall::pointers, "Where those are, in bytes.")
      .def_prop_ro(
          "buffers",
          [](const KernelCall& call) {
            std::vector<std::pair<nb::bytes, bool>> buffers;
            for (const auto& [content, output] : call.buffers) buffers.emplace_back(as_bytes(content), output);
            return buffers;
          },
          "(content, whether it is an output): inputs, then outputs as the kernel finds them.");
  m.def("kernel_call", &kernel_call, "result"_a,
        "For tests: the call that an op's unevaluated result makes of its CPU kernel.");
});

}  // namespace
}  // namespace mlx_delta

#include "ops/primitive.h"

#include <cstdint>
#include <stdexcept>
#include <unordered_set>

#include "gpu/metal.h"
#include "mlx/allocator.h"
#include "ops/donation.h"

namespace mlx_delta {

void Primitive::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_sibling_inputs(inputs, outputs);
  gpu::Plan todo = plan(inputs, outputs);
  for (const gpu::InPlace& place : todo.in_place) {
    const mx::array& in = inputs[size_t(place.input)];
    mx::array& out = outputs[size_t(place.output)];
    if (can_take_over(in, stream()))
      out.copy_shared_buffer(in);
    else if (place.copy)
      todo.launches.insert(todo.launches.begin(),
                           gpu::plan_copy({gpu::Buffer::input, place.input}, {gpu::Buffer::output, place.output},
                                          int64_t(out.nbytes()), out.nbytes() % 4 == 0 ? "uint" : "uchar"));
  }
  for (mx::array& out : outputs)  // not poisoned: work in flight may be the last to use recycled memory
    if (!out.data_shared_ptr()) out.set_data(mx::allocator::malloc(out.nbytes()));
  std::vector<int> states;
  for (const gpu::InPlace& place : todo.in_place) states.push_back(place.output);
  note_in_flight(inputs, outputs, state_inputs(), states, stream(), gpu::encode(todo, inputs, outputs, stream()));
}

std::string metal_type(mx::Dtype dtype) {
  return dtype == mx::float32 ? "float" : dtype == mx::float16 ? "half" : "bfloat";
}

const std::vector<mx::array>& inputs_of(const char* who, const mx::array& result) {
  if (!result.has_primitive() || !dynamic_cast<const Primitive*>(&result.primitive()))
    throw std::invalid_argument(std::string(who) + ": expected an unevaluated result of one of mlx_delta's ops");
  return result.inputs();
}

std::pair<gpu::Plan, std::vector<mx::array>> plan_of(const mx::array& result) {
  const std::vector<mx::array>& inputs = inputs_of("plan", result);
  return {static_cast<const Primitive&>(result.primitive()).plan(inputs, result.outputs()), inputs};
}

std::vector<gpu::Launch> launches_of(const std::vector<mx::array>& results) {
  std::vector<gpu::Launch> found;
  std::unordered_set<std::string> kernels;
  const auto add = [&](const gpu::Launch& launch) {
    if (kernels.insert(launch.kernel()).second) found.push_back(launch);
  };
  const auto add_all_of = [&](const Primitive& primitive, const mx::array& result) {
    try {
      const gpu::Plan plan = primitive.plan(result.inputs(), result.outputs());
      for (const gpu::Launch& launch : plan.launches) add(launch);
    } catch (const gpu::NoKernel&) {
    }
  };
  std::vector<mx::array> left = results;
  std::unordered_set<std::uintptr_t> seen;         // arrays
  std::unordered_set<const mx::Primitive*> asked;  // one has several results
  while (!left.empty()) {
    const mx::array one = left.back();
    left.pop_back();
    if (!seen.insert(one.id()).second || !one.has_primitive()) continue;
    const auto* primitive = dynamic_cast<const Primitive*>(&one.primitive());
    if (primitive && asked.insert(primitive).second) add_all_of(*primitive, one);
    left.insert(left.end(), one.inputs().begin(), one.inputs().end());
  }
  for (const char* word : {"uint", "uchar"}) add(gpu::plan_copy({}, {}, 0, word));
  return found;
}

}  // namespace mlx_delta

#include "ops/primitive.h"

#include <stdexcept>

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
                                          int64_t(out.nbytes())));
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

}  // namespace mlx_delta

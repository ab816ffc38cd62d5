// The base of our primitives, and what their GPU side, a plan, needs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "gpu/launch.h"
#include "mlx/array.h"
#include "mlx/primitives.h"

namespace mlx_delta {

namespace mx = mlx::core;

// Base of our primitives: outputs are always row-contiguous.
class Primitive : public mx::Primitive {
 public:
  Primitive(const char* name, mx::Stream stream) : mx::Primitive(stream), name_(name) {}
  const char* name() const override { return name_; }
  // What a GPU does for this op: a pure function of the arguments' shapes and dtypes.
  virtual gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const = 0;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  // The inputs that a later op may want to take over: states that this one only reads.
  virtual std::vector<int> state_inputs() const { return {}; }

 private:
  const char* name_;
};

// "float", "half" or "bfloat"
std::string metal_type(mx::Dtype dtype);

// The inputs of an op's result that has not been evaluated. Throws std::invalid_argument, naming who asks, for another.
const std::vector<mx::array>& inputs_of(const char* who, const mx::array& result);

// The plan of an op's result that has not been evaluated, and the inputs that it speaks of. For tests.
std::pair<gpu::Plan, std::vector<mx::array>> plan_of(const mx::array& result);

// The launches of what these arrays, not evaluated, still need, of each kernel one, copies that the host may make too.
// Ops that a GPU leaves to MLX have none.
std::vector<gpu::Launch> launches_of(const std::vector<mx::array>& results);

}  // namespace mlx_delta

#include "ops/binding.h"

#include <vector>

namespace mlx_delta {
namespace {

using Define = void (*)(nb::module_&);

std::vector<Define>& all() {
  static std::vector<Define> defined;  // made by whichever file comes first
  return defined;
}

}  // namespace

Binding::Binding(Define define) { all().push_back(define); }

void define_bindings(nb::module_& m) {
  for (Define define : all()) define(m);
}

}  // namespace mlx_delta

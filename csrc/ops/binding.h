// How an op gets into the Python module: its file holds a Binding, whose function defines it there.
//
//   const Binding binding([](nb::module_& m) { m.def("op", &op, "x"_a, ..); });
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

namespace mlx_delta {

namespace nb = nanobind;
using namespace nb::literals;

class Binding {
 public:
  explicit Binding(void (*define)(nb::module_& m));
};

// Runs those of all files, when the module is made.
void define_bindings(nb::module_& m);

}  // namespace mlx_delta

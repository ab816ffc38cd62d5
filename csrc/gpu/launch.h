// What a GPU is asked to do for an op, as plain data: made by plan() on every platform, encoded by gpu/metal.cpp on
// Apple's, and by the tests' runner of Metal shaders on a CPU.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace mlx_delta::gpu {

struct Buffer {
  enum Role { input, output, scratch };
  Role role;
  int index;
};

struct Launch {
  std::string file;                // metal/<file>.metal
  std::string function;            // the template in it
  std::vector<std::string> types;  // its arguments, in Metal's names
  std::vector<Buffer> buffers;     // bound at 0, 1, ..; params come next
  std::vector<char> params;        // a struct of metal/params.h
  std::array<int, 3> threadgroups;
  std::array<int, 3> threads;  // of a threadgroup

  // function<types..>
  std::string instance() const;
  // The name of that instance in its library; no two instances share one.
  std::string kernel() const;
  // The complete text of a library with this one kernel: the file with its includes, and the instance.
  std::string source() const;
};

// The complete text of the library that has the kernels of these launches, all of one file and each another.
std::string library_source(const std::vector<Launch>& launches);

// An output that takes over its input's memory where nobody else holds it.
struct InPlace {
  int output;
  int input;
  bool copy;  // the kernel writes only part of it, so without the takeover the input has to be copied first
};

struct Plan {
  std::vector<Launch> launches;        // in order; each sees what those before it wrote
  std::vector<int64_t> scratch_bytes;  // of each scratch buffer
  std::vector<InPlace> in_place;
};

template <typename P>
std::vector<char> bytes_of(const P& params) {
  std::vector<char> bytes(sizeof(P));
  std::memcpy(bytes.data(), &params, sizeof(P));
  return bytes;
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

inline std::string metal_bool(bool value) { return value ? "true" : "false"; }

// An optional input (index < 0: absent). A kernel that does not touch an argument may be given any buffer: input 0.
inline Buffer optional_input(int index) { return {Buffer::input, index < 0 ? 0 : index}; }

// An op that is MLX's own where a GPU would run it.
struct NoKernel : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Kernels in which a simdgroup's lanes share a head evenly: raises std::invalid_argument where they cannot.
void check_head_dims(const char* op, std::initializer_list<int> dims);

// The flattened text of metal/<file>.metal, embedded when the extension was built.
const std::string& metal_source(const std::string& file);

// A copy of an input to an output, word by word: "uint", or "uchar" where the input may begin anywhere.
Launch plan_copy(Buffer from, Buffer to, int64_t bytes, const std::string& word = "uint");

}  // namespace mlx_delta::gpu

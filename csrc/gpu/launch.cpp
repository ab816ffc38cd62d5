#include "gpu/launch.h"

#include <stdexcept>

#include "gpu/sources.h"
#include "params.h"

namespace mlx_delta::gpu {

std::string Launch::instance() const {
  std::string text = function;
  for (size_t i = 0; i < types.size(); ++i) text += (i ? ", " : "<") + types[i];
  return types.empty() ? text : text + ">";
}

std::string Launch::kernel() const {
  std::string name;
  for (char c : instance())
    if (std::isalnum(static_cast<unsigned char>(c)))
      name += c;
    else if (name.back() != '_')
      name += '_';
  while (name.back() == '_') name.pop_back();
  return name;
}

std::string Launch::source() const { return library_source({*this}); }

std::string library_source(const std::vector<Launch>& launches) {
  std::string text = metal_source(launches.front().file);
  for (const Launch& launch : launches)
    text += "\ntemplate [[host_name(\"" + launch.kernel() + "\")]] [[kernel]] decltype(" + launch.instance() + ") " +
            launch.instance() + ";\n";
  return text;
}

void check_head_dims(const char* op, std::initializer_list<int> dims) {
  for (int D : dims)
    if (D % 32 != 0 || D > 256)
      throw std::invalid_argument(std::string(op) + ": head dim: expected a multiple of 32 up to 256 on a GPU, found " +
                                  std::to_string(D));
}

const std::string& metal_source(const std::string& file) {
  const auto& sources = metal_sources();
  const auto found = sources.find(file);
  if (found == sources.end()) throw std::out_of_range("no shader source '" + file + "'");
  return found->second;
}

Launch plan_copy(Buffer from, Buffer to, int64_t bytes, const std::string& word) {
  constexpr int kThreads = 256;
  const int words = int(word == "uchar" ? bytes : bytes / 4);
  return {
      "copy",          "copy_words", {word}, {from, to}, bytes_of(CopyParams{words}), {ceil_div(words, kThreads), 1, 1},
      {kThreads, 1, 1}};
}

}  // namespace mlx_delta::gpu

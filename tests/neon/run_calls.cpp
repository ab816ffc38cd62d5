// Runs recorded kernel calls (calls.py) on one table of kernels: the program that an emulator of another processor
// executes. Usage: run_calls ISA CALLS RESULTS. It uses the C library only, so that no C++ library has to be built.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/runtime/ahead.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu {

namespace neon {
extern const Kernels table;
}
namespace neondot {
extern const Kernels table;
}

// In place of ahead.cpp and threads.cpp, which need the C++ library and are tested where they run: the pieces of a job
// one after another, last first, so that a piece which needs an earlier one shows.
Ahead stream_ahead() { return {2048, 12288}; }
int thread_count() { return 3; }
void run_parallel(int64_t count, int64_t grain, int64_t parts, const Work& work) {
  const int64_t piece = grain > count / parts ? grain : count / parts;
  for (int64_t first = (count - 1) / piece * piece; first >= 0; first -= piece)
    work(first, first + piece < count ? first + piece : count);
}
void* scratch(int slot, size_t bytes) {
  static void* data[kScratchSlots];
  static size_t size[kScratchSlots];
  if (size[slot] < bytes) {
    std::free(data[slot]);
    size[slot] = (bytes + 4095) / 4096 * 4096;
    data[slot] = std::aligned_alloc(4096, size[slot]);
    std::memset(data[slot], 0xff, size[slot]);
  }
  return data[slot];
}

}  // namespace mlx_delta::cpu

using namespace mlx_delta::cpu;

namespace {

[[noreturn]] void fail(const char* what, int64_t at) {
  std::fprintf(stderr, "run_calls: %s (%lld)\n", what, static_cast<long long>(at));
  std::exit(1);
}

void read(std::FILE* file, void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, file) != bytes) fail("the file of calls ends early", std::ftell(file));
}

// A buffer that ends where an unmapped page begins: a read or a write beyond it ends the program.
struct Buffer {
  size_t size, mapped;
  char* data;
  bool output;
};
constexpr size_t kPage = 65536;  // the largest that aarch64 has

Buffer allocate(size_t bytes, bool output) {
  const size_t mapped = (bytes + kPage - 1) / kPage * kPage;
  void* base = mmap(nullptr, mapped + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) fail("mmap failed, bytes", int64_t(bytes));
  char* end = static_cast<char*>(base) + mapped;
  mprotect(end, kPage, PROT_NONE);
  return {bytes, mapped, end - bytes, output};
}

void run(const Kernels& table, const char* name, DType type, const void* args) {
#define MLX_DELTA_KERNEL(kernel, Args) \
  if (std::strcmp(name, #kernel) == 0) return table.kernel(type, *static_cast<const Args*>(args));
#include "cpu/kernels.def"
#undef MLX_DELTA_KERNEL
  std::fprintf(stderr, "run_calls: no kernel '%s'\n", name);
  std::exit(1);
}

}  // namespace

// A call: {kernel, dtype, bytes of its arguments, number of pointers in them, of buffers}, then the arguments, with
// numbers of buffers (from 1; 0 is null) in the place of pointers, the pointers' offsets, and each buffer as {bytes,
// whether it is an output} and its content.
int main(int argc, char** argv) {
  if (argc != 4) fail("expected ISA CALLS RESULTS, arguments found", argc - 1);
  const Kernels* found = nullptr;
  for (const Kernels* table : {&neon::table, &neondot::table})
    if (std::strcmp(argv[1], table->isa) == 0) found = table;
  if (!found) fail("expected neon or neondot", 0);
  const Kernels& kernels = *found;
  std::FILE* calls = std::fopen(argv[2], "rb");
  std::FILE* results = std::fopen(argv[3], "wb");
  if (!calls || !results) fail("cannot open the files", 0);
  struct {
    char kernel[32];
    int32_t type, args, pointers, buffers;
  } header;
  while (std::fread(&header, sizeof(header), 1, calls) == 1) {
    alignas(16) char args[2048];
    int32_t offsets[64];
    Buffer buffers[64];
    if (header.args > int32_t(sizeof(args)) || header.pointers > 64 || header.buffers > 64)
      fail("a call that is too large, bytes of arguments", header.args);
    read(calls, args, size_t(header.args));
    read(calls, offsets, size_t(header.pointers) * sizeof(int32_t));
    for (int i = 0; i < header.buffers; ++i) {
      int64_t about[2];
      read(calls, about, sizeof(about));
      buffers[i] = allocate(size_t(about[0]), about[1] != 0);
      read(calls, buffers[i].data, buffers[i].size);
    }
    for (int i = 0; i < header.pointers; ++i) {
      int64_t number;
      std::memcpy(&number, args + offsets[i], sizeof(number));
      const char* at = number ? buffers[number - 1].data : nullptr;
      std::memcpy(args + offsets[i], &at, sizeof(at));
    }
    run(kernels, header.kernel, DType(header.type), args);
    for (int i = 0; i < header.buffers; ++i) {
      const Buffer& b = buffers[i];
      if (b.output) std::fwrite(b.data, 1, b.size, results);
      munmap(b.data + b.size - b.mapped, b.mapped + kPage);
    }
  }
  return std::fclose(results) == 0 ? 0 : 1;
}

// Where the loader begins, as crt1.o of the C library has it, which is in its package for developers alone.
asm(R"(
.globl _start
_start:
  mov x29, #0
  mov x30, #0
  mov x5, x0
  ldr x1, [sp]
  add x2, sp, #8
  mov x6, sp
  adrp x0, main
  add x0, x0, :lo12:main
  mov x3, #0
  mov x4, #0
  bl __libc_start_main
  brk #0
)");

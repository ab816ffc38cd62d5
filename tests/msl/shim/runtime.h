// What a compiled kernel needs from the runtime that executes it.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace msl {

constexpr unsigned kSimdWidth = 32;
constexpr unsigned kMaxThreads = 1024;  // in a threadgroup
constexpr unsigned kSlotBytes = 128;    // the largest value a lane can hand to another

// A place in the kernel's source where a thread can wait.
struct Site {
  const char* file;
  int line;
  int column;
  const char* operation;
};

struct Builtins {
  uint32_t thread_in_threadgroup[3];
  uint32_t thread_in_grid[3];
  uint32_t threadgroup_in_grid[3];
  uint32_t index;  // of the thread in its threadgroup
  uint32_t lane;
  uint32_t simdgroup;
};

struct Grid {
  uint32_t threads[3];
  uint32_t threadgroups[3];
  uint32_t threadgroup_size[3];  // of this threadgroup: one at the edge of the grid may be smaller
  uint32_t dispatched_size[3];   // of a full threadgroup
};

enum State : uint32_t { kReady, kWaitsForSimdgroup, kWaitsForThreadgroup, kExited };

// A GPU thread: a stack of its own, switched by hand on one OS thread.
struct Fiber {
  void* stack_pointer;
  State state;
  Site site;              // where it waits
  uint32_t memory_flags;  // what the barrier it waits in orders
  uint32_t exchanges;     // simd operations so far
  Builtins builtins;
};

struct Simdgroup {
  uint32_t live;         // lanes that have not returned
  uint32_t active;       // lanes that took part in the last simd operation
  bool reduced;          // `result` holds the reduction of the last simd operation
  uint32_t barriers[2];  // that ordered device memory, threadgroup memory
  alignas(64) char slots[2][kSimdWidth][kSlotBytes];
  alignas(64) char result[kSlotBytes];
};

// A buffer bound to a kernel. `address` is where the kernel sees it.
struct Argument {
  void* data;
  uint64_t bytes;
  const char* name;
  uint32_t writable;
  uint32_t undefined;  // no contents before the launch
  void* address;
};

// One threadgroup variable: allocated by the first thread of a threadgroup that reaches it.
struct ThreadgroupVariable {
  void* address;
  uint64_t serial;
};

extern Fiber* current;
extern Simdgroup simdgroups[kMaxThreads / kSimdWidth];
extern Grid grid;

void wait(State kind, const Site& site, uint32_t memory_flags);
[[noreturn]] void fail(const Site& site, const char* format, ...);
void* threadgroup_variable(ThreadgroupVariable* variable, size_t bytes, const char* name);
void* threadgroup_parameter(uint32_t index, const char* name);
void atomic_access(const void* address, size_t bytes, bool write, const Site& site);

}  // namespace msl

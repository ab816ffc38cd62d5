// What the Python side hands to a launch and gets back, and what the parts of the runtime share. runner.py mirrors
// these structs.
#pragma once
#include "runtime.h"

namespace msl {

enum Kind : uint32_t {
  kError,
  kOutOfBounds,
  kUninitialised,
  kRace,
  kMisaligned,
  kReadOnly,
  kDivergence,
};

// One thing wrong. `site` and `other_site` number the instrumented accesses, from 1, or name a site; 0 is none.
struct Finding {
  uint32_t kind;
  uint32_t site;
  uint32_t other_site;
  uint32_t threadgroup[3];
  uint32_t thread[3];
  int64_t offset;  // in bytes, from the start of the buffer
  char buffer[64];
  char message[256];
};

struct Traffic {
  uint64_t read, written;                // every access
  uint64_t read_by_threadgroups;         // each byte once a threadgroup
  uint64_t unique_read, unique_written;  // each byte once
};

constexpr uint32_t kMaxFindings = 64;
constexpr uint32_t kThreadgroupParameters = 8;

struct Launch {
  void (*entry)(const Argument*);
  Argument* arguments;
  Traffic* traffic;  // one an argument, or null
  uint32_t count;
  uint32_t threads[3];
  uint32_t threadgroup[3];
  uint32_t threadgroup_bytes[kThreadgroupParameters];
  uint32_t reverse;
  uint32_t check;
  uint32_t allow_same_value;
  uint32_t findings_count;
  Finding findings[kMaxFindings];
};

extern Launch* launch;
extern uint64_t threadgroup_serial;       // counts threadgroups, from 1
extern uint32_t threadgroup_barriers[2];  // that ordered device memory, threadgroup memory

// Adds a finding of the current thread; one a kind, place and buffer.
void report(Kind kind, uint32_t site, uint32_t other_site, const char* buffer, int64_t offset, const char* format, ...)
    __attribute__((format(printf, 6, 7)));
// Abandons the launch. Call on a fiber only.
[[noreturn]] void stop();

// ---- memory.cpp ----
bool place_buffers();
void release_buffers(bool copy_back);
// The argument an address belongs to, by the part of the address space reserved for it; null when it is none's.
Argument* owner(const void* address);
struct ThreadgroupRange {
  const char* name;
  size_t start, bytes;
};
extern char* threadgroup_memory;
extern ThreadgroupRange threadgroup_ranges[64];
extern uint32_t threadgroup_range_count;
constexpr size_t kThreadgroupMemory = 32 << 10;
constexpr size_t kRedZone = 64;  // unused bytes after each threadgroup variable
void forget_threadgroup_memory();

// ---- checker.cpp ----
void checker_begin();
void checker_end();
void checker_resumed();  // a thread stopped running
void checker_new_threadgroup_variable(size_t start, size_t bytes);

}  // namespace msl

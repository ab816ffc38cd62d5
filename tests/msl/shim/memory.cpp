// Where a kernel's buffers and threadgroup variables live, and what happens when it reaches elsewhere.
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "launch.h"

namespace msl {

char* threadgroup_memory;
ThreadgroupRange threadgroup_ranges[64];
uint32_t threadgroup_range_count;

namespace {

// Each buffer has a part of the address space to itself, with nothing else in reach of a 32-bit index on either side.
constexpr size_t kPart = size_t(64) << 30;
constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 64;

char* reserved;
size_t reserved_bytes;
size_t threadgroup_used;
alignas(kAlignment) char threadgroup_storage[kThreadgroupMemory + kRedZone];
ThreadgroupVariable parameters[kThreadgroupParameters];
char signal_stack[64 << 10];
struct sigaction previous_action;
stack_t previous_stack;

void on_fault(int, siginfo_t* info, void*) {
  if (current == nullptr) {  // not ours: let it fault again with the previous handler
    sigaction(SIGSEGV, &previous_action, nullptr);
    return;
  }
  const Argument* argument = owner(info->si_addr);
  if (argument) {
    const long offset = static_cast<char*>(info->si_addr) - static_cast<char*>(argument->address);
    report(kOutOfBounds, 0, 0, argument->name, offset, "access at byte %ld of buffer '%s' of %lu bytes", offset,
           argument->name, argument->bytes);
  } else {
    report(kError, 0, 0, "", 0, "invalid address %p: a wild pointer, a misaligned vector or a stack overflow",
           info->si_addr);
  }
  stop();
}

void* allocate_threadgroup_memory(size_t bytes, const char* name) {
  const size_t start = (threadgroup_used + 127) & ~size_t(127);
  const size_t limit = sizeof(threadgroup_ranges) / sizeof(*threadgroup_ranges);
  if (start + bytes > kThreadgroupMemory || threadgroup_range_count == limit) {
    fail({"", 0, 0, ""}, "threadgroup variable '%s' needs %zu bytes, of %zu left", name, bytes,
         start < kThreadgroupMemory ? kThreadgroupMemory - start : 0);
  }
  threadgroup_used = start + bytes + kRedZone;
  threadgroup_ranges[threadgroup_range_count++] = {name, start, bytes};
  memset(threadgroup_memory + start, 0xff, bytes);  // NaN in every floating-point type
  checker_new_threadgroup_variable(start, bytes);
  return threadgroup_memory + start;
}

}  // namespace

bool place_buffers() {
  threadgroup_memory = threadgroup_storage;
  reserved_bytes = kPart * launch->count;
  reserved = nullptr;
  if (launch->count) {
    void* base = mmap(nullptr, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    reserved = static_cast<char*>(base);
  }
  for (uint32_t i = 0; i < launch->count; i++) {
    Argument& argument = launch->arguments[i];
    if (argument.data == nullptr) {
      argument.address = nullptr;
      continue;
    }
    for (uint32_t j = 0; j < i; j++) {  // one array bound twice is one buffer
      if (launch->arguments[j].data == argument.data) argument.address = launch->arguments[j].address;
    }
    if (argument.address) continue;
    // The end touches an unmapped page, so that an overrun faults without the checker as well.
    const size_t pages = (argument.bytes + kPage - 1) / kPage * kPage;
    char* middle = reserved + i * kPart + kPart / 2;
    if (pages && mprotect(middle, pages, PROT_READ | PROT_WRITE)) return false;
    argument.address = middle + (pages - argument.bytes) / kAlignment * kAlignment;
    if (argument.undefined) {
      memset(argument.address, 0xff, argument.bytes);
    } else {
      memcpy(argument.address, argument.data, argument.bytes);
    }
  }
  const stack_t stack{signal_stack, 0, sizeof(signal_stack)};
  sigaltstack(&stack, &previous_stack);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous_action);
  return true;
}

void release_buffers(bool copy_back) {
  sigaction(SIGSEGV, &previous_action, nullptr);
  sigaltstack(&previous_stack, nullptr);
  for (uint32_t i = 0; i < launch->count && copy_back; i++) {
    const Argument& argument = launch->arguments[i];
    if (argument.writable && argument.data) memcpy(argument.data, argument.address, argument.bytes);
  }
  if (reserved) munmap(reserved, reserved_bytes);
}

Argument* owner(const void* address) {
  const char* p = static_cast<const char*>(address);
  if (reserved == nullptr || p < reserved || p >= reserved + reserved_bytes) return nullptr;
  Argument& argument = launch->arguments[size_t(p - reserved) / kPart];
  return argument.data ? &argument : nullptr;
}

void forget_threadgroup_memory() {
  threadgroup_used = 0;
  threadgroup_range_count = 0;
}

void* threadgroup_variable(ThreadgroupVariable* variable, size_t bytes, const char* name) {
  if (variable->serial != threadgroup_serial) {
    variable->address = allocate_threadgroup_memory(bytes, name);
    variable->serial = threadgroup_serial;
  }
  return variable->address;
}

void* threadgroup_parameter(uint32_t index, const char* name) {
  return threadgroup_variable(&parameters[index], launch->threadgroup_bytes[index], name);
}

}  // namespace msl

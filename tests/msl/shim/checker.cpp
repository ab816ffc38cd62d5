// The checker: instrumented kernels announce each access, and it keeps for every byte who touched it last.
#include <stdlib.h>
#include <string.h>

#include "launch.h"

namespace msl {
namespace {

enum Space { kDevice, kThreadgroup, kConstant };
enum Scope : uint8_t { kNobody, kThread, kOneSimdgroup, kOneThreadgroup, kEverybody };
enum Flags : uint8_t { kInitialised = 1, kRead = 2, kWritten = 4 };

// Who accessed a byte, and how many barriers that order its memory they had passed.
struct Stamp {
  uint32_t threadgroup;
  uint16_t thread;
  Scope scope;
  bool atomic;
  uint32_t threadgroup_barriers;
  uint32_t simdgroup_barriers;
  uint32_t site;
};

struct Shadow {
  uint8_t* flags;
  Stamp* reads;  // null where nothing is ever written
  Stamp* writes;
  uint32_t* readers;  // the last threadgroup that read a byte, where traffic is counted
};

// A write that races but may store the value that is there; judged when the thread has gone on.
struct Pending {
  const char* address;
  size_t bytes;
  size_t offset;
  uint32_t site, other_site;
  const char* name;
  char before[64];
  Fiber* by;
  unsigned other_thread;
};

struct Access {
  const char* address;
  size_t bytes;
  bool write;
  bool atomic;
  uint32_t site;
  Space space;
};

constexpr uint32_t kNamedSites = 1u << 31;  // from here on, sites that accesses name themselves
Site named_sites[256];
uint32_t named_site_count;

Shadow* shadows;  // one an argument, then the threadgroup memory's
Pending pending;

// The number of a site; too many share the last.
uint32_t number_of(const Site& site) {
  uint32_t i = 0;
  while (i < named_site_count && !(named_sites[i].line == site.line && named_sites[i].column == site.column &&
                                   strcmp(named_sites[i].file, site.file) == 0)) {
    i++;
  }
  if (i == sizeof(named_sites) / sizeof(*named_sites)) i--;
  if (i == named_site_count) named_sites[named_site_count++] = site;
  return kNamedSites + i;
}

Shadow make_shadow(size_t bytes, bool stamps) {
  Shadow shadow{static_cast<uint8_t*>(calloc(bytes + 1, 1)), nullptr, nullptr, nullptr};
  if (launch->traffic) shadow.readers = static_cast<uint32_t*>(calloc(bytes + 1, sizeof(uint32_t)));
  if (stamps) {
    shadow.reads = static_cast<Stamp*>(calloc(bytes + 1, sizeof(Stamp)));
    shadow.writes = static_cast<Stamp*>(calloc(bytes + 1, sizeof(Stamp)));
  }
  return shadow;
}

Stamp stamp_of(const Access& access) {
  const Builtins& b = current->builtins;
  const int memory = access.space == kThreadgroup;
  return {uint32_t(threadgroup_serial),
          uint16_t(b.index),
          kThread,
          access.atomic,
          threadgroup_barriers[memory],
          simdgroups[b.simdgroup].barriers[memory],
          access.site};
}

bool one_simdgroup(const Stamp& a, const Stamp& b) { return a.thread / kSimdWidth == b.thread / kSimdWidth; }

// Whether whoever left `earlier` is certain to have done so before `now`.
bool ordered(const Stamp& earlier, const Stamp& now) {
  if (earlier.scope == kNobody) return true;
  if (earlier.threadgroup != now.threadgroup || earlier.scope == kEverybody) return false;
  if (earlier.scope == kThread && earlier.thread == now.thread) return true;
  if (earlier.threadgroup_barriers != now.threadgroup_barriers) return true;
  return earlier.scope <= kOneSimdgroup && one_simdgroup(earlier, now) &&
         earlier.simdgroup_barriers != now.simdgroup_barriers;
}

// Records `now`; what it is not ordered after stays remembered by a wider scope.
void leave(Stamp& stamp, const Stamp& now) {
  const Stamp earlier = stamp;
  stamp = now;
  const bool since_barrier = earlier.scope == kThread && earlier.thread == now.thread &&
                             earlier.threadgroup == now.threadgroup &&
                             earlier.threadgroup_barriers == now.threadgroup_barriers;
  if (since_barrier || !ordered(earlier, now)) stamp.atomic = earlier.atomic && now.atomic;
  if (ordered(earlier, now)) return;
  if (earlier.threadgroup != now.threadgroup || earlier.scope == kEverybody) {
    stamp.scope = kEverybody;
  } else if (earlier.scope == kOneThreadgroup || !one_simdgroup(earlier, now)) {
    stamp.scope = kOneThreadgroup;
  } else {
    stamp.scope = kOneSimdgroup;
  }
}

void settle_pending() {
  if (pending.address == nullptr) return;
  if (memcmp(pending.address, pending.before, pending.bytes) != 0) {
    Fiber* now = current;
    current = pending.by;
    report(kRace, pending.site, pending.other_site, pending.name, long(pending.offset),
           "write of another value, not ordered after an access by thread %u", pending.other_thread);
    current = now;
  }
  pending.address = nullptr;
}

void judge_later(const Access& access, const char* name, size_t offset, const Stamp& other) {
  if (pending.address) return;  // an earlier byte of the same write
  pending = {access.address, access.bytes, offset, access.site, other.site, name, {}, current, other.thread};
  memcpy(pending.before, access.address, access.bytes);
}

void out_of_bounds(const Access& access, const char* name, int64_t offset, size_t size) {
  report(kOutOfBounds, access.site, 0, name, offset, "%s of %zu bytes at byte %ld of '%s' of %zu bytes",
         access.write ? "write" : "read", access.bytes, long(offset), name, size);
  stop();
}

// Reports what is wrong with an access to [offset, offset + bytes) of a buffer, and records it.
void inspect(const Access& access, Shadow& shadow, const char* name, size_t start, size_t offset) {
  const Stamp now = stamp_of(access);
  const long position = long(offset - start);
  if (access.write && shadow.writes == nullptr) {
    report(kReadOnly, access.site, 0, name, position, "write of %zu bytes to a read-only buffer", access.bytes);
    stop();
  }
  for (size_t i = offset; i < offset + access.bytes; i++) {
    uint8_t& flags = shadow.flags[i];
    if (launch->check && !access.write && !(flags & kInitialised)) {
      report(kUninitialised, access.site, 0, name, position, "read of %zu bytes, of which byte %zu was never written",
             access.bytes, i - start);
    }
    flags |= access.write ? kInitialised | kWritten : kRead;
    if (!launch->check || shadow.writes == nullptr) continue;
    Stamp& write = shadow.writes[i];
    Stamp& read = shadow.reads[i];
    const bool after_write = ordered(write, now) || (access.atomic && write.atomic);
    const bool after_reads = !access.write || ordered(read, now) || (access.atomic && read.atomic);
    if (!after_write || !after_reads) {
      const Stamp& other = after_write ? read : write;
      const bool forgivable = access.write && !access.atomic && access.bytes <= sizeof(pending.before);
      if (launch->allow_same_value && forgivable) {
        judge_later(access, name, size_t(position), other);
      } else {
        report(kRace, access.site, other.site, name, position, "%s not ordered after a %s by thread %u%s",
               access.write ? "write" : "read", after_write ? "read" : "write", other.thread,
               other.threadgroup == now.threadgroup ? "" : " of another threadgroup");
      }
    }
    leave(access.write ? write : read, now);
    if (access.atomic && access.write) leave(read, now);
  }
}

void access_threadgroup(const Access& access) {
  const long at = access.address - threadgroup_memory;
  const ThreadgroupRange* nearest = nullptr;
  for (uint32_t i = 0; i < threadgroup_range_count; i++) {
    const ThreadgroupRange& range = threadgroup_ranges[i];
    if (nearest == nullptr || at >= long(range.start)) nearest = &range;
  }
  if (nearest == nullptr) fail({"", 0, 0, ""}, "access to threadgroup memory, of which there is none");
  const long offset = at - long(nearest->start);
  if (offset < 0 || offset + access.bytes > nearest->bytes)
    out_of_bounds(access, nearest->name, offset, nearest->bytes);
  inspect(access, shadows[launch->count], nearest->name, nearest->start, size_t(at));
}

// `readers` are those of the bytes accessed.
void count(const Access& access, Traffic& traffic, uint32_t* readers) {
  (access.write ? traffic.written : traffic.read) += access.bytes;
  for (size_t i = 0; i < access.bytes && !access.write; i++) {
    traffic.read_by_threadgroups += readers[i] != uint32_t(threadgroup_serial);
    readers[i] = uint32_t(threadgroup_serial);
  }
}

void access_buffer(const Access& access) {
  Argument* argument = owner(access.address);
  if (argument == nullptr) {
    if (access.space == kConstant) return;  // a constant of the program
    report(kOutOfBounds, access.site, 0, "", 0, "%s of %zu bytes at %p, which no buffer is near",
           access.write ? "write" : "read", access.bytes, static_cast<const void*>(access.address));
    stop();
  }
  const long offset = access.address - static_cast<char*>(argument->address);
  if (offset < 0 || offset + access.bytes > argument->bytes)
    out_of_bounds(access, argument->name, offset, argument->bytes);
  const size_t index = size_t(argument - launch->arguments);
  if (launch->traffic) count(access, launch->traffic[index], shadows[index].readers + offset);
  inspect(access, shadows[index], argument->name, 0, size_t(offset));
}

void check(const Access& access, uint32_t alignment) {
  settle_pending();
  if (shadows == nullptr || access.bytes == 0) return;
  if (launch->check && reinterpret_cast<uintptr_t>(access.address) % alignment != 0) {
    const Argument* argument = owner(access.address);
    const char* base = argument ? static_cast<char*>(argument->address) : threadgroup_memory;
    report(kMisaligned, access.site, 0, argument ? argument->name : "threadgroup memory", access.address - base,
           "%s of %zu bytes needs an alignment of %u", access.write ? "write" : "read", access.bytes, alignment);
    stop();
  }
  if (access.space == kThreadgroup) {
    access_threadgroup(access);
  } else {
    access_buffer(access);
  }
}

}  // namespace

void checker_begin() {
  pending.address = nullptr;
  shadows = nullptr;
  if (!launch->check && !launch->traffic) return;
  shadows = static_cast<Shadow*>(calloc(launch->count + 1, sizeof(Shadow)));
  for (uint32_t i = 0; i < launch->count; i++) {
    const Argument& argument = launch->arguments[i];
    shadows[i] = make_shadow(argument.bytes, argument.writable);
    if (!argument.undefined) memset(shadows[i].flags, kInitialised, argument.bytes);
  }
  shadows[launch->count] = make_shadow(kThreadgroupMemory, true);
}

void checker_new_threadgroup_variable(size_t start, size_t bytes) {
  if (shadows == nullptr) return;
  Shadow& shadow = shadows[launch->count];
  memset(shadow.flags + start, 0, bytes);
  memset(shadow.reads + start, 0, bytes * sizeof(Stamp));
  memset(shadow.writes + start, 0, bytes * sizeof(Stamp));
}

void checker_resumed() { settle_pending(); }

void checker_end() {
  if (shadows == nullptr) return;
  for (uint32_t i = 0; i <= launch->count; i++) {
    if (i < launch->count && launch->traffic) {
      for (uint64_t byte = 0; byte < launch->arguments[i].bytes; byte++) {
        launch->traffic[i].unique_read += (shadows[i].flags[byte] & kRead) != 0;
        launch->traffic[i].unique_written += (shadows[i].flags[byte] & kWritten) != 0;
      }
    }
    free(shadows[i].flags);
    free(shadows[i].reads);
    free(shadows[i].writes);
    free(shadows[i].readers);
  }
  free(shadows);
  shadows = nullptr;
}

void atomic_access(const void* address, size_t bytes, bool write, const Site& site) {
  if (shadows == nullptr) return;
  const char* p = static_cast<const char*>(address);
  const bool in_threadgroup = p >= threadgroup_memory && p < threadgroup_memory + kThreadgroupMemory;
  check({p, bytes, write, true, number_of(site), in_threadgroup ? kThreadgroup : kDevice}, uint32_t(bytes));
}

extern "C" const Site* msl_named_site(uint32_t number) { return &named_sites[number - kNamedSites]; }

// What the compiler's own checks call. Each hands over a struct that starts with the place.
struct Place {
  const char* file;
  uint32_t line, column;
};
static void undefined(Kind kind, const Place* place, const char* what, uint64_t value) {
  const Site site{place->file, int(place->line), int(place->column), what};
  report(kind, number_of(site), 0, "", 0, "%s %ld", what, long(value));
}
extern "C" void __ubsan_handle_out_of_bounds(const Place* place, uint64_t index) {
  undefined(kOutOfBounds, place, "an array has no element", index);
}
extern "C" void __ubsan_handle_shift_out_of_bounds(const Place* place, uint64_t, uint64_t by) {
  undefined(kError, place, "shift by", by);
}
extern "C" void __ubsan_handle_divrem_overflow(const Place* place, uint64_t, uint64_t by) {
  undefined(kError, place, "integer division by", by);
  stop();
}

// What an instrumented kernel calls before each access.
#define MSL_ACCESS(name, write, space)                                                                 \
  extern "C" void msl_##name(const void* address, uint64_t bytes, uint32_t alignment, uint32_t site) { \
    check({static_cast<const char*>(address), bytes, write, false, site, space}, alignment);           \
  }
MSL_ACCESS(read_device, false, kDevice)
MSL_ACCESS(write_device, true, kDevice)
MSL_ACCESS(read_threadgroup, false, kThreadgroup)
MSL_ACCESS(write_threadgroup, true, kThreadgroup)
MSL_ACCESS(read_constant, false, kConstant)

}  // namespace msl

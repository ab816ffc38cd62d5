// What an entry point is made of: each argument converts to whatever type the kernel's parameter has.
#pragma once
#include "types.h"

namespace msl {

// `threadgroup T name[N];` is rewritten to a reference that this returns; `tag` tells one variable from another.
template <class T, int tag>
inline threadgroup T& threadgroup_memory(const char* name) {
  static ThreadgroupVariable variable;
  return *(threadgroup T*)(uintptr_t)threadgroup_variable(&variable, sizeof(T), name);
}

inline uint32_t simdgroups_in(const uint32_t size[3]) {
  return (size[0] * size[1] * size[2] + kSimdWidth - 1) / kSimdWidth;
}

class Pointer {
 public:
  explicit Pointer(const Argument& argument) : address_(argument.address) {}
  explicit Pointer(void* address) : address_(address) {}
  template <class T>
  operator T*() const {
    return (T*)(uintptr_t)address_;
  }

 private:
  void* address_;
};

class Reference {
 public:
  explicit Reference(const Argument& argument) : argument_(argument) {}
  template <class T>
  operator T&() const {
    // One that the launch leaves out, as its function constant allows, is there to be named but not to be used.
    static char absent[sizeof(T)];
    if (argument_.data == nullptr) return *(T*)(uintptr_t)absent;
    if (argument_.bytes < sizeof(T)) {
      fail({"", 0, 0, "launch"}, "argument '%s' needs %zu bytes, found %zu", argument_.name, sizeof(T),
           size_t(argument_.bytes));
    }
    return *(T*)(uintptr_t)argument_.address;
  }

 private:
  const Argument& argument_;
};

class Builtin {
 public:
  explicit Builtin(uint32_t value) : value_{value, 0, 0} {}
  explicit Builtin(const uint32_t* value) : value_{value[0], value[1], value[2]} {}
  template <class T>
  operator T() const {
    if constexpr (metal::is_integral_v<T>) {
      return T(value_[0]);
    } else {
      T result;
      for (int i = 0; i < __builtin_vectorelements(T); i++) result[i] = value_[i];
      return result;
    }
  }

 private:
  uint32_t value_[3];
};

}  // namespace msl

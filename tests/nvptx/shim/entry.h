// What an entry point is made of: each argument converts to whatever type the kernel's parameter has.
#pragma once
#include "simdgroup.h"

namespace msl {

class Pointer {
 public:
  explicit Pointer(device char* address) : address_(address) {}
  template <class T>
  operator device T*() const {
    return (device T*)address_;
  }

 private:
  device char* address_;
};

class ConstantPointer {
 public:
  explicit ConstantPointer(constant const char* address) : address_(address) {}
  template <class T>
  operator constant T*() const {
    return (constant T*)address_;
  }
  template <class T>
  operator constant T&() const {
    return *(constant T*)address_;
  }

 private:
  constant const char* address_;
};

class ThreadgroupPointer {
 public:
  explicit ThreadgroupPointer(threadgroup char* address) : address_(address) {}
  template <class T>
  operator threadgroup T*() const {
    return (threadgroup T*)address_;
  }

 private:
  threadgroup char* address_;
};

class Builtin {
 public:
  explicit Builtin(uint value) : value_{value, 0, 0} {}
  explicit Builtin(metal::uint3 value) : value_(value) {}
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
  metal::uint3 value_;
};

namespace {
// `threadgroup T name[N];` is rewritten to a reference that this returns; `tag` tells one variable from another.
template <class T, int tag>
inline threadgroup T& threadgroup_memory(const char*) {
  static threadgroup T variable;
  return variable;
}
}  // namespace

}  // namespace msl

// AlignedArray: scratch memory of the backend: 64-byte aligned, not initialised (so that pages a
// model never touches are never resident), allocated once. Move-only. Thread-compatible.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace moraine {

template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}))) {}
  T* data() const { return data_.get(); }
  T& operator[](size_t index) const { return data_.get()[index]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace moraine

// A tensor: a pointer, a shape and an element type. A small value; contiguous; it owns nothing (an
// arena or a parameter store does) and has no gradient field (the tape knows gradients).
#pragma once

#include <cstddef>

#include "engine/shape.h"
#include "kernels/base/dtype.h"

namespace fm {

struct Tensor {
  void* data = nullptr;
  Shape shape;
  DType dtype = DType::f32;

  std::int64_t count() const { return shape.count(); }
  std::size_t bytes() const { return static_cast<std::size_t>(count()) * size_of(dtype); }
  explicit operator bool() const { return data != nullptr; }

  // The elements as T; T must be the tensor's type.
  template <class T>
  T* as() const {
    FM_CHECK(dtype_of<T>() == dtype, "[tensor] asked for ", name_of(dtype_of<T>()), ", got ",
             *this);
    return static_cast<T*>(data);
  }
  // The same memory in another shape of as many elements.
  Tensor view(const Shape& other) const {
    FM_CHECK(other.count() == count(), "[view] the number of elements must stay, got ", shape,
             " as ", other);
    return {data, other, dtype};
  }

  friend std::ostream& operator<<(std::ostream& out, const Tensor& t) {
    return out << t.shape << ' ' << name_of(t.dtype);
  }
};

// Columns [begin, begin + width) of a tensor's rows: operands that are parts of a wider product are
// used in place.
struct Columns {
  Tensor of;
  std::int64_t begin, width;

  Columns(const Tensor& whole, std::int64_t first, std::int64_t count)
      : of(whole), begin(first), width(count) {
    FM_CHECK(first >= 0 && count > 0 && first + count <= whole.shape.back(), "[columns] ", first,
             " to ", first + count, " must lie within ", whole);
  }
  std::int64_t stride() const { return of.shape.back(); }
  template <class T>
  T* as() const {
    return of.as<T>() + begin;
  }
  // The same columns of another tensor of that shape: a gradient's part.
  Columns in(const Tensor& other) const { return Columns(other, begin, width); }
};

}  // namespace fm

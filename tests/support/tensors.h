// Tensors and parameters in tests: values in and out, as doubles.
#pragma once

#include "engine/params.h"
#include "tests/support/arrays.h"

namespace fm::test {

namespace detail {
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f.template operator()<double>();
    case DType::f16: return f.template operator()<f16>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::i32: return f.template operator()<std::int32_t>();
    default: return f.template operator()<float>();
  }
}
}  // namespace detail

inline void write(Queue& queue, const Tensor& tensor, const Values& values) {
  FM_CHECK(tensor.count() == static_cast<std::int64_t>(values.size()), "[test] ", values.size(),
           " values for ", tensor);
  detail::with_dtype(tensor.dtype, [&]<class T>() {
    std::vector<T> typed(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) typed[i] = convert<T>(values[i]);
    std::visit([&](auto& q) { upload(q, tensor.data, typed.data(), tensor.bytes()); }, queue);
  });
}

inline Values read(Queue& queue, const Tensor& tensor) {
  return detail::with_dtype(tensor.dtype, [&]<class T>() {
    std::vector<T> typed(static_cast<std::size_t>(tensor.count()));
    std::visit([&](auto& q) { download(q, typed.data(), tensor.data, tensor.bytes()); }, queue);
    Values values(typed.size());
    for (std::size_t i = 0; i < typed.size(); ++i) values[i] = restore(typed[i]);
    return values;
  });
}

// A tensor of the context's step with these values.
inline Tensor tensor_of(Context& context, const Shape& shape, DType dtype, const Values& values) {
  const Tensor tensor = context.make(shape, dtype);
  write(context.queue, tensor, values);
  return tensor;
}

// Adds noise to every weight, so that those that start at zero or one take part.
inline void perturb(Queue& queue, ParamStore& params, double scale, unsigned seed = 1) {
  for (const Parameter& p : params.all()) {
    Values values = read(queue, p.master);
    const Values noise = normals(p.shape.count(), seed + 100 * p.index, scale);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += noise[i];
    write(queue, p.master, values);
  }
  params.refresh_compute();
}

// Whether nothing is taken: a block as large as the highest point so far fits below it.
inline bool is_empty(Arena& arena) {
  const std::size_t peak = arena.peak();
  try {
    arena.give_back(arena.take(peak));
  } catch (const Error&) {
    return false;
  }
  return arena.peak() <= std::max<std::size_t>(peak, 256);
}

}  // namespace fm::test

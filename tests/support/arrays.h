// Test data: random values, rounding to a type, and arrays on a queue's device.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/base/queue.h"

namespace fm::test {

using Values = std::vector<double>;
using Results = std::map<std::string, Values>;  // an op's outputs by name

inline Values normals(std::int64_t count, unsigned seed, double scale = 1, double mean = 0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> draw(mean, scale);
  Values values(static_cast<std::size_t>(count));
  for (double& x : values) x = draw(engine);
  return values;
}

template <class T>
T convert(double x) {
  if constexpr (std::is_same_v<T, f16>) return to_f16(static_cast<float>(x));
  else if constexpr (std::is_same_v<T, bf16>) return to_bf16(static_cast<float>(x));
  else return static_cast<T>(x);
}
template <class T>
double restore(T x) {
  if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>) return to_float(x);
  else return static_cast<double>(x);
}

// The values that T can hold nearest to the given ones.
template <class T>
Values round_to(Values values) {
  for (double& x : values) x = restore(convert<T>(x));
  return values;
}

// An array of T in the memory of a queue's device.
template <class T, class Q>
class Array {
 public:
  // Poisoned: every byte 0xff, a NaN in every floating type, so that an element nobody writes is
  // seen.
  Array(Q& queue, std::int64_t count) : queue_(&queue), count_(static_cast<std::size_t>(count)) {
    memory_ = static_cast<T*>(allocate(queue, bytes()));
    fill_bytes(queue, memory_, 0xff, bytes());
  }
  Array(Q& queue, const Values& values) : Array(queue, static_cast<std::int64_t>(values.size())) {
    std::vector<T> host(count_);
    for (std::size_t i = 0; i < count_; ++i) host[i] = convert<T>(values[i]);
    upload(queue, memory_, host.data(), bytes());
  }
  ~Array() { release(*queue_, memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  operator T*() const { return memory_; }
  T* data() const { return memory_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

  Values values() const {
    std::vector<T> host(count_);
    download(*queue_, host.data(), memory_, bytes());
    Values values(count_);
    for (std::size_t i = 0; i < count_; ++i) values[i] = restore(host[i]);
    return values;
  }

 private:
  Q* queue_;
  std::size_t count_;
  T* memory_;
};

// Scratch memory of a number of bytes, poisoned.
template <class Q>
using Bytes = Array<std::uint8_t, Q>;

}  // namespace fm::test

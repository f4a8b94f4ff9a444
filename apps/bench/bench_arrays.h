// The arrays of one timed call, on a queue's device: made, filled, poisoned, read back.
//
// Inputs are normals, rounded to what a narrower type can hold where asked, so that a reference in
// double reads the same values. Long arrays repeat kPeriod values.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "engine/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace fm {

using Call = std::function<void()>;  // enqueues the work that is timed

struct Normal {
  double deviation = 1, mean = 0;
};

// What of an output a call writes: `count` rows of `width` elements, `stride` elements apart.
struct Rows {
  std::int64_t count, width, stride;
};

class BenchArrays {
 public:
  static constexpr std::int64_t kPeriod = 1 << 18;

  // compute: the type of the arrays; rounded: the type whose values the inputs have.
  BenchArrays(const Queue& queue, DType compute, DType rounded)
      : queue_(queue), compute_(compute), rounded_(rounded) {}
  BenchArrays(const BenchArrays&) = delete;  // calls point into it
  BenchArrays& operator=(const BenchArrays&) = delete;

  Queue& queue() { return queue_; }
  DType compute() const { return compute_; }

  // f.operator()<T>(queue) for the compute type and the queue; it returns what is called.
  template <class F>
  Call typed(F&& f) {
    return std::visit([&](auto& queue) { return with_type(queue, f); }, queue_);
  }

  // T is the compute type throughout.
  template <class T>
  const T* input(std::int64_t count, Normal values = {}) {
    return static_cast<const T*>(normals(dtype_of<T>(), rounded_, count, values).data());
  }
  template <class T>
  const acc_t<T>* wide_input(std::int64_t count, Normal values = {}) {
    return static_cast<const acc_t<T>*>(
        normals(dtype_of<acc_t<T>>(), DType::f32, count, values).data());
  }
  // Values as they are: integers, masks, states; or floats, as acc_t<T>.
  template <class X>
  const X* values(const std::vector<X>& values) {
    return static_cast<const X*>(uploaded(values.data(), values.size() * sizeof(X)).data());
  }
  template <class T>
  const acc_t<T>* wide_values(const std::vector<float>& values) {
    return this->values(std::vector<acc_t<T>>(values.begin(), values.end()));
  }

  // Overwritten by the call, and compared; poisoned (every byte 0xff: a NaN) before it.
  template <class X>
  X* output(const std::string& name, const Rows& rows) {
    return static_cast<X*>(written(name, dtype_of<X>(), rows).data());
  }
  template <class X>
  X* output(const std::string& name, std::int64_t count) {
    return output<X>(name, {1, count, count});
  }
  // Read and written by the call, and compared; restored before it.
  template <class T>
  T* inout(const std::string& name, std::int64_t count, Normal values = {}) {
    return read_and_written<T>(name, count, rounded_, values);
  }
  template <class T>
  acc_t<T>* wide_inout(const std::string& name, std::int64_t count, Normal values = {}) {
    return read_and_written<acc_t<T>>(name, count, DType::f32, values);
  }
  // The same for one plain value, not compared.
  template <class X>
  X* state(const X& value) {
    const Buffer& data = uploaded(&value, sizeof value);
    restored(data);
    return data.as<X>();
  }
  // What an array holds now, an output's too, it holds again before every call.
  void restore(const void* array);

  // Not compared: workspaces, and what an earlier call saves for this one.
  template <class X>
  X* scratch(std::int64_t count) {
    return made(static_cast<std::size_t>(count) * sizeof(X)).as<X>();
  }
  void* workspace(std::size_t bytes) { return bytes ? made(bytes).data() : nullptr; }

  // Poisons the outputs and restores what is read and written.
  void begin();

  struct Values {
    std::string name;
    std::vector<double> values;
  };
  // The outputs, without what lies between their rows.
  std::vector<Values> read();

  // A number that depends on every bit of the outputs, and the name of the first one with a value
  // that is not finite (empty: none). Reads on all threads of `host`.
  struct Fingerprint {
    std::uint64_t bits = 0;
    std::string not_finite;
  };
  Fingerprint fingerprint(CpuQueue& host);

  const std::deque<Buffer>& buffers() const { return buffers_; }

 private:
  template <class Q, class F>
  Call with_type(Q& queue, F& f) {
    if constexpr (std::is_same_v<Q, CpuQueue>) {
      if (compute_ == DType::f64) return f.template operator()<double>(queue);
      return f.template operator()<float>(queue);
    } else {
      if (compute_ == DType::f16) return f.template operator()<f16>(queue);
      if (compute_ == DType::bf16) return f.template operator()<bf16>(queue);
      return f.template operator()<float>(queue);
    }
  }

  struct Output {
    std::string name;
    DType dtype;
    Rows rows;
    void* data;
  };
  struct Restored {
    void* data;
    const void* pristine;
    std::size_t bytes;
  };

  template <class X>
  X* read_and_written(const std::string& name, std::int64_t count, DType rounded, Normal values) {
    const Buffer& data = normals(dtype_of<X>(), rounded, count, values);
    outputs_.push_back({name, dtype_of<X>(), {1, count, count}, data.data()});
    restored(data);
    return data.as<X>();
  }

  const Buffer& made(std::size_t bytes);
  const Buffer& uploaded(const void* from, std::size_t bytes);
  const Buffer& normals(DType stored, DType rounded, std::int64_t count, Normal values);
  const Buffer& written(const std::string& name, DType dtype, const Rows& rows);
  void restored(const Buffer& data);
  std::vector<std::byte> bytes_of(const Output& output);
  void copy_bytes(void* to, const void* from, std::size_t bytes);

  Queue queue_;
  DType compute_, rounded_;
  std::deque<Buffer> buffers_;  // which keeps its elements where they are
  std::vector<Output> outputs_;
  std::vector<Restored> restored_;
  std::uint32_t drawn_ = 0;
};

}  // namespace fm

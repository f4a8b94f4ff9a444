// Owned memory on a queue's device, for things that live as long as a run: parameters, arenas, data
// sets.
#pragma once

#include <utility>

#include "kernels/base/queue.h"

namespace fm {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Queue& queue, std::size_t bytes) : queue_(queue), bytes_(bytes) {
    data_ = std::visit([&](auto& q) { return allocate(q, bytes); }, queue_);
  }
  ~Buffer() {
    if (data_) std::visit([&](auto& q) { release(q, data_); }, queue_);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  void zero() {
    std::visit([&](auto& q) { fill_bytes(q, data_, 0, bytes_); }, queue_);
  }
  void upload_from(const void* host, std::size_t bytes) {
    std::visit([&](auto& q) { upload(q, data_, host, bytes); }, queue_);
  }
  void download_to(void* host, std::size_t bytes) {
    std::visit([&](auto& q) { download(q, host, data_, bytes); }, queue_);
  }

 private:
  Queue queue_{CpuQueue(1)};
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace fm

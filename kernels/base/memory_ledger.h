// What a queue's copies have allocated together: now, and at the most.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <unordered_map>

namespace fm {

class MemoryLedger {
 public:
  void add(void* memory, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    sizes_[memory] = bytes;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
  }
  void remove(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(memory);
    if (found == sizes_.end()) return;
    in_use_ -= found->second;
    sizes_.erase(found);
  }
  std::size_t in_use() const {
    const std::lock_guard lock(mutex_);
    return in_use_;
  }
  std::size_t peak() const {
    const std::lock_guard lock(mutex_);
    return peak_;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> sizes_;
  std::size_t in_use_ = 0, peak_ = 0;
};

}  // namespace fm

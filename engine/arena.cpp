#include "engine/arena.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace fm {
namespace {
constexpr std::size_t kAlignment = 256;
}

Arena::Arena(const Queue& queue, std::size_t bytes) : memory_(queue, std::max(bytes, kAlignment)) {}

// A planning arena's addresses start at one alignment, so that none of them is null.
char* Arena::base() const {
  return planning() ? reinterpret_cast<char*>(kAlignment) : memory_.as<char>();
}

void* Arena::take(std::size_t bytes) {
  const std::size_t size =
      (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  std::size_t at = 0;
  for (const auto& [offset, length] : taken_) {
    if (offset - at >= size) break;
    at = offset + length;
  }
  if (!planning() && at + size > memory_.bytes())
    fail(Fault::device, "[arena] a step needs more memory than was planned: ", at + size, " of ",
         memory_.bytes(), " bytes");
  taken_.emplace(at, size);
  peak_ = std::max(peak_, at + size);
  return base() + at;
}

void Arena::give_back(void* block) {
  if (!block) return;
  const auto found = taken_.find(static_cast<std::size_t>(static_cast<char*>(block) - base()));
  FM_CHECK(found != taken_.end(), "[arena] a block that was not taken is given back");
  taken_.erase(found);
}

void Arena::reset() {
  taken_.clear();
}

}  // namespace fm

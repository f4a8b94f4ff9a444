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
  for (const auto& [offset, block] : taken_) {
    if (offset - at >= size) break;
    at = offset + block.size;
  }
  if (!planning() && at + size > memory_.bytes())
    fail(Fault::device, "[arena] a step needs more memory than was planned: ", at + size, " of ",
         memory_.bytes(), " bytes");
  taken_.emplace(at, Block{size});
  peak_ = std::max(peak_, at + size);
  return base() + at;
}

Arena::Blocks::iterator Arena::find(void* block) {
  const auto found = taken_.find(static_cast<std::size_t>(static_cast<char*>(block) - base()));
  FM_CHECK(found != taken_.end() && !(found->second.given_back && found->second.keepers == 0),
           "[arena] a block that was not taken is given back");
  return found;
}

void Arena::end(Blocks::iterator block) {
  if (block->second.keepers == 0 && holds_ == 0) taken_.erase(block);
}

void Arena::give_back(void* block) {
  if (!block) return;
  const auto found = find(block);
  FM_CHECK(!found->second.given_back, "[arena] a block is given back twice");
  found->second.given_back = true;
  end(found);
}

void Arena::keep(void* block) {
  if (block) ++find(block)->second.keepers;
}

void Arena::let_go(void* block) {
  if (!block) return;
  const auto found = find(block);
  --found->second.keepers;
  if (found->second.given_back) end(found);
}

void Arena::hold() {
  ++holds_;
}

void Arena::release() {
  if (--holds_ > 0) return;
  std::erase_if(taken_, [](const auto& entry) {
    return entry.second.given_back && entry.second.keepers == 0;
  });
}

void Arena::reset() {
  taken_.clear();
  holds_ = 0;
}

}  // namespace fm

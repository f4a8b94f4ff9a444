// Memory of one step: blocks taken and given back within it, all of them forgotten by reset().
//
// First fit by address over a list of free ranges, so that the same sequence of calls gives the
// same addresses every step (a captured graph needs that). A planning arena hands out addresses
// with no memory behind them: it is how the size of the real one is found, to the byte, before
// anything is allocated.
#pragma once

#include <cstddef>
#include <map>

#include "engine/buffer.h"

namespace fm {

class Arena {
 public:
  Arena() = default;  // planning
  Arena(const Queue& queue, std::size_t bytes);

  // 256-byte aligned. Throws Fault::device where the arena is too small (a planning arena never
  // is).
  void* take(std::size_t bytes);
  // Of a block that was taken, its start; nullptr is ignored.
  void give_back(void* block);
  // A kept block that is given back stays taken until whoever kept it lets go.
  void keep(void* block);
  void let_go(void* block);
  // From hold() to its release() nothing that is given back is taken again. They nest.
  void hold();
  void release();
  void reset();

  bool planning() const { return memory_.data() == nullptr; }
  std::size_t peak() const { return peak_; }  // the highest end of a block so far
  std::size_t capacity() const { return memory_.bytes(); }

 private:
  struct Block {
    std::size_t size;
    int keepers = 0;
    bool given_back = false;
  };
  using Blocks = std::map<std::size_t, Block>;  // by offset

  char* base() const;
  Blocks::iterator find(void* block);
  void end(Blocks::iterator block);

  Buffer memory_;
  std::size_t peak_ = 0;
  Blocks taken_;
  int holds_ = 0;
};

}  // namespace fm

#include "engine/arena.h"

#include <random>

#include "tests/support/cuda.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

constexpr std::size_t kUnit = 256;

// A step of random sizes and lifetimes. Returns the offsets of its blocks from the first one.
std::vector<std::ptrdiff_t> random_step(Arena& arena) {
  std::mt19937 draw(5);
  std::vector<char*> live;
  std::vector<std::ptrdiff_t> offsets;
  char* first = nullptr;
  for (int i = 0; i < 400; ++i) {
    if (live.size() > 3 && draw() % 2) {
      const std::size_t which = draw() % live.size();
      arena.give_back(live[which]);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      live.push_back(static_cast<char*>(arena.take(draw() % 5000)));
      if (!first) first = live.back();
      offsets.push_back(live.back() - first);
    }
  }
  return offsets;
}

// The offset of a block from the arena's first address, which `first` is.
std::size_t from(const void* first, const void* block) {
  return static_cast<std::size_t>(static_cast<const char*>(block) -
                                  static_cast<const char*>(first));
}

void check_plan(const Queue& queue) {
  Arena plan;
  REQUIRE(plan.planning());
  const std::vector<std::ptrdiff_t> planned = random_step(plan);

  Arena real(queue, plan.peak());
  CHECK(!real.planning());
  CHECK(real.capacity() == plan.peak());
  for (int step = 0; step < 3; ++step) {
    real.reset();
    CHECK(random_step(real) == planned);
    CHECK(real.peak() == plan.peak());
  }

  Arena small(queue, plan.peak() - 1);
  expect_fault(Fault::device,
               concat("needs more memory than was planned: ", plan.peak(), " of ", plan.peak() - 1,
                      " bytes"),
               [&] { random_step(small); });
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("arena: what was planned fits to the byte, at the same addresses every step") {
    check_plan(CpuQueue(1));
  }

  TEST_CASE("arena: first fit, and freed neighbours become one hole") {
    Arena arena(CpuQueue(1), 8 * kUnit);
    void* a = arena.take(kUnit);
    void* b = arena.take(1);  // a whole unit, too
    void* c = arena.take(2 * kUnit);
    void* d = arena.take(kUnit + 1);
    CHECK(reinterpret_cast<std::uintptr_t>(a) % kUnit == 0);
    CHECK(from(a, b) == kUnit);
    CHECK(from(a, c) == 2 * kUnit);
    CHECK(from(a, d) == 4 * kUnit);
    CHECK(arena.peak() == 6 * kUnit);

    arena.give_back(b);
    CHECK(from(a, arena.take(2 * kUnit)) == 6 * kUnit);  // the hole of one unit is too small
    expect_fault(Fault::device, "[arena]", [&] { arena.take(2 * kUnit); });
    arena.give_back(c);
    CHECK(arena.take(3 * kUnit) == b);  // b and c together
    arena.give_back(a);
    CHECK(arena.take(0) == a);  // even nothing has an address of its own
    CHECK(arena.peak() == 8 * kUnit);
  }

  TEST_CASE("arena: a kept block stays taken after it was given back, until all let go") {
    Arena arena;
    void* a = arena.take(kUnit);
    arena.keep(a);
    arena.keep(a);
    arena.give_back(a);
    CHECK(from(a, arena.take(kUnit)) == kUnit);
    expect_fault(Fault::usage, "given back twice", [&] { arena.give_back(a); });
    arena.let_go(a);
    CHECK(from(a, arena.take(kUnit)) == 2 * kUnit);
    arena.let_go(a);
    CHECK(arena.take(kUnit) == a);
    arena.keep(a);
    arena.let_go(a);  // not given back: still taken
    CHECK(from(a, arena.take(kUnit)) == 3 * kUnit);
  }

  TEST_CASE("arena: nothing that is given back is taken again before release") {
    Arena arena;
    void* a = arena.take(kUnit);
    void* b = arena.take(kUnit);
    void* c = arena.take(kUnit);
    arena.keep(b);
    arena.hold();
    arena.give_back(a);
    arena.give_back(b);
    CHECK(from(a, arena.take(kUnit)) == 3 * kUnit);
    arena.release();
    CHECK(arena.take(kUnit) == a);
    CHECK(from(a, arena.take(kUnit)) == 4 * kUnit);  // b is kept, c is in use
    arena.let_go(b);
    arena.give_back(c);
    CHECK(arena.take(2 * kUnit) == b);
  }

  TEST_CASE("arena: reset forgets the blocks, not the peak") {
    Arena arena;
    void* a = arena.take(3 * kUnit);
    CHECK(a != nullptr);
    arena.reset();
    CHECK(arena.peak() == 3 * kUnit);
    CHECK(is_empty(arena));
    CHECK(arena.take(1) == a);
  }

  TEST_CASE("arena: only what was taken is given back") {
    Arena arena(CpuQueue(1), 4 * kUnit);
    char* a = static_cast<char*>(arena.take(2 * kUnit));
    arena.give_back(nullptr);
    expect_fault(Fault::usage, "a block that was not taken", [&] { arena.give_back(a + kUnit); });
    arena.give_back(a);
    expect_fault(Fault::usage, "a block that was not taken", [&] { arena.give_back(a); });
    Arena empty(CpuQueue(1), 0);
    CHECK(empty.take(0) != nullptr);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("arena: what was planned fits on the device, too") {
    check_plan(cuda_queue());
  }
}
#endif

}  // namespace fm::test

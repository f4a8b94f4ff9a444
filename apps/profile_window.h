// The steps of a run that a profiler is to see.
#pragma once

#include <cstdint>
#include <string>

#include "engine/profile.h"
#include "kernels/base/queue.h"

namespace fm {

// Steps [start, start + count), counted from 0; none where count is 0.
struct ProfileSteps {
  std::uint64_t start = 0, count = 0;
  bool contains(std::uint64_t step) const { return step >= start && step - start < count; }
};

// "START:STEPS", as in 100:5; an empty text is no steps. Throws Fault::usage for anything else.
ProfileSteps profile_steps(const std::string& text);

// While it lives, the window is open: profilers that wait for cudaProfilerStart record, and there
// is an NVTX range "profile". Waits for the queue's work on both sides, so that what is recorded is
// what was enqueued in between.
class ProfileWindow {
 public:
  explicit ProfileWindow(const Queue& queue);
  ~ProfileWindow();
  ProfileWindow(const ProfileWindow&) = delete;
  ProfileWindow& operator=(const ProfileWindow&) = delete;

 private:
  Queue queue_;
  ProfileRange range_{"profile"};
};

}  // namespace fm

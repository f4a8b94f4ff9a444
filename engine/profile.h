// Named ranges for Nsight Systems, in the NVTX domain `fm`: step (data, forward, block, backward,
// optimizer), sample (forward, block), plan (the rehearsal that finds a step's memory; the ranges
// in it launch nothing), profile (--profile's window). Nothing in a build without FM_NVTX.
#pragma once

#if FM_NVTX
#include <nvtx3/nvtx3.hpp>
#endif

namespace fm {

#if FM_NVTX
struct ProfileDomain {
  static constexpr const char* name = "fm";
};
class ProfileRange {
 public:
  explicit ProfileRange(const char* name) : range_(name) {}

 private:
  nvtx3::scoped_range_in<ProfileDomain> range_;
};
#else
class ProfileRange {
 public:
  explicit ProfileRange(const char*) {}
  ~ProfileRange() {}  // a destructor, so that an unused range is no warning
};
#endif

}  // namespace fm

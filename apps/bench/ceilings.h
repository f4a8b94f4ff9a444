// What a machine can do at the most, measured, and the floor that follows for a computation.
#pragma once

#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "engine/io/fields.h"
#include "kernels/base/cases.h"

namespace fm {

struct CopyPoint {
  double bytes, seconds;  // read and written together, from cold caches; the fastest way
};

struct Ceilings {
  std::vector<CopyPoint> copy;  // by bytes, ascending: short ones show what a launch costs
  double flops = 0;             // a second, in float, two a multiply-add
  double specials = 0;          // a second: exponentials
  double matrix_flops = 0;      // a second, of a large matrix product in the compute type
  // CPU: one set of units does arithmetic of every kind, so that the times of the kinds add up.
  // CUDA: the kinds run side by side, so that the longest binds.
  bool shared_units = false;

  double copy_rate() const { return copy.back().bytes / copy.back().seconds; }
  // The time a copy of as many bytes takes, between the measured ones on a line.
  double copy_seconds(double bytes) const;
};

Ceilings measure_ceilings(Queue& queue, DType compute);
// Clock of a core under load (on the CPU: as the system says it); 0: not known.
double measure_clock_mhz(Queue& queue);
Json to_json(const Ceilings&);

// The least time for `work`, and what sets it: "memory", "launch" (bytes so few that the time of
// an empty kernel rules), "fma", "ex2", "matrix"; on the CPU "arithmetic" for the last three.
struct Floor {
  double seconds;
  std::string limit;
};
Floor floor_of(const Work& work, const Ceilings& ceilings);

}  // namespace fm

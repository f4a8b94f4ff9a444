// fmsample --viewer: the trajectories of any set of checkpoints as a page.
#pragma once

#include "apps/sample_run.h"

namespace fm {

// Class-conditional checkpoints are drawn for each of their first ten classes (or --label alone),
// the others from noise alone; all start from the same noises. Writes the page and prints its path
// on stdout. Throws Error; Interrupted on a signal.
void run_viewer(const SampleOptions& options);

}  // namespace fm

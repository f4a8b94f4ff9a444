// The first kernel of a queue that waits for another kernel's beginning.
#pragma once

#include "kernels/base/queue.h"

namespace fm {

// Does nothing, in a block that wants room of its own. Only a kernel may wait for a kernel's
// beginning; what follows it on the queue, fills and copies too, waits for its end.
void begin_beside(CudaQueue& side);

}  // namespace fm

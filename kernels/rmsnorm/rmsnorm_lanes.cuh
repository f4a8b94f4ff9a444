// The path of rmsnorm for segments of up to 8 vectors of 16 bytes (the scan's dt, B and C): each
// element is read once and kept in registers. rmsnorm_cuda.cu takes it where the shape allows, and
// its own kernels, which loop over a segment, elsewhere.
#pragma once

#include "kernels/rmsnorm/rmsnorm.h"

namespace fm {

// Return false, having launched nothing, where the shape or the alignment does not allow it.
// Backward writes the pieces' partial sums to the workspace, [pieces, weights()].
template <class T>
bool rmsnorm_forward_lanes(CudaQueue&, const RmsNormForward<T>&);
template <class T>
bool rmsnorm_backward_lanes(CudaQueue&, const RmsNormBackward<T>&);

}  // namespace fm

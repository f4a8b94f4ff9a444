// Images to tokens and back: [B, C, H, W] <-> [B, L, C p p], L = (H/p)(W/p) patches in raster
// order; inside a token: channel, row, column. A pure permutation, so each is the other's gradient.
//
// From and To are double on the CPU in fp64, otherwise float, f16 or bf16 (CPU: float).
#pragma once

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct PatchShape {
  int batch, channels, height, width, patch;  // patch divides height and width
};

template <class From, class To>
struct Patchify {
  PatchShape shape;
  const From* image;
  To* tokens;
};

template <class From, class To>
struct Unpatchify {
  PatchShape shape;
  const From* tokens;
  To* image;
};

// <double, double> and <float, float> on the CPU; <float, float | f16 | bf16> on CUDA.
template <class From, class To>
void patchify(CpuQueue&, const Patchify<From, To>&);
template <class From, class To>
void patchify(CudaQueue&, const Patchify<From, To>&);
// <double, double> and <float, float> on the CPU; <float, float> on CUDA.
template <class From, class To>
void unpatchify(CpuQueue&, const Unpatchify<From, To>&);
template <class From, class To>
void unpatchify(CudaQueue&, const Unpatchify<From, To>&);

}  // namespace fm

// The end of a sampled velocity in one kernel: the last branch's sum, LayerNorm, modulation, the
// linear layer to patches, and patches to an image,
//   v = unpatchify((LN(x + gate f) (1 + scale) + shift) w^T + bias).
// kernels/residual_norm, kernels/matmul and kernels/patchify have the same in three and the
// gradients. Per token a few outputs are all there is to a product, and the sum and the normalised
// tokens need not reach memory. Source: Peebles and Xie 2023 (DiT), section 3.2.
//
// CUDA only; velocity_head_fits says for which shapes. X, the type of the residual stream, is
// acc_t<T> or T; the sum is rounded to it. Statistics and sums are in acc_t<T>.
#pragma once

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"
#include "kernels/patchify/patchify.h"
#include "kernels/residual_norm/residual_norm.h"

namespace fm {

template <class T, class X>
struct VelocityHeadForward {
  ResidualNormShape norm;  // strides may be 0: all images share a row
  PatchShape patches;
  const X* x;      // [B, L, width]
  const T* f;      // [B, L, width]
  const T* gate;   // [B, width]
  const T* shift;  // [B, width]
  const T* scale;  // [B, width]
  const T* w;      // [C p p, width]
  const T* bias;   // [C p p]
  acc_t<T>* v;     // [B, C, H, W]
};

#if FM_CUDA
// Whether the kernel takes this shape: a width of at most 512 and patches of at most 16 elements.
bool velocity_head_fits(const ResidualNormShape&, const PatchShape&);

template <class T, class X>
void velocity_head_forward(CudaQueue&, const VelocityHeadForward<T, X>&);
#endif

}  // namespace fm

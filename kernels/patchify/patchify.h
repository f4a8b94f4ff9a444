// Images to tokens and back, and to embedded tokens: [B, C, H, W] <-> [B, L, C p p], L = (H/p)(W/p)
// patches in raster order; inside a token: channel, row, column. A pure permutation, so each is the
// other's gradient.
//
// From and To are double on the CPU in fp64, otherwise float, f16 or bf16 (CPU: float).
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct PatchShape {
  int batch, channels, height, width, patch;  // patch divides height and width
};

// Throws where a shape is outside the contract. An image has fewer than 2^31 elements.
inline void check_shape(const PatchShape& s) {
  FM_CHECK(s.batch > 0 && s.channels > 0 && s.height > 0 && s.width > 0 && s.patch > 0,
           "[patchify] sizes must be positive, got [", s.batch, ", ", s.channels, ", ", s.height,
           ", ", s.width, "] and patch ", s.patch);
  FM_CHECK(s.height % s.patch == 0 && s.width % s.patch == 0, "[patchify] patch ", s.patch,
           " must divide height and width, got ", s.height, " x ", s.width);
  FM_CHECK(static_cast<double>(s.channels) * s.height * s.width < 2147483648.0,
           "[patchify] an image must have fewer than 2^31 elements, got ", s.channels, " x ",
           s.height, " x ", s.width);
}

inline int token_width(const PatchShape& s) {
  return s.channels * s.patch * s.patch;
}
inline int token_count(const PatchShape& s) {
  return s.height / s.patch * (s.width / s.patch);
}
inline void check_embedding(const PatchShape& s, int width) {
  check_shape(s);
  FM_CHECK(width > 0 && width % 4 == 0, "[embed_patches] width must be a multiple of 4, got ",
           width);
}

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

// x = patchify(image) w^T + bias + position, in one pass. The tokens are rounded to T before the
// product; sums are in acc_t<T>, rounded once. X, the type of the residual stream, is acc_t<T> or
// T. Width a multiple of 4; on CUDA x and position begin at multiples of 16 bytes.
template <class T, class X>
struct EmbedPatches {
  PatchShape shape;
  int width;
  const acc_t<T>* image;
  const T* w;                // [width, C p p]
  const T* bias;             // [width]
  const acc_t<T>* position;  // [L, width]
  T* tokens;                 // [B, L, C p p]; null: they are not kept
  X* x;                      // [B, L, width]
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
// <double, double> and <float, float> on the CPU; <float, float>, <f16, float | f16> and
// <bf16, float | bf16> on CUDA.
template <class T, class X>
void embed_patches(CpuQueue&, const EmbedPatches<T, X>&);
template <class T, class X>
void embed_patches(CudaQueue&, const EmbedPatches<T, X>&);

}  // namespace fm

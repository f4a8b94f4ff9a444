// An RMSNorm and the linear layer that follows it, without bias, as one operation.
//
// y = (x r weight) W^T with r = 1 / sqrt(mean(x^2) + eps), one number a row of x [rows, in]. r
// commutes with the product and `weight` [in] belongs to W's columns: with V = W diag(weight),
//   y = r (x V^T)
// so the normalised rows are never written. Backward, with dy [rows, out] and narrow rows g = r dy:
//   dx = g V - s x,   s = r^2 (dy . y) / in      (the norm's mean of weight dn xh is dy . y / in)
//   dV = g^T x,       dW = dV diag(weight),      dweight = column sums of dV W
// dV is matmul's weight gradient. Statistics are in acc_t<T>. Sources: Zhang and Sennrich 2019,
// "Root Mean Square Layer Normalization", for the norm; the rest is the chain rule. T is double or
// float on the CPU, float, f16 or bf16 on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct RmsNormLinearShape {
  std::int64_t rows;
  int in, out;
  double eps;  // positive
};

// V = W diag(weight), from W in full precision and rounded once.
template <class T>
struct RmsNormFold {
  RmsNormLinearShape shape;
  const acc_t<T>* w;       // [out, in]
  const acc_t<T>* weight;  // [in]
  T* v;                    // [out, in]
};

template <class T>
struct RmsNormLinearForward {
  RmsNormLinearShape shape;
  const T* x;   // [rows, in]
  const T* v;   // [out, in]
  T* y;         // [rows, out]
  acc_t<T>* r;  // [rows]
};

// y alone, from W itself: for where no backward follows.
template <class T>
struct RmsNormLinearInference {
  RmsNormLinearShape shape;
  const T* x;              // [rows, in]
  const acc_t<T>* w;       // [out, in]
  const acc_t<T>* weight;  // [in]
  T* y;                    // [rows, out]
};

// g = r dy, and s.
template <class T>
struct RmsNormScaleBackward {
  RmsNormLinearShape shape;
  const T* dy;
  const T* y;
  const acc_t<T>* r;
  T* g;         // [rows, out]; may be dy
  acc_t<T>* s;  // [rows]
};

// dx = g V - s x.
template <class T>
struct RmsNormLinearBackwardInput {
  RmsNormLinearShape shape;
  const T* g;
  const T* v;
  const T* x;
  const acc_t<T>* s;
  T* dx;  // [rows, in], overwritten
};

// dw holds dV and becomes dW.
template <class T>
struct RmsNormFoldBackward {
  RmsNormLinearShape shape;
  const acc_t<T>* w;
  const acc_t<T>* weight;
  acc_t<T>* dw;       // [out, in], in place
  acc_t<T>* dweight;  // [in], overwritten
};

// Throws Fault::usage for shapes outside the contract; every entry point calls it.
void rmsnorm_linear_check(const RmsNormLinearShape&);

template <class T>
void rmsnorm_fold(CpuQueue&, const RmsNormFold<T>&);
template <class T>
void rmsnorm_fold(CudaQueue&, const RmsNormFold<T>&);
template <class T>
void rmsnorm_linear_forward(CpuQueue&, const RmsNormLinearForward<T>&);
template <class T>
void rmsnorm_linear_forward(CudaQueue&, const RmsNormLinearForward<T>&);
// One kernel for few rows, with the bits of the two calls above. Returns false, having done
// nothing, where those are to be made.
template <class T>
bool rmsnorm_linear_inference(CpuQueue&, const RmsNormLinearInference<T>&) {
  return false;
}
template <class T>
bool rmsnorm_linear_inference(CudaQueue&, const RmsNormLinearInference<T>&);
template <class T>
void rmsnorm_scale_backward(CpuQueue&, const RmsNormScaleBackward<T>&);
template <class T>
void rmsnorm_scale_backward(CudaQueue&, const RmsNormScaleBackward<T>&);
template <class T>
void rmsnorm_linear_backward_input(CpuQueue&, const RmsNormLinearBackwardInput<T>&);
template <class T>
void rmsnorm_linear_backward_input(CudaQueue&, const RmsNormLinearBackwardInput<T>&);
template <class T>
void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<T>&);
template <class T>
void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<T>&);

}  // namespace fm

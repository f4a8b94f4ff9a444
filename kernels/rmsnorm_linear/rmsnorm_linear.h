// An RMSNorm and the linear layer that follows it, without bias, as one operation.
//
// y = (x r weight) W^T with r = 1 / sqrt(mean(x^2) + eps), one number a row of x [rows, in]. r
// commutes with the product and `weight` [in] belongs to W's columns: with V = W diag(weight),
//   y = r (x V^T)
// so the normalised rows are never written. Backward, with dy [rows, out]:
//   dx = r dy V - s x,    s = r^2 (dy . y) / in  (the norm's mean of weight dn xh is dy . y / in)
//   dV = dy^T (r x),      dW = dV diag(weight),  dweight = column sums of dV W
// With a gate z, o = x silu(z), rounded to T, stands in x's place above, and is never kept:
//   dx = do silu(z),      dz = do x silu'(z),    do = r dy V - s o
// Statistics are in acc_t<T>. Sources: Zhang and Sennrich 2019, "Root Mean Square Layer
// Normalization", for the norm; the rest is the chain rule. T is double or float on the CPU, float,
// f16 or bf16 on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct RmsNormLinearShape {
  std::int64_t rows;
  int in, out;
  double eps;                 // positive
  std::int64_t z_stride = 0;  // elements between rows of the gate; 0: there is none
  bool gated() const { return z_stride > 0; }
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
  const T* x;                 // [rows, in]
  const T* v;                 // [out, in]
  T* y;                       // [rows, out]
  acc_t<T>* r;                // [rows]
  const T* z = nullptr;       // [rows, in], rows z_stride apart; null without a gate
  void* workspace = nullptr;  // rmsnorm_linear_forward_workspace<T>(queue, shape) bytes
};

// y alone, from W itself: for where no backward follows. No gate.
template <class T>
struct RmsNormLinearInference {
  RmsNormLinearShape shape;
  const T* x;              // [rows, in]
  const acc_t<T>* w;       // [out, in]
  const acc_t<T>* weight;  // [in]
  T* y;                    // [rows, out]
};

// dV and dx, and dz.
template <class T>
struct RmsNormLinearBackward {
  RmsNormLinearShape shape;
  T* dy;       // [rows, out]; undefined afterwards
  const T* y;  // as forward wrote it
  const acc_t<T>* r;
  const T* v;
  const T* x;
  T* dx;                 // [rows, in], overwritten, as all outputs
  acc_t<T>* dv;          // [out, in]
  const T* z = nullptr;  // null without a gate, and so dz
  T* dz = nullptr;       // rows z_stride apart, as z
  void* workspace;       // rmsnorm_linear_backward_workspace<T>(queue, shape) bytes
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
std::size_t rmsnorm_linear_forward_workspace(const CpuQueue&, const RmsNormLinearShape&);
template <class T>
std::size_t rmsnorm_linear_forward_workspace(const CudaQueue&, const RmsNormLinearShape&);
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
std::size_t rmsnorm_linear_backward_workspace(const CpuQueue&, const RmsNormLinearShape&);
template <class T>
std::size_t rmsnorm_linear_backward_workspace(const CudaQueue&, const RmsNormLinearShape&);
template <class T>
void rmsnorm_linear_backward(CpuQueue&, const RmsNormLinearBackward<T>&);
template <class T>
void rmsnorm_linear_backward(CudaQueue&, const RmsNormLinearBackward<T>&);
// dv, from what rmsnorm_linear_backward of the same arguments has left in the workspace, where it
// has not made it itself.
template <class T>
void rmsnorm_linear_backward_weight(CpuQueue&, const RmsNormLinearBackward<T>&) {}
template <class T>
void rmsnorm_linear_backward_weight(CudaQueue&, const RmsNormLinearBackward<T>&);
template <class T>
void rmsnorm_fold_backward(CpuQueue&, const RmsNormFoldBackward<T>&);
template <class T>
void rmsnorm_fold_backward(CudaQueue&, const RmsNormFoldBackward<T>&);

}  // namespace fm

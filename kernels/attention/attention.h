// Multi-head attention, not causal, in the flash style: no [L, L] matrix in memory.
//
// o = softmax(q k^T / sqrt(head_dim)) v, a head. Reads q, k, v where the qkv product left them, [B,
// L, 3, H, hd], and writes [B, L, H, hd]: no permutation. Scores, the softmax and its sums are in
// acc_t<T>. Source: Vaswani et al. 2017, section 3.2; the blocked softmax and its backward: Dao et
// al. 2022, algorithms 1, 4. T is double or float on the CPU, float, f16 or bf16 on CUDA. head_dim
// is a multiple of 8 up to 128, length any up to 2^27; on CUDA batch and heads go up to 65535.
// Pointers are 16-byte aligned.
#pragma once

#include <cstddef>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct AttentionShape {
  int batch, length, heads, head_dim;
};

template <class T>
struct AttentionForward {
  AttentionShape shape;
  const T* qkv;   // [B, L, 3, H, hd]
  T* o;           // [B, L, H, hd]
  acc_t<T>* lse;  // [B, H, L]: natural log of the sum of exp(score); null when no backward follows
};

template <class T>
struct AttentionBackward {
  AttentionShape shape;
  const T* qkv;
  const T* o;
  const acc_t<T>* lse;
  const T* d_o;     // [B, L, H, hd]
  T* d_qkv;         // [B, L, 3, H, hd], overwritten
  void* workspace;  // attention_backward_workspace<T>(shape) bytes
};

template <class T>
std::size_t attention_backward_workspace(const AttentionShape&);

template <class T>
void attention_forward(CpuQueue&, const AttentionForward<T>&);
template <class T>
void attention_forward(CudaQueue&, const AttentionForward<T>&);
template <class T>
void attention_backward(CpuQueue&, const AttentionBackward<T>&);
template <class T>
void attention_backward(CudaQueue&, const AttentionBackward<T>&);

}  // namespace fm

// Embeddings: the sinusoid of time and the label table.
//
// T is double or float on the CPU, float, f16 or bf16 on CUDA.
#pragma once

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

// out[b] = (sin(scale t f_k) for k < width/2, then cos): f_k = 10000^(-k / (width/2)). The angle is
// in double, since 1000 t in fp32 loses 6e-5. Source: Vaswani et al. 2017, section 3.5, as used by
// Ho et al. 2020.
template <class T>
struct SinusoidEmbedding {
  int batch, width;   // width even
  double scale;       // 1000
  const acc_t<T>* t;  // [B]
  T* out;             // [B, width]
};

// y = x + table[label], a row an image. Labels outside [0, classes] read row `classes`, the null
// label.
template <class T>
struct LabelForward {
  int batch, width, classes;
  const std::int32_t* labels;  // [B]
  const T* table;              // [classes + 1, width]
  const T* x;                  // [B, width]
  T* y;                        // [B, width]; may be x
};

// dtable[k] = sum of dy over the images with label k, every row overwritten. The gradient of x is
// dy itself.
template <class T>
struct LabelBackward {
  int batch, width, classes;
  const std::int32_t* labels;
  const T* dy;
  acc_t<T>* dtable;  // [classes + 1, width]
};

// Each throws where the sizes are outside the contract.
template <class T>
void check_shape(const SinusoidEmbedding<T>& p) {
  FM_CHECK(p.batch > 0 && p.width > 0 && p.width % 2 == 0,
           "[sinusoid_embedding] batch must be positive and width positive and even, got ", p.batch,
           " and ", p.width);
}
inline void check_label_shape(int batch, int width, int classes) {
  FM_CHECK(batch > 0 && width > 0 && classes >= 0,
           "[label_embedding] batch and width must be positive and classes not negative, got ",
           batch, ", ", width, " and ", classes);
}

template <class T>
void sinusoid_embedding(CpuQueue&, const SinusoidEmbedding<T>&);
template <class T>
void sinusoid_embedding(CudaQueue&, const SinusoidEmbedding<T>&);
template <class T>
void label_forward(CpuQueue&, const LabelForward<T>&);
template <class T>
void label_forward(CudaQueue&, const LabelForward<T>&);
template <class T>
void label_backward(CpuQueue&, const LabelBackward<T>&);
template <class T>
void label_backward(CudaQueue&, const LabelBackward<T>&);

}  // namespace fm

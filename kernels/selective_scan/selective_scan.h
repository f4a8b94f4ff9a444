// The selective scan of S6, every direction in one launch, with its neighbours folded in.
//
// A channel c of direction g = c / (channels / directions), over the tokens in the direction's own
// order (direction 0 first to last, direction 1 last to first):
//   delta_t = softplus(dt_t + dt_bias)          h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t u_t
//   B_t[n] y_t = sum_n C_t[n] h_t[n] + D u_t           o_t = y_t silu(z_t)             A =
//   -exp(A_log), h_{-1} = 0
// Source: Gu and Dao 2023, "Mamba", algorithm 2 (B discretised as delta B); softplus is x above 20.
// Without a gate (z null) o is y and do is dy: for where the gate is its reader's part.
// All arrays are token-major; results are in token order whatever the direction. The state, delta
// and every sum are in acc_t<T>; the state is never written out as [B, L, D, N], only every
// `states_every` steps for the backward pass. Two paths, the same results up to rounding: recurrent
// (one pass) and chunked-parallel (the sequence in `chunks` pieces scanned side by side, their end
// states carried over, then scanned again). T is double or float on the CPU, float, f16 or bf16 on
// CUDA. state is 1 to 128.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

struct ScanShape {
  int batch, length;
  int channels;    // of all directions together
  int state;       // n
  int directions;  // 1 or 2; divides channels
  int chunks = 0;  // pieces of the sequence; 0: chosen by the kernel, 1: recurrent
};

// What forward and backward both read. Strides are elements between tokens.
template <class T>
struct ScanInputs {
  const T* u;   // [B, L, channels]
  const T* dt;  // [B, L, channels], before bias and softplus; or null, see below
  const T* z;   // [B, L, channels], the gate; null: none
  const T* b;   // [B, L, directions, n]
  const T* c;   // [B, L, directions, n]
  std::int64_t u_stride, dt_stride, z_stride;
  std::int64_t bc_stride;     // between tokens of b and of c
  std::int64_t bc_direction;  // between directions of b and of c
  const acc_t<T>* a_log;      // [channels, n]
  const acc_t<T>* d;          // [channels]
  const acc_t<T>* dt_bias;    // [channels]
  // Forward, where dt is null: dt_t = dt_weight dt_low_t, not rounded to T. Only where
  // scan_projects_dt() says so.
  const T* dt_low = nullptr;     // [B, L, directions, rank], strides as b's
  const T* dt_weight = nullptr;  // [channels, rank]
  int rank = 0;
};

template <class T>
struct ScanForward {
  ScanShape shape;
  ScanInputs<T> in;
  T* o;  // [B, L, channels], dense
  T* y;  // [B, L, channels], dense, before the gate; null when no backward follows, or no gate
  void*
      states;  // scan_states_bytes<T>(shape): states at block starts; null when no backward follows
  void* workspace;  // scan_forward_workspace<T>(queue, shape) bytes
};

template <class T>
struct ScanBackward {
  ScanShape shape;
  ScanInputs<T> in;
  const T* y;  // unused without a gate, as dz
  const void* states;
  const T* d_o;        // [B, L, channels], dense
  T* du;               // [B, L, channels], dense; all outputs are overwritten; may be d_o
  T* ddt;              // [B, L, channels], dense; may be in.dt, where that is dense
  T* dz;               // rows z_stride apart, as z
  T* db;               // rows and directions as b
  T* dc;               // rows and directions as c
  acc_t<T>* da_log;    // [channels, n]; these three by scan_backward_parameters
  acc_t<T>* dd;        // [channels]
  acc_t<T>* ddt_bias;  // [channels]
  void* workspace;     // scan_backward_workspace<T>(queue, shape) bytes
};

// Throws Fault::usage where y is given and there is no gate; forward calls it.
void scan_check_gate(bool gate, bool y);

// The chunks a shape with chunks == 0 runs with on this queue: 1 is the recurrent path.
int scan_chunks(const CpuQueue&, const ScanShape&);
int scan_chunks(const CudaQueue&, const ScanShape&);

// Whether forward takes dt as its low-rank factors, and a product before it is not needed.
template <class T>
bool scan_projects_dt(const CpuQueue&, const ScanShape&, int /*rank*/) {
  return false;
}
template <class T>
bool scan_projects_dt(const CudaQueue&, const ScanShape&, int rank);

// The images of forward whose blocks fill the device a whole number of times, where the others
// leave it idle in part: there it may be parted, [0, n) and the rest each in one chunk. 0: nowhere.
inline int scan_parting(const CpuQueue&, const ScanShape&) {
  return 0;
}
int scan_parting(const CudaQueue&, const ScanShape&);

template <class T>
std::size_t scan_states_bytes(const CpuQueue&, const ScanShape&);
template <class T>
std::size_t scan_states_bytes(const CudaQueue&, const ScanShape&);
template <class T>
std::size_t scan_forward_workspace(const CpuQueue&, const ScanShape&);
template <class T>
std::size_t scan_forward_workspace(const CudaQueue&, const ScanShape&);
template <class T>
std::size_t scan_backward_workspace(const CpuQueue&, const ScanShape&);
template <class T>
std::size_t scan_backward_workspace(const CudaQueue&, const ScanShape&);

template <class T>
void scan_forward(CpuQueue&, const ScanForward<T>&);
template <class T>
void scan_forward(CudaQueue&, const ScanForward<T>&);
template <class T>
void scan_backward(CpuQueue&, const ScanBackward<T>&);
template <class T>
void scan_backward(CudaQueue&, const ScanBackward<T>&);
// The gradients of the parameters, from what scan_backward of the same arguments has left in the
// workspace; the CPU's has left nothing to do.
template <class T>
void scan_backward_parameters(CpuQueue&, const ScanBackward<T>&) {}
template <class T>
void scan_backward_parameters(CudaQueue&, const ScanBackward<T>&);

}  // namespace fm

// The reference, in the order of the formulas, and the entry points of the CPU. Float takes the
// vectorised path, double the reference.
#include "kernels/selective_scan/selective_scan_cpu.h"

#include <cmath>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"

namespace fm {
namespace scan_cpu {
namespace {

constexpr double kThreshold = 20;  // softplus(x) is x above

template <class T>
T softplus(T x) {
  return x > kThreshold ? x : std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}
template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}
template <class T>
T softplus_slope(T x) {
  return x > kThreshold ? T(1) : sigmoid(x);
}

// One channel of one image: what its recurrence reads.
template <class T>
struct Channel {
  const ScanInputs<T>& in;
  const ScanShape& shape;
  int image, channel, direction;
  T A[kMaxState];

  Channel(const ScanInputs<T>& in, const ScanShape& shape, int image, int channel)
      : in(in),
        shape(shape),
        image(image),
        channel(channel),
        direction(channel / (shape.channels / shape.directions)) {
    for (int n = 0; n < shape.state; ++n)
      A[n] = -std::exp(in.a_log[static_cast<std::int64_t>(channel) * shape.state + n]);
  }

  std::int64_t row(int t) const { return row_of(shape, image, direction, t); }
  T u(int t) const { return in.u[row(t) * in.u_stride + channel]; }
  T z(int t) const { return in.z[row(t) * in.z_stride + channel]; }
  T gate(int t) const { return in.z ? z(t) * sigmoid(z(t)) : T(1); }
  T x(int t) const { return in.dt[row(t) * in.dt_stride + channel] + in.dt_bias[channel]; }
  T delta(int t) const { return softplus(x(t)); }
  std::int64_t bc(int t) const { return row(t) * in.bc_stride + direction * in.bc_direction; }
  const T* B(int t) const { return in.b + bc(t); }
  const T* C(int t) const { return in.c + bc(t); }

  // h_{t-1} becomes h_t.
  void step(T* h, int t) const {
    const T delta_t = delta(t), u_t = u(t);
    const T* B_t = B(t);
    for (int n = 0; n < shape.state; ++n)
      h[n] = std::exp(delta_t * A[n]) * h[n] + delta_t * u_t * B_t[n];
  }

  // What a chunk multiplies a state by from its start to its end: exp(A sum of delta).
  void decay(T* factors, Steps steps) const {
    T sum = 0;
    for (int t = steps.begin; t < steps.end; ++t) sum += delta(t);
    for (int n = 0; n < shape.state; ++n) factors[n] = std::exp(A[n] * sum);
  }
};

// States saved for the backward pass: [image][block][channel][n].
template <class T>
std::int64_t state_at(const ScanShape& shape, int image, int block, int channel) {
  return ((static_cast<std::int64_t>(image) * blocks_of(shape) + block) * shape.channels +
          channel) *
         shape.state;
}

// The chunks of one channel run one after another: here the chunked path is the algorithm that
// CUDA runs side by side, not a gain.
template <class T>
void forward_channel(const ScanForward<T>& p, int chunks, int image, int channel) {
  const ScanShape& s = p.shape;
  const Channel<T> ch(p.in, s, image, channel);
  const T D = p.in.d[channel];
  T h[kMaxState] = {}, next[kMaxState] = {}, factors[kMaxState];
  for (int k = 0; k < chunks; ++k) {
    const Steps steps = steps_of(s, chunks, k);
    if (k + 1 < chunks) {  // where the next chunk starts: this one from zero, and what h becomes
      std::fill_n(next, s.state, T(0));
      for (int t = steps.begin; t < steps.end; ++t) ch.step(next, t);
      ch.decay(factors, steps);
      for (int n = 0; n < s.state; ++n) next[n] += factors[n] * h[n];
    }
    for (int t = steps.begin; t < steps.end; ++t) {
      if (p.states && t % kStatesEvery == 0)
        std::copy_n(h, s.state,
                    static_cast<T*>(p.states) + state_at<T>(s, image, t / kStatesEvery, channel));
      ch.step(h, t);
      const T* C = ch.C(t);
      T y = D * ch.u(t);
      for (int n = 0; n < s.state; ++n) y += C[n] * h[n];
      const std::int64_t at = ch.row(t) * s.channels + channel;
      p.o[at] = y * ch.gate(t);
      if (p.y) p.y[at] = y;
    }
    std::copy_n(next, s.state, h);
  }
}

// A pass over steps in reverse, from q of the step after the last: only what q itself needs.
template <class T>
void reverse_only(const ScanBackward<T>& p, const Channel<T>& ch, Steps steps, T* q) {
  for (int t = steps.end - 1; t >= steps.begin; --t) {
    const T delta = ch.delta(t);
    const T dy = p.d_o[ch.row(t) * p.shape.channels + ch.channel] * ch.gate(t);
    const T* C = ch.C(t);
    for (int n = 0; n < p.shape.state; ++n) q[n] = (q[n] + C[n] * dy) * std::exp(delta * ch.A[n]);
  }
}

// Gradients of one block: q of the step after it goes in, q of its first step comes out. db and dc
// are added to, and so are the sums over steps dA, dD and dbias.
template <class T>
void backward_block(const ScanBackward<T>& p, const Channel<T>& ch, Steps steps, T* q, T* dA, T* dD,
                    T* dbias) {
  const ScanShape& s = p.shape;
  T h[kStatesEvery + 1][kMaxState];  // h[i + 1] is the state after step begin + i
  std::copy_n(static_cast<const T*>(p.states) +
                  state_at<T>(s, ch.image, steps.begin / kStatesEvery, ch.channel),
              s.state, h[0]);
  for (int t = steps.begin; t < steps.end; ++t) {
    const int i = t - steps.begin;
    std::copy_n(h[i], s.state, h[i + 1]);
    ch.step(h[i + 1], t);
  }
  for (int t = steps.end - 1; t >= steps.begin; --t) {
    const std::int64_t at = ch.row(t) * s.channels + ch.channel, at_bc = ch.bc(t);
    const T u = ch.u(t), x = ch.x(t), delta = softplus(x), d_o = p.d_o[at], dy = d_o * ch.gate(t);
    const T *B = ch.B(t), *C = ch.C(t);
    const T *before = h[t - steps.begin], *after = h[t - steps.begin + 1];
    T s1 = 0, s2 = 0;
    for (int n = 0; n < s.state; ++n) {
      const T g = q[n] + C[n] * dy;
      p.dc[at_bc + n] += dy * after[n];
      p.db[at_bc + n] += g * delta * u;
      s1 += g * B[n];
      q[n] = g * std::exp(delta * ch.A[n]);
      const T dlog = q[n] * before[n];  // d loss / d (delta A)
      s2 += ch.A[n] * dlog;
      dA[n] += delta * dlog;
    }
    const T dx = (u * s1 + s2) * softplus_slope(x);
    p.du[at] = delta * s1 + p.in.d[ch.channel] * dy;
    p.ddt[at] = dx;
    if (p.in.z) {
      const T z = ch.z(t), sg = sigmoid(z);
      p.dz[ch.row(t) * p.in.z_stride + ch.channel] = d_o * p.y[at] * sg * (1 + z * (1 - sg));
    }
    *dbias += dx;
    *dD += dy * u;
  }
}

// `partial` is the image's part of [channels][n + 2]: dA, dD, dbias.
template <class T>
void backward_channel(const ScanBackward<T>& p, int chunks, int image, int channel, T* partial) {
  const ScanShape& s = p.shape;
  const Channel<T> ch(p.in, s, image, channel);
  std::fill_n(partial, s.state + 2, T(0));
  T q[kMaxState] = {}, next[kMaxState] = {}, factors[kMaxState];
  for (int k = chunks - 1; k >= 0; --k) {
    const Steps steps = steps_of(s, chunks, k);
    if (k > 0) {
      std::fill_n(next, s.state, T(0));
      reverse_only(p, ch, steps, next);
      ch.decay(factors, steps);
      for (int n = 0; n < s.state; ++n) next[n] += factors[n] * q[n];
    }
    const int blocks = (steps.end - steps.begin + kStatesEvery - 1) / kStatesEvery;
    for (int block = blocks - 1; block >= 0; --block) {
      const int begin = steps.begin + block * kStatesEvery;
      backward_block(p, ch, {begin, std::min(begin + kStatesEvery, steps.end)}, q, partial,
                     partial + s.state, partial + s.state + 1);
    }
    std::copy_n(next, s.state, q);
  }
}

template <class T>
void reference_forward(CpuQueue& queue, const ScanForward<T>& p, int chunks) {
  const std::int64_t count = static_cast<std::int64_t>(p.shape.batch) * p.shape.channels;
  parallel_for(queue, count, 1, [&](std::int64_t begin, std::int64_t) {
    forward_channel(p, chunks, static_cast<int>(begin / p.shape.channels),
                    static_cast<int>(begin % p.shape.channels));
  });
}

template <class T>
void reference_backward(CpuQueue& queue, const ScanBackward<T>& p, int chunks) {
  const ScanShape& s = p.shape;
  const int per_direction = s.channels / s.directions, width = s.state + 2;
  T* const partials = static_cast<T*>(p.workspace);
  // db and dc are sums over the channels of a direction, so one piece owns all of those.
  parallel_for(queue, s.batch * s.directions, 1, [&](std::int64_t piece, std::int64_t) {
    const int image = static_cast<int>(piece / s.directions);
    const int direction = static_cast<int>(piece % s.directions);
    for (int t = 0; t < s.length; ++t) {
      const std::int64_t at =
          row_of(s, image, direction, t) * p.in.bc_stride + direction * p.in.bc_direction;
      std::fill_n(p.db + at, s.state, T(0));
      std::fill_n(p.dc + at, s.state, T(0));
    }
    for (int c = direction * per_direction; c < (direction + 1) * per_direction; ++c)
      backward_channel(p, chunks, image, c,
                       partials + (static_cast<std::int64_t>(image) * s.channels + c) * width);
  });
  parallel_for(queue, s.channels, 1, [&](std::int64_t c, std::int64_t) {
    const auto sum = [&](int i) {
      T total = 0;
      for (std::int64_t image = 0; image < s.batch; ++image)
        total += partials[(image * s.channels + c) * width + i];
      return total;
    };
    for (int n = 0; n < s.state; ++n)  // dA / dA_log = A
      p.da_log[c * s.state + n] = sum(n) * -std::exp(p.in.a_log[c * s.state + n]);
    p.dd[c] = sum(s.state);
    p.ddt_bias[c] = sum(s.state + 1);
  });
}

void check_shape(const ScanShape& s) {
  FM_CHECK(s.batch > 0 && s.length > 0 && s.channels > 0,
           "[selective_scan] batch, length and channels must be positive, got ", s.batch, ", ",
           s.length, " and ", s.channels);
  FM_CHECK(s.state >= 1 && s.state <= kMaxState, "[selective_scan] state must be 1 to ", kMaxState,
           ", got ", s.state);
  FM_CHECK((s.directions == 1 || s.directions == 2) && s.channels % s.directions == 0,
           "[selective_scan] directions must be 1 or 2 and divide channels, got ", s.directions,
           " for ", s.channels, " channels");
  FM_CHECK(s.chunks >= 0, "[selective_scan] chunks must be 0 (chosen) or more, got ", s.chunks);
}

}  // namespace
}  // namespace scan_cpu

void scan_check_gate(bool gate, bool y) {
  FM_CHECK(gate || !y, "[selective_scan] without a gate o is y: there is no other to write");
}

// Channels and images keep the cores busy, and a second pass over the sequence costs more than it
// brings: recurrent unless asked otherwise.
int scan_chunks(const CpuQueue&, const ScanShape& shape) {
  return std::max(shape.chunks, 1);
}

template <class T>
std::size_t scan_states_bytes(const CpuQueue&, const ScanShape& s) {
  if constexpr (std::is_same_v<T, float>) return scan_cpu::fast_states_bytes(s);
  return sizeof(T) * static_cast<std::size_t>(s.batch) * scan_cpu::blocks_of(s) * s.channels *
         s.state;
}

template <class T>
std::size_t scan_forward_workspace(const CpuQueue&, const ScanShape&) {
  return 0;
}

template <class T>
std::size_t scan_backward_workspace(const CpuQueue&, const ScanShape& s) {
  if constexpr (std::is_same_v<T, float>) return scan_cpu::fast_backward_workspace(s);
  return sizeof(T) * static_cast<std::size_t>(s.batch) * s.channels * (s.state + 2);
}

template <class T>
void scan_forward(CpuQueue& queue, const ScanForward<T>& p) {
  scan_cpu::check_shape(p.shape);
  scan_check_gate(p.in.z, p.y);
  const int chunks = scan_chunks(queue, p.shape);
  if constexpr (std::is_same_v<T, float>) scan_cpu::fast_forward(queue, p, chunks);
  else scan_cpu::reference_forward(queue, p, chunks);
}

template <class T>
void scan_backward(CpuQueue& queue, const ScanBackward<T>& p) {
  scan_cpu::check_shape(p.shape);
  FM_CHECK((p.y || !p.in.z) && p.states,
           "[selective_scan] backward needs y and states: give both to the forward pass");
  const int chunks = scan_chunks(queue, p.shape);
  if constexpr (std::is_same_v<T, float>) scan_cpu::fast_backward(queue, p, chunks);
  else scan_cpu::reference_backward(queue, p, chunks);
}

template std::size_t scan_states_bytes<float>(const CpuQueue&, const ScanShape&);
template std::size_t scan_states_bytes<double>(const CpuQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<float>(const CpuQueue&, const ScanShape&);
template std::size_t scan_forward_workspace<double>(const CpuQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<float>(const CpuQueue&, const ScanShape&);
template std::size_t scan_backward_workspace<double>(const CpuQueue&, const ScanShape&);
template void scan_forward(CpuQueue&, const ScanForward<float>&);
template void scan_forward(CpuQueue&, const ScanForward<double>&);
template void scan_backward(CpuQueue&, const ScanBackward<float>&);
template void scan_backward(CpuQueue&, const ScanBackward<double>&);

}  // namespace fm

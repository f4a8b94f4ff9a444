#include "engine/ops/residual_norm.h"

#include "engine/tape.h"
#include "kernels/residual_norm/residual_norm.h"

namespace fm {
namespace {

struct Operands {
  Residual before;
  Columns shift, scale;
  Tensor out, y;

  bool has_branch() const { return before.pending.has_value(); }
  template <class T>
  const T* f() const {
    return has_branch() ? before.pending->f.as<T>() : nullptr;
  }
  template <class T>
  const T* gate() const {
    return has_branch() ? before.pending->gate.as<T>() : nullptr;
  }
  // Elements between images' columns; 0: one row is every image's.
  std::int64_t image_stride(const Columns& columns) const {
    return columns.of.shape[0] < out.shape[0] ? 0 : columns.stride();
  }
  ResidualNormShape shape() const {
    return {.batch = static_cast<int>(out.shape[0]),
            .length = static_cast<int>(out.shape[1]),
            .width = static_cast<int>(out.shape[2]),
            .modulation_stride = image_stride(shift),
            .gate_stride = image_stride(has_branch() ? before.pending->gate : shift)};
  }
};

// f<T, X>(queue) for the compute type and the stream's.
template <class F>
void run(Context& context, F&& f) {
  context.run([&]<class T>(auto& queue) {
    if (context.stream() == dtype_of<T>()) f.template operator()<T, T>(queue);
    else f.template operator()<T, acc_t<T>>(queue);
  });
}

void backward(Context& context, const Operands& p) {
  Tape& tape = *context.tape;
  const Tape::Target dx = tape.target(p.out);
  const Tensor modulation = tape.parts(p.shift.of);
  std::optional<Residual::Branch> branch;  // the gradients of what was pending
  if (p.has_branch()) {
    const auto& [f, gate] = *p.before.pending;
    branch = {tape.gradient(p.y), gate.in(tape.parts(gate.of))};  // df in the place of dy
  }
  run(context, [&]<class T, class X>(auto& queue) {
    residual_norm_backward(
        queue, ResidualNormBackward<T, X>{.shape = p.shape(),
                                          .out = p.out.as<X>(),
                                          .f = p.f<T>(),
                                          .gate = p.gate<T>(),
                                          .scale = p.scale.as<T>(),
                                          .dy = tape.gradient(p.y).as<T>(),
                                          .dx = dx.gradient.as<X>(),
                                          .accumulate = dx.accumulate,
                                          .df = branch ? branch->f.as<T>() : nullptr,
                                          .dgate = branch ? branch->gate.as<T>() : nullptr,
                                          .dshift = p.shift.in(modulation).as<T>(),
                                          .dscale = p.scale.in(modulation).as<T>()});
  });
  if (!branch) return;
  tape.hand_over(p.y, p.before.pending->f);
  tape.hand_over(p.out, p.before.x);
}

}  // namespace

Tensor residual_norm(Context& context, Residual& stream, const Columns& shift,
                     const Columns& scale) {
  const Tensor& x = stream.x;
  const auto serves = [&](const Columns& columns) {
    const std::int64_t rows = columns.of.shape[0];
    return columns.width == x.shape[2] && (rows == x.shape[0] || (rows == 1 && !context.tape));
  };
  FM_CHECK(x.shape.rank() == 3 && serves(shift) && serves(scale) && shift.of.data == scale.of.data,
           "[residual_norm] shift and scale must be ", x.shape.back(),
           " columns of one [B, *] tensor, got x ", x, ", ", shift.of, ", ", scale.of);
  if (stream.pending) {
    const auto& [f, gate] = *stream.pending;
    FM_CHECK(f.shape == x.shape && serves(gate),
             "[residual_norm] f must be as x and the gate d columns of [B, *], got x ", x, ", f ",
             f, ", gate ", gate.width, " of ", gate.of);
  }
  // In place where there is nothing to add, or nobody looks back.
  const bool in_place = !stream.pending || !context.tape;
  const Tensor out = in_place ? x : context.make(x.shape, x.dtype);
  const Operands p{stream, shift, scale, out, context.make(x.shape)};
  run(context, [&]<class T, class X>(auto& queue) {
    residual_norm_forward(queue, ResidualNormForward<T, X>{.shape = p.shape(),
                                                           .x = x.as<X>(),
                                                           .f = p.f<T>(),
                                                           .gate = p.gate<T>(),
                                                           .shift = shift.as<T>(),
                                                           .scale = scale.as<T>(),
                                                           .out = out.as<X>(),
                                                           .y = p.y.as<T>()});
  });
  if (context.tape)
    context.tape->record({"residual_norm", p.y,
                          in_place ? std::vector<Tensor>{} : std::vector<Tensor>{out},
                          [&context, p] { backward(context, p); }});
  stream = {out};
  return p.y;
}

}  // namespace fm

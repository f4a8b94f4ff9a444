#include "engine/ops/selective_scan.h"

#include "engine/tape.h"
#include "kernels/matmul/matmul.h"
#include "kernels/selective_scan/selective_scan.h"

namespace fm {
namespace {

// dt, dense [B, L, channels], from its columns of low.
LinearShape dt_product(const SelectiveScanOperands& x) {
  const std::int64_t channels = x.u.shape[2], width = x.low.shape[2];
  return {.rows = x.low.shape[0],
          .in = x.rank,
          .out = static_cast<int>(channels / x.directions),
          .groups = x.directions,
          .x_stride = x.directions * width,
          .y_stride = channels,
          .x_group = width,
          .y_group = channels / x.directions};
}

template <class T, class Q>
void project_dt(Q& queue, const SelectiveScanOperands& x, T* dt) {
  linear_forward(queue, LinearForward<T, T>{.shape = dt_product(x),
                                            .x = x.low.as<T>(),
                                            .w = x.dt_proj->compute.as<T>(),
                                            .bias = nullptr,
                                            .y = dt});
}

// dt null: the scan projects it.
template <class T>
ScanInputs<T> inputs(const SelectiveScanOperands& x, const Tensor& u, const T* dt) {
  return {.u = u.as<T>(),
          .dt = dt,
          .z = x.z ? x.z->as<T>() : nullptr,
          .b = x.low.as<T>() + x.rank,
          .c = x.low.as<T>() + x.rank + x.state,
          .u_stride = x.u.shape[2],
          .dt_stride = x.u.shape[2],
          .z_stride = x.z ? x.z->stride() : 0,
          .bc_stride = x.low.shape[1] * x.low.shape[2],
          .bc_direction = x.low.shape[2],
          .a_log = x.a_log->master.as<acc_t<T>>(),
          .d = x.d->master.as<acc_t<T>>(),
          .dt_bias = x.dt_bias->master.as<acc_t<T>>(),
          .dt_low = x.low.as<T>(),
          .dt_weight = x.dt_proj->compute.as<T>(),
          .rank = x.rank};
}

// du takes the place of do, and ddt that of dt: 103 MB less at the paper's shape, where a training
// step needs the most memory.
void backward(Context& context, const ScanShape& shape, const SelectiveScanOperands& x,
              const Tensor& o, const Tensor& y, const Tensor& states) {
  Tape& tape = *context.tape;
  tape.release(o);
  const Tensor u = tape.value(x.u), d_o = tape.gradient(o);
  tape.hand_over(o, x.u);
  const Tape::Target dlow = tape.target(x.low);
  FM_CHECK(!dlow.accumulate, "[selective_scan] must be the last to read u and low");
  std::optional<Columns> dz;
  if (x.z) dz = x.z->in(tape.parts(x.z->of));
  const LinearShape product = dt_product(x);
  const Scratch dt(context, x.u.bytes());  // then ddt
  {
    const std::size_t bytes = context.query(
        [&]<class T>(auto& queue) { return scan_backward_workspace<T>(queue, shape); });
    const Scratch workspace(context, bytes);
    context.run([&]<class T>(auto& queue) {
      project_dt(queue, x, dt.as<T>());
      scan_backward(queue, ScanBackward<T>{.shape = shape,
                                           .in = inputs<T>(x, u, dt.as<T>()),
                                           .y = y ? y.as<T>() : nullptr,
                                           .states = states.data,
                                           .d_o = d_o.as<T>(),
                                           .du = d_o.as<T>(),
                                           .ddt = dt.as<T>(),
                                           .dz = dz ? dz->as<T>() : nullptr,
                                           .db = dlow.gradient.as<T>() + x.rank,
                                           .dc = dlow.gradient.as<T>() + x.rank + x.state,
                                           .da_log = x.a_log->gradient.as<acc_t<T>>(),
                                           .dd = x.d->gradient.as<acc_t<T>>(),
                                           .ddt_bias = x.dt_bias->gradient.as<acc_t<T>>(),
                                           .workspace = workspace.data()});
    });
  }
  const Scratch workspace(context, linear_backward_weight_workspace(product));
  context.run([&]<class T>(auto& queue) {
    linear_backward_weight(queue, LinearBackwardWeight<T>{.shape = product,
                                                          .dy = dt.as<T>(),
                                                          .x = x.low.as<T>(),
                                                          .dw = x.dt_proj->gradient.as<acc_t<T>>(),
                                                          .dbias = nullptr,
                                                          .workspace = workspace.data()});
    linear_backward_input(queue, LinearBackwardInput<T>{.shape = product,
                                                        .dy = dt.as<T>(),
                                                        .w = x.dt_proj->compute.as<T>(),
                                                        .dx = dlow.gradient.as<T>()});
  });
}

}  // namespace

Tensor selective_scan(Context& context, const SelectiveScanOperands& x) {
  FM_CHECK(x.u.shape.rank() == 3 && (!x.z || x.z->width == x.u.shape[2]) &&
               x.low.shape.rank() == 3 && x.low.shape[0] == x.u.shape[0] * x.u.shape[1] &&
               x.low.shape[1] == x.directions && x.low.shape[2] == x.rank + 2 * x.state &&
               x.dt_proj->shape.count() == x.u.shape[2] * x.rank,
           "[selective_scan] u must be [B, L, channels], low [B L, directions, ",
           x.rank + 2 * x.state, "] and dt_proj hold channels x ", x.rank, " weights, got u ", x.u,
           ", low ", x.low, ", dt_proj ", x.dt_proj->shape);
  const ScanShape shape{.batch = static_cast<int>(x.u.shape[0]),
                        .length = static_cast<int>(x.u.shape[1]),
                        .channels = static_cast<int>(x.u.shape[2]),
                        .state = x.state,
                        .directions = x.directions};
  const Tensor o = context.make(x.u.shape);
  Tensor y, states;
  if (context.tape) {
    if (x.z) y = context.make(x.u.shape);
    const std::size_t bytes =
        context.query([&]<class T>(auto& queue) { return scan_states_bytes<T>(queue, shape); });
    states = context.make({static_cast<std::int64_t>(bytes)}, DType::u8);
  }
  {
    const bool projects = context.query(
        [&]<class T>(auto& queue) { return scan_projects_dt<T>(queue, shape, x.rank); });
    const Scratch dt(context, projects ? 0 : x.u.bytes());
    const std::size_t bytes = context.query(
        [&]<class T>(auto& queue) { return scan_forward_workspace<T>(queue, shape); });
    const Scratch workspace(context, bytes);
    context.run([&]<class T>(auto& queue) {
      if (!projects) project_dt(queue, x, dt.as<T>());
      scan_forward(queue, ScanForward<T>{.shape = shape,
                                         .in = inputs<T>(x, x.u, dt.as<T>()),
                                         .o = o.as<T>(),
                                         .y = y ? y.as<T>() : nullptr,
                                         .states = states.data,
                                         .workspace = workspace.data()});
    });
  }
  if (context.tape)
    context.tape->record({"selective_scan", o, {y, states}, [&context, shape, x, o, y, states] {
                            backward(context, shape, x, o, y, states);
                          }});
  return o;
}

}  // namespace fm

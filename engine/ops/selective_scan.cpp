#include "engine/ops/selective_scan.h"

#include "engine/tape.h"
#include "kernels/selective_scan/selective_scan.h"

namespace fm {
namespace {

template <class T>
ScanInputs<T> inputs(const SelectiveScanOperands& x) {
  return {.u = x.u.as<T>(),
          .dt = x.dt.as<T>(),
          .z = x.z.as<T>(),
          .b = x.bc.as<T>() + x.b_begin,
          .c = x.bc.as<T>() + x.b_begin + x.state,
          .u_stride = x.u.shape[2],
          .dt_stride = x.u.shape[2],
          .z_stride = x.z.stride(),
          .bc_stride = x.bc.shape[1] * x.bc.shape[2],
          .bc_direction = x.bc.shape[2],
          .a_log = x.a_log->master.as<acc_t<T>>(),
          .d = x.d->master.as<acc_t<T>>(),
          .dt_bias = x.dt_bias->master.as<acc_t<T>>()};
}

void backward(Context& context, const ScanShape& shape, const SelectiveScanOperands& x,
              const Tensor& o, const Tensor& y, const Tensor& states) {
  Tape& tape = *context.tape;
  const Tape::Target du = tape.target(x.u), ddt = tape.target(x.dt);
  FM_CHECK(!du.accumulate && !ddt.accumulate, "[selective_scan] must be the last to read u and dt");
  const Columns dz = x.z.in(tape.parts(x.z.of));
  const Tensor dbc = tape.parts(x.bc);
  const std::size_t bytes =
      context.query([&]<class T>(auto& queue) { return scan_backward_workspace<T>(queue, shape); });
  Scratch workspace(context, bytes);
  context.run([&]<class T>(auto& queue) {
    scan_backward(queue, ScanBackward<T>{.shape = shape,
                                         .in = inputs<T>(x),
                                         .y = y.as<T>(),
                                         .states = states.data,
                                         .d_o = tape.gradient(o).as<T>(),
                                         .du = du.gradient.as<T>(),
                                         .ddt = ddt.gradient.as<T>(),
                                         .dz = dz.as<T>(),
                                         .db = dbc.as<T>() + x.b_begin,
                                         .dc = dbc.as<T>() + x.b_begin + x.state,
                                         .da_log = x.a_log->gradient.as<acc_t<T>>(),
                                         .dd = x.d->gradient.as<acc_t<T>>(),
                                         .ddt_bias = x.dt_bias->gradient.as<acc_t<T>>(),
                                         .workspace = workspace.data()});
  });
}

}  // namespace

Tensor selective_scan(Context& context, const SelectiveScanOperands& x) {
  FM_CHECK(x.u.shape.rank() == 3 && x.dt.shape == x.u.shape && x.z.width == x.u.shape[2] &&
               x.bc.shape.rank() == 3 && x.bc.shape[0] == x.u.shape[0] * x.u.shape[1] &&
               x.bc.shape[1] == x.directions && x.b_begin + 2 * x.state <= x.bc.shape[2],
           "[selective_scan] u and dt must be [B, L, channels], bc [B L, directions, width >= ",
           x.b_begin + 2 * x.state, "], got u ", x.u, ", dt ", x.dt, ", bc ", x.bc);
  const ScanShape shape{.batch = static_cast<int>(x.u.shape[0]),
                        .length = static_cast<int>(x.u.shape[1]),
                        .channels = static_cast<int>(x.u.shape[2]),
                        .state = x.state,
                        .directions = x.directions};
  const Tensor o = context.make(x.u.shape);
  Tensor y, states;
  if (context.tape) {
    y = context.make(x.u.shape);
    const std::size_t bytes =
        context.query([&]<class T>(auto& queue) { return scan_states_bytes<T>(queue, shape); });
    states = context.make({static_cast<std::int64_t>(bytes)}, DType::u8);
  }
  {
    const std::size_t bytes = context.query(
        [&]<class T>(auto& queue) { return scan_forward_workspace<T>(queue, shape); });
    Scratch workspace(context, bytes);
    context.run([&]<class T>(auto& queue) {
      scan_forward(queue, ScanForward<T>{.shape = shape,
                                         .in = inputs<T>(x),
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

#include "engine/ops/selective_scan.h"

#include "engine/ops/linear.h"
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

// The part of a scan that images [begin, end) are.
ScanShape images(ScanShape shape, int begin, int end) {
  if (end - begin == shape.batch) return shape;
  shape.batch = end - begin;
  shape.chunks = 1;
  return shape;
}
template <class T>
ScanForward<T> images(ScanForward<T> p, const ScanShape& part, int begin,
                      std::int64_t states_bytes) {
  const std::int64_t tokens = std::int64_t{begin} * p.shape.length;
  p.in.u += tokens * p.in.u_stride;
  if (p.in.dt) p.in.dt += tokens * p.in.dt_stride;
  if (p.in.z) p.in.z += tokens * p.in.z_stride;
  for (const T** columns : {&p.in.b, &p.in.c, &p.in.dt_low}) *columns += tokens * p.in.bc_stride;
  p.o += tokens * p.shape.channels;
  if (p.y) p.y += tokens * p.shape.channels;
  if (p.states) p.states = static_cast<char*>(p.states) + begin * states_bytes;
  p.shape = part;
  return p;
}

// The last blocks of its kernel leave most multiprocessors idle for a quarter of its time (an H100,
// batch 256: 512 blocks on 132 multiprocessors). The CPU's does not.
bool leaves_room(const Context& context) {
  return !context.on_cpu();
}

// du takes the place of do, and ddt that of dt: 103 MB less at the paper's shape, where a training
// step needs the most memory.
void backward(Context& context, const ScanShape& shape, const SelectiveScanOperands& x,
              const Tensor& dt, const Tensor& o, const Tensor& y, const Tensor& states) {
  Tape& tape = *context.tape;
  tape.release(o);
  const Tensor u = tape.value(x.u), d_o = tape.gradient(o), ddt = tape.overwrite(dt);
  tape.hand_over(o, x.u);
  const Tape::Target dlow = tape.target(x.low);
  FM_CHECK(!dlow.accumulate, "[selective_scan] must be the last to read u and low");
  std::optional<Columns> dz;
  if (x.z) dz = x.z->in(tape.parts(x.z->of));
  const auto of = [shape, x, u, y, states, d_o, ddt, dz, dlow](void* workspace) {
    return [=]<class T>() {
      return ScanBackward<T>{.shape = shape,
                             .in = inputs<T>(x, u, ddt.as<T>()),
                             .y = y ? y.as<T>() : nullptr,
                             .states = states.data,
                             .d_o = d_o.as<T>(),
                             .du = d_o.as<T>(),
                             .ddt = ddt.as<T>(),
                             .dz = dz ? dz->as<T>() : nullptr,
                             .db = dlow.gradient.as<T>() + x.rank,
                             .dc = dlow.gradient.as<T>() + x.rank + x.state,
                             .da_log = x.a_log->gradient.as<acc_t<T>>(),
                             .dd = x.d->gradient.as<acc_t<T>>(),
                             .ddt_bias = x.dt_bias->gradient.as<acc_t<T>>(),
                             .workspace = workspace};
    };
  };
  const auto scan = [&] {
    const std::size_t bytes = context.query(
        [&]<class T>(auto& queue) { return scan_backward_workspace<T>(queue, shape); });
    const Scratch workspace(context, bytes);
    const auto arguments = of(workspace.data());
    context.run(
        [&]<class T>(auto& queue) { scan_backward(queue, arguments.template operator()<T>()); });
    tape.later({workspace.data()}, [&context, arguments] {
      context.run([&]<class T>(auto& queue) {
        scan_backward_parameters(queue, arguments.template operator()<T>());
      });
    });
  };
  if (leaves_room(context)) tape.beside(scan);
  else scan();
}

// The gradients of dt's projection.
void backward_dt(Context& context, const SelectiveScanOperands& x, const Tensor& dt) {
  Tape& tape = *context.tape;
  const LinearShape product = dt_product(x);
  const Tensor ddt = tape.gradient(dt), dlow = tape.gradient(x.low);
  weight_gradient_later(context, {product, ddt.data, x.low, 0, x.dt_proj, nullptr});
  context.run([&]<class T>(auto& queue) {
    linear_backward_input(queue, LinearBackwardInput<T>{.shape = product,
                                                        .dy = ddt.as<T>(),
                                                        .w = x.dt_proj->compute.as<T>(),
                                                        .dx = dlow.as<T>()});
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
  const bool projects = context.query(
      [&]<class T>(auto& queue) { return scan_projects_dt<T>(queue, shape, x.rank); });
  const Tensor o = context.make(x.u.shape);
  // Where the scan itself projects it, only its gradient function, which makes it again, needs it.
  const Tensor dt = projects && !context.tape ? Tensor{} : context.make(x.u.shape);
  Tensor y, states;
  if (context.tape) {
    if (x.z) y = context.make(x.u.shape);
    const std::size_t bytes =
        context.query([&]<class T>(auto& queue) { return scan_states_bytes<T>(queue, shape); });
    states = context.make({static_cast<std::int64_t>(bytes)}, DType::u8);
  }
  if (!projects) context.run([&]<class T>(auto& queue) { project_dt(queue, x, dt.as<T>()); });
  context.part_images_at(
      context.query([&]<class T>(auto& queue) { return scan_parting(queue, shape); }));
  context.by_images(shape.batch, [&context, shape, x, dt = projects ? Tensor{} : dt, o, y, states](
                                     int begin, int end) {
    const ScanShape part = images(shape, begin, end);
    const std::size_t bytes =
        context.query([&]<class T>(auto& queue) { return scan_forward_workspace<T>(queue, part); });
    const Scratch workspace(context, bytes);
    context.run([&]<class T>(auto& queue) {
      const ScanForward<T> whole{.shape = shape,
                                 .in = inputs<T>(x, x.u, dt ? dt.as<T>() : nullptr),
                                 .o = o.as<T>(),
                                 .y = y ? y.as<T>() : nullptr,
                                 .states = states.data,
                                 .workspace = workspace.data()};
      scan_forward(queue, images(whole, part, begin, states.bytes() / shape.batch));
    });
  });
  if (!context.tape) return o;
  context.tape->record({"project_dt", dt, {}, [&context, x, dt] { backward_dt(context, x, dt); }});
  context.tape->record({.name = "selective_scan",
                        .output = o,
                        .saved = {y, states},
                        .backward = [&context, shape, x, dt, o, y,
                                     states] { backward(context, shape, x, dt, o, y, states); },
                        .leaves_room = leaves_room(context)});
  context.tape->drop(dt, [&context, x](const Tensor& again) {
    context.run([&]<class T>(auto& queue) { project_dt(queue, x, again.as<T>()); });
  });
  return o;
}

}  // namespace fm

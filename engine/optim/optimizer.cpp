#include "engine/optim/optimizer.h"

#include "engine/profile.h"

namespace fm {

Optimizer::Optimizer(Context& context, const OptimizerSettings& settings)
    : settings_(settings),
      state_(context.queue, sizeof(StepState)),
      ring_(context.queue, kRecordRing * sizeof(StepRecord)) {
  settings_.dynamic_scale = context.compute == DType::f16;
  ring_.zero();
  StepState state;
  state.loss_scale = settings_.dynamic_scale ? kInitialLossScale : 1.0f;
  write_state(state);
}

void Optimizer::step(Context& context, ParamStore& params, const Tensor& loss) {
  const ProfileRange range("optimizer");
  const std::int64_t count = params.flat_count();
  Scratch workspace(context, optimizer_prepare_workspace(count));
  context.run([&]<class T>(auto& queue) {
    using A = acc_t<T>;
    optimizer_prepare(queue, OptimizerPrepare<A>{.count = count,
                                                 .grad = params.gradient().as<A>(),
                                                 .loss = loss.as<A>(),
                                                 .settings = settings_,
                                                 .state = state_.as<StepState>(),
                                                 .ring = ring_.as<StepRecord>(),
                                                 .ring_size = kRecordRing,
                                                 .grad_norm = nullptr,
                                                 .workspace = workspace.data()});
    adamw_update(queue,
                 AdamWUpdate<T>{.count = count,
                                .grad = params.gradient().as<A>(),
                                .master = params.master().as<A>(),
                                .m = params.m().as<A>(),
                                .v = params.v().as<A>(),
                                .ema = params.ema() ? params.ema().as<A>() : nullptr,
                                .compute = params.compute() ? params.compute().as<T>() : nullptr,
                                .decays = params.decays(),
                                .settings = settings_,
                                .state = state_.as<StepState>()});
  });
}

StepState Optimizer::read_state() {
  StepState state;
  state_.download_to(&state, sizeof state);
  return state;
}

void Optimizer::write_state(const StepState& state) {
  state_.upload_from(&state, sizeof state);
}

std::vector<StepRecord> Optimizer::records(std::uint64_t first, std::uint64_t last) {
  std::vector<StepRecord> ring(kRecordRing), wanted;
  ring_.download_to(ring.data(), ring_.bytes());
  if (last > kRecordRing) first = std::max<std::uint64_t>(first, last - kRecordRing);
  for (std::uint64_t step = first; step < last; ++step) wanted.push_back(ring[step % kRecordRing]);
  return wanted;
}

}  // namespace fm

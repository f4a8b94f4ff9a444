// Backward for 64 and 128 states in 16 bits: selective_scan_backward_cuda.cu's walk with its work
// split between the warps of a CTA.
#include "kernels/base/hopper.cuh"
#include "kernels/selective_scan/selective_scan_backward_split_attend.cuh"
#include "kernels/selective_scan/selective_scan_backward_split_walk.cuh"

namespace fm {
namespace scan {
namespace {

template <class T, int kStates>
__global__ void __launch_bounds__(Split<kStates>::threads, 1)
    split_kernel(const __grid_constant__ BackwardArgs<T> args) {
  using Cut = Split<kStates>;
  using Layout = SplitLayout<kStates>;
  extern __shared__ __align__(16) unsigned char memory[];
  const ScanShape& s = args.p.shape;
  const int per_direction = s.channels / s.directions, width = args.block_channels;
  const SplitPlace<T, kStates> place{{args, in_register(memory),
                                      static_cast<int>(threadIdx.x) % kWarp,
                                      static_cast<int>(threadIdx.x) / kWarp}};
  if (threadIdx.x == 0) {
    const Part part = part_of(s, args.chunks, width);
    *place.template shared<Where>(0) = {part, rows_of(s, part),
                                        part.direction * per_direction + part.first, per_direction,
                                        ceil_div(s.length, kBlockSteps)};
    Barriers& barriers = place.barriers();
    for (int team = 0; team < Cut::teams; ++team) {
      for (auto& full : barriers.full[team]) barrier_init(full, 1);
      barrier_init(barriers.walked[team], Cut::strips);
      for (auto& drained : barriers.drained[team]) barrier_init(drained, 1);
    }
    for (auto& staged : barriers.staged) barrier_init(staged, Cut::attendants);
    for (auto& gathered : barriers.gathered) barrier_init(gathered, Cut::walkers);
    barrier_init(barriers.matrices_stored, Cut::attendants);
  }
  __syncthreads();
  const Part& part = place.where().part;
  const auto clear = [&](int from, int to) {
    for (int at = from + 16 * threadIdx.x; at < to; at += 16 * Cut::threads)
      *place.template shared<float4>(at) = {0, 0, 0, 0};
  };
  clear(Layout::teams, Layout::gathered);
  clear(Layout::carried, place.layout().bias);
  for (int c = threadIdx.x; c < width; c += Cut::threads) {
    const bool real = c < part.channels;
    place.template shared<float>(place.layout().bias)[c] =
        real ? args.p.in.dt_bias[place.where().channel + c] : 0.0f;
    place.template shared<float>(place.layout().skip)[c] =
        real ? args.p.in.d[place.where().channel + c] : 0.0f;
  }
  __syncthreads();
  if (args.q) {
    const std::int64_t first =
        (part.image_direction * args.chunks + part.chunk) * per_direction + part.first;
    for (int i = threadIdx.x; i < part.channels * kStates; i += Cut::threads) {
      const int c = i / kStates, n = i % kStates;
      place.template shared<float>(Layout::carried)[Layout::place_of_q(c, n)] =
          args.q[first * kStates + i];
    }
  }
  __syncthreads();
  if (place.warp_index >= Cut::walkers + Cut::attendants)
    Attendant<T, kStates, false, false>(place).stage(part.end_block - 1);
  __syncthreads();
  if (place.warp_index < Cut::walkers) {
    take_registers<Cut::walker_registers>();
    Walker<T, kStates>(place).run();
  } else {
    give_registers<Cut::attendant_registers>();
    const auto attend = [&]<bool kPairs, bool kGate>() {
      const Attendant<T, kStates, kPairs, kGate> attendant(place);
      if (place.warp_index < Cut::walkers + Cut::attendants) attendant.run_preparer();
      else attendant.run_finisher();
    };
    if (args.pairs && args.p.in.z) attend.template operator()<true, true>();
    else if (args.pairs) attend.template operator()<true, false>();
    else if (args.p.in.z) attend.template operator()<false, true>();
    else attend.template operator()<false, false>();
  }
}

}  // namespace

template <class T>
void launch_split(CudaQueue& queue, int states, const BackwardArgs<T>& args, unsigned ctas) {
  const auto run = [&]<int kStates>() {
    launch_with_room(
        queue, "scan_backward", split_kernel<T, kStates>, ctas, Split<kStates>::threads,
        static_cast<std::size_t>(SplitLayout<kStates>(args.block_channels).bytes), args);
  };
  if (states == 64) run.template operator()<64>();
  else run.template operator()<128>();
}

template void launch_split(CudaQueue&, int, const BackwardArgs<f16>&, unsigned);
template void launch_split(CudaQueue&, int, const BackwardArgs<bf16>&, unsigned);

}  // namespace scan
}  // namespace fm

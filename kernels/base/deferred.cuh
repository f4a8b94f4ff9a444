// Kernels whose blocks may start while the last kernel's last blocks still run (programmatic
// dependent launch, sm_90 and newer). The way from one kernel to the next costs 1 to 2 us less:
// as much as a small kernel itself. Source: the PTX ISA, section on griddepcontrol.
//
// Why it is safe: such a kernel takes its arguments as Deferred, and the only way to them, and so
// to any address, is wait(), which returns when everything before on the queue is complete and
// visible. The last kernel was launched in one of two ways. Without overlap it had begun after
// the end of all before it. With overlap it waited in the same way before it did anything, so its
// completion implies that of all before it. launch() overlaps kernels with Deferred arguments, and
// no others.
#pragma once

#include <type_traits>

#include "kernels/base/queue.h"

namespace fm {

// The arguments of a kernel, for when the last kernel is done.
template <class P>
class Deferred {
  static_assert(std::is_trivially_copyable_v<P>, "Deferred: arguments are copied as bytes");

 public:
  __host__ __device__ Deferred(const P& p) : p_(p) {}

  // Every thread comes here. Also lets the next kernel's blocks start where there is room, as soon
  // as all blocks of this one have come here: they wait in turn.
  __device__ __forceinline__ const P& wait() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
    return p_;
  }

 private:
  P p_;
};

template <class P>
constexpr bool kIsDeferred = false;
template <class P>
constexpr bool kIsDeferred<Deferred<P>> = true;

// Whether a kernel with these parameters is launched with overlap.
template <class... Params>
constexpr bool overlaps() {
  constexpr bool deferred = (kIsDeferred<std::remove_cv_t<Params>> || ...);
  static_assert(!deferred || (!std::is_pointer_v<Params> && ...),
                "a deferred kernel has its pointers inside its Deferred arguments");
  return deferred;
}

// Whether the device can, and the kernels were compiled to wait: where a newer GPU runs PTX of
// compute_80, they were not.
bool can_overlap(const CudaQueue&);

}  // namespace fm

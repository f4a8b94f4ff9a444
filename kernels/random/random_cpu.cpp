#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/rng.h"
#include "kernels/random/random.h"

namespace fm {
namespace {

constexpr std::int64_t kPiece = 4096;  // elements a thread takes at once; a multiple of 4

}  // namespace

template <class R>
void normal_fill(CpuQueue& queue, const NormalFill<R>& p) {
  check_normal_fill(p.images, p.pixels, p.first_image);
  const std::int64_t pieces = (p.pixels + kPiece - 1) / kPiece;
  parallel_for(queue, p.images * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    float draws[kPiece];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t image = i / pieces, first = i % pieces * kPiece;
      const std::int64_t count = std::min(kPiece, p.pixels - first);
      const RandomKey key{p.seed, p.stream, 0, static_cast<std::uint32_t>(p.first_image + image)};
      fill_normals(key, first, count, draws);
      std::copy_n(draws, count, p.out + image * p.pixels + first);
    }
  });
}

template void normal_fill(CpuQueue&, const NormalFill<float>&);
template void normal_fill(CpuQueue&, const NormalFill<double>&);

}  // namespace fm

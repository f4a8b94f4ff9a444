#include "models/dataset.h"

#include "engine/io/md5.h"
#include "kernels/base/parallel_for.h"
#include "models/digits.h"

namespace fm {

DataSet digits_data(CpuQueue& queue, Split split) {
  constexpr std::int64_t kGrain = 256;  // images a thread draws at a time
  const std::int64_t first = split == Split::train ? 0 : kDigitsTrain;
  DataSet data;
  data.name = "digits";
  data.origin = "drawn (built in)";
  data.count = split == Split::train ? kDigitsTrain : kDigitsTest;
  data.size = static_cast<int>(kDigitSide);
  const std::int64_t pixels = data.pixels_per_image();
  data.pixels.resize(static_cast<std::size_t>(data.count * pixels));
  data.labels.resize(static_cast<std::size_t>(data.count));
  parallel_for(queue, data.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    draw_digits(kDigitsSeed, first + begin, end - begin, data.pixels.data() + begin * pixels,
                data.labels.data() + begin);
  });
  data.fingerprint =
      md5_of({reinterpret_cast<const char*>(data.pixels.data()), data.pixels.size()});
  return data;
}

}  // namespace fm

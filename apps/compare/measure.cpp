#include "apps/compare/measure.h"

#include <algorithm>
#include <chrono>

#include "apps/program.h"
#include "kernels/base/rng.h"
#include "models/classifier.h"

namespace fm {
namespace {

constexpr std::int64_t kImagesAtOnce = 256;
constexpr int kWarmUps = 2;  // on CUDA the second captures the graph

// One forward pass for so many images, planned once.
class Forward {
 public:
  Forward(const Queue& queue, DType compute, const FlowModel& model, std::int64_t images)
      : model_(model), images_(images) {
    Context plan(queue, compute);
    lay_out(plan);
    model_.velocity(plan, x_, t_, labels_);
    context_ = std::make_unique<Context>(queue, compute, plan.arena.peak());
  }

  std::int64_t images() const { return images_; }

  // x [images, C, H, W], t [images] -> the velocity, in host memory.
  std::vector<float> operator()(const std::vector<float>& x, const std::vector<float>& t,
                                const std::vector<std::int32_t>& labels) {
    context_->arena.reset();
    lay_out(*context_);
    std::vector<float> velocity(x.size());
    context_->run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      const std::vector<R> x_values(x.begin(), x.end()), t_values(t.begin(), t.end());
      upload(queue, x_.data, x_values.data(), x_.bytes());
      upload(queue, t_.data, t_values.data(), t_.bytes());
      if (labels_) upload(queue, labels_.data, labels.data(), labels_.bytes());
      const Tensor v = model_.velocity(*context_, x_, t_, labels_);
      std::vector<R> values(velocity.size());
      download(queue, values.data(), v.data, v.bytes());
      std::copy(values.begin(), values.end(), velocity.begin());
    });
    return velocity;
  }

 private:
  void lay_out(Context& context) {
    const ModelConfig& c = model_.config();
    x_ = context.make({images_, c.channels, c.image, c.image}, context.acc());
    t_ = context.make({images_}, context.acc());
    if (c.classes) labels_ = context.make({images_}, DType::i32);
  }

  const FlowModel& model_;
  std::int64_t images_;
  std::unique_ptr<Context> context_;
  Tensor x_, t_, labels_;
};

}  // namespace

std::array<double, kTimeBins> loss_by_time(const Queue& queue, DType compute,
                                           const FlowModel& model, const DataSet& data,
                                           std::int64_t count, std::uint64_t seed,
                                           const std::function<void(std::int64_t)>& after) {
  count = std::min(count, data.count);
  const std::int64_t pixels = data.pixels_per_image();
  std::unique_ptr<Forward> forward;
  std::array<double, kTimeBins> sums{};
  for (std::int64_t first = 0; first < count; first += kImagesAtOnce) {
    const std::int64_t images = std::min(kImagesAtOnce, count - first);
    if (!forward || forward->images() != images) {
      forward.reset();  // its memory first
      forward = std::make_unique<Forward>(queue, compute, model, images);
    }
    const std::vector<float> x1 = scaled_images(data, first, images);
    std::vector<float> x0(x1.size()), x(x1.size()), t(static_cast<std::size_t>(images));
    for (std::int64_t i = 0; i < images; ++i)
      fill_normals({seed, stream::noise, 0, static_cast<std::uint32_t>(first + i)}, 0, pixels,
                   x0.data() + i * pixels);
    const std::vector<std::int32_t> labels(data.labels.begin() + first,
                                           data.labels.begin() + first + images);
    for (int bin = 0; bin < kTimeBins; ++bin) {
      throw_if_interrupted();
      for (std::size_t i = 0; i < t.size(); ++i) {
        const auto item = static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(i);
        const std::uint32_t word =
            random4({seed, stream::time, static_cast<std::uint32_t>(bin), item}, 0).x0;
        t[i] = (static_cast<float>(bin) + uniform(word)) / kTimeBins;
        for (std::size_t p = i * static_cast<std::size_t>(pixels);
             p < (i + 1) * static_cast<std::size_t>(pixels); ++p)
          x[p] = (1 - t[i]) * x0[p] + t[i] * x1[p];
      }
      const std::vector<float> v = (*forward)(x, t, labels);
      double sum = 0;
      for (std::size_t p = 0; p < v.size(); ++p) {
        const double error = v[p] - (double{x1[p]} - x0[p]);
        sum += error * error;
      }
      sums[static_cast<std::size_t>(bin)] += sum;
    }
    if (after) after(first + images);
  }
  for (double& sum : sums) sum /= static_cast<double>(count * pixels);
  return sums;
}

std::vector<double> sampling_times(Sampler& sampler, const SampleSettings& settings, int batch,
                                   int runs) {
  using Clock = std::chrono::steady_clock;
  SampleRequest request;
  request.count = request.batch = batch;
  request.settings = settings;
  request.on_step = [](std::int64_t, std::int64_t, int, const std::vector<float>&) {
    throw_if_interrupted();
  };
  std::vector<double> times;
  for (int i = 0; i < kWarmUps + runs; ++i) {
    const Clock::time_point start = Clock::now();
    sampler(request);
    const std::chrono::duration<double, std::milli> passed = Clock::now() - start;
    if (i >= kWarmUps) times.push_back(passed.count());
  }
  return times;
}

}  // namespace fm

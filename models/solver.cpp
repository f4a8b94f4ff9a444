#include "models/solver.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "engine/profile.h"
#include "kernels/base/cuda_graph.h"
#include "kernels/base/rng.h"
#include "kernels/cast/cast.h"
#include "kernels/linear_combination/linear_combination.h"
#include "kernels/random/random.h"

namespace fm {
namespace {

constexpr std::array<const char*, 4> kNames = {"euler", "midpoint", "heun", "rk4"};

struct Term {
  double factor;
  Tensor x;
};

// out = sum of factor x; out may be one of the terms.
void combine(Context& context, const Tensor& out, const std::vector<Term>& terms) {
  context.run([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    LinearCombination<R> p{out.count(), static_cast<int>(terms.size()), {}, {}, out.as<R>()};
    for (std::size_t i = 0; i < terms.size(); ++i) {
      p.x[i] = terms[i].x.as<R>();
      p.factor[i] = static_cast<R>(terms[i].factor);
    }
    linear_combination(queue, p);
  });
}

// When in a step, in steps, a solver evaluates the velocity: each node once.
std::vector<double> nodes_of(Solver solver) {
  switch (solver) {
    case Solver::euler: return {0};
    case Solver::midpoint: return {0, 0.5};
    case Solver::heun: return {0, 1};
    case Solver::rk4: return {0, 0.5, 1};
  }
  return {};
}

constexpr int kAhead = 64;  // steps

// The velocity at the nodes of every step. Without labels the modulations depend on time alone:
// those of kAhead steps are one product, a row a node, and all images share a row.
class Velocity {
 public:
  Velocity(Context& context, const FlowModel& model, const Tensor& labels,
           const SampleSettings& settings)
      : context_(context),
        model_(model),
        labels_(labels),
        scale_(settings.cfg_scale),
        nodes_(nodes_of(settings.solver)) {
    for (int step = 0; step < settings.steps; ++step)
      for (const double node : nodes_)
        times_.push_back(static_cast<float>((step + node) / settings.steps));
    const std::int64_t count = static_cast<std::int64_t>(times_.size());
    if (guided()) null_ = context.make(labels.shape, DType::i32);
    if (!labels_) {
      t_ = context.make({count}, context.acc());
      modulations_ = context.make({std::min(row_of(kAhead, 0), count), model.modulation_columns()});
    }
    context.run([&]<class T>(auto& queue) {
      if (null_)
        fill(queue,
             Fill<std::int32_t>{null_.count(), model.config().classes, null_.as<std::int32_t>()});
      if (!t_) return;
      const std::vector<acc_t<T>> t(times_.begin(), times_.end());
      upload(queue, t_.data, t.data(), t_.bytes());
    });
  }

  // Comes before a step's evaluations. Steps are taken in order.
  void begin(int step) const {
    if (labels_ || step % kAhead != 0) return;
    Frame frame(context_);
    const std::int64_t first = row_of(step, 0);
    const Tensor t = rows(t_, first, std::min(modulations_.shape[0], t_.shape[0] - first));
    const Tensor made = model_.modulation(context_, t);
    context_.run(
        [&]<class T>(auto& queue) { copy(queue, modulations_.data, made.data, made.bytes()); });
  }

  Tensor operator()(const Tensor& x, int step, int node) const {
    if (!labels_) {
      const ProfileRange range("forward");  // as velocity() has
      return model_.velocity_given(context_, x, rows(modulations_, row_of(step % kAhead, node), 1));
    }
    const Tensor t = context_.make({x.shape[0]}, context_.acc());
    context_.run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      fill(queue,
           Fill<R>{t.count(), times_[static_cast<std::size_t>(row_of(step, node))], t.as<R>()});
    });
    const Tensor v = model_.velocity(context_, x, t, labels_);
    if (guided())
      combine(context_, v, {{scale_, v}, {1 - scale_, model_.velocity(context_, x, t, null_)}});
    return v;
  }

 private:
  bool guided() const { return labels_ && scale_ != 1; }
  std::int64_t row_of(int step, int node) const {
    return step * static_cast<std::int64_t>(nodes_.size()) + node;
  }
  static Tensor rows(const Tensor& all, std::int64_t first, std::int64_t count) {
    const std::size_t row_bytes = all.bytes() / static_cast<std::size_t>(all.shape[0]);
    Tensor part = all;
    part.data = static_cast<char*>(all.data) + static_cast<std::size_t>(first) * row_bytes;
    part.shape = all.shape.rank() == 1 ? Shape{count} : Shape{count, all.shape[1]};
    return part;
  }

  Context& context_;
  const FlowModel& model_;
  Tensor labels_, null_;
  double scale_;
  std::vector<double> nodes_;
  std::vector<float> times_;  // of every node of every step
  Tensor t_, modulations_;    // the same on the device, and [kAhead steps' nodes, *]; unlabelled
};

// Step number `step` of `steps`.
void advance(Context& context, const Velocity& v, const SampleSettings& settings, const Tensor& x,
             int step) {
  const double h = 1.0 / settings.steps;
  const auto moved = [&](double factor, const Tensor& k) {
    const Tensor y = context.make(x.shape, x.dtype);
    combine(context, y, {{1, x}, {factor, k}});
    return y;
  };
  v.begin(step);
  const Tensor k1 = v(x, step, 0);
  switch (settings.solver) {
    case Solver::euler: combine(context, x, {{1, x}, {h, k1}}); break;
    case Solver::midpoint: combine(context, x, {{1, x}, {h, v(moved(h / 2, k1), step, 1)}}); break;
    case Solver::heun:
      combine(context, x, {{1, x}, {h / 2, k1}, {h / 2, v(moved(h, k1), step, 1)}});
      break;
    case Solver::rk4: {
      const Tensor k2 = v(moved(h / 2, k1), step, 1);
      const Tensor k3 = v(moved(h / 2, k2), step, 1);
      const Tensor k4 = v(moved(h, k3), step, 2);
      combine(context, x, {{1, x}, {h / 6, k1}, {h / 3, k2}, {h / 3, k3}, {h / 6, k4}});
      break;
    }
  }
}

}  // namespace

Solver solver_named(const std::string& name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<Solver>(i);
  fail(Fault::usage, "[solver] must be euler, midpoint, heun or rk4, got ", name);
}

const char* name_of(Solver solver) {
  return kNames[static_cast<std::size_t>(solver)];
}

int evaluations_per_step(Solver solver) {
  return solver == Solver::euler ? 1 : solver == Solver::rk4 ? 4 : 2;
}

void integrate(Context& context, const FlowModel& model, const Tensor& x, const Tensor& labels,
               const SampleSettings& settings, const std::function<void(int)>& after_step) {
  FM_CHECK(settings.steps > 0, "[solver] steps must be positive, got ", settings.steps);
  const ProfileRange range("sample");
  Frame run(context);
  const Velocity velocity(context, model, labels, settings);
  for (int i = 0; i < settings.steps; ++i) {
    Frame step(context);
    advance(context, velocity, settings, x, i);
    if (after_step) after_step(i + 1);
  }
}

// The images of one batch: their noise and labels, and the steps that integrate them.
class Sampler::Batch {
 public:
  Batch(const Queue& queue, DType compute, const FlowModel& model, const SampleSettings& settings,
        std::int64_t images, bool labelled)
      : model_(model), settings_(settings), images_(images), labelled_(labelled) {
    // Without labels of its own a request has nothing to be guided towards.
    if (!labelled) settings_.cfg_scale = 1;
    asked_ = settings;
    Context plan(queue, compute);
    {
      const ProfileRange range("plan");
      lay_out(plan);
      step(plan, 0);
    }
    context_ = std::make_unique<Context>(queue, compute, plan.arena.peak());
    lay_out(*context_);
  }

  bool serves(const SampleSettings& settings, std::int64_t images, bool labelled) const {
    return settings == asked_ && images == images_ && labelled == labelled_;
  }

  // Noise and labels of images [first, first + images) of the request.
  void start(const SampleRequest& request, std::int64_t first) {
    const std::int64_t pixels = x_.count() / images_;
    context_->run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      if (request.noise) {
        const float* from = request.noise->data() + first * pixels;
        const std::vector<R> values(from, from + x_.count());
        upload(queue, x_.data, values.data(), x_.bytes());
      } else {
        normal_fill(queue, NormalFill<R>{images_, pixels, first, request.seed, stream::sampling,
                                         x_.as<R>()});
      }
      if (!labels_) return;
      std::vector<std::int32_t> labels(static_cast<std::size_t>(images_), model_.config().classes);
      if (labelled_) std::copy_n(request.labels.begin() + first, labels.size(), labels.begin());
      upload(queue, labels_.data, labels.data(), labels_.bytes());
    });
  }

  // `watched`: after_step looks at the images.
  void run(const std::function<void(int)>& after_step, bool watched) {
    const ProfileRange range("sample");
    const int together = watched ? 1 : kStepsAGraph;
    for (int i = 0; i < settings_.steps; i += together) {
      const int end = std::min(i + together, settings_.steps);
      const bool launched = launch(i, end);
      for (int done = i; done < end; ++done) {
        if (!launched) step(*context_, done);
        after_step(done + 1);
      }
    }
    warm_ = true;
  }

  std::vector<float> images() {
    std::vector<float> values(static_cast<std::size_t>(x_.count()));
    context_->run([&]<class T>(auto& queue) {
      using R = acc_t<T>;
      std::vector<R> state(values.size());
      download(queue, state.data(), x_.data, x_.bytes());
      std::copy(state.begin(), state.end(), values.begin());
    });
    return values;
  }

 private:
  static constexpr int kMostCaptured = 256;  // steps; one keeps about 100 KB
  static constexpr int kStepsAGraph = 16;    // between graphs the device idles for microseconds

  void lay_out(Context& context) {
    const ModelConfig& c = model_.config();
    x_ = context.make({images_, c.channels, c.image, c.image}, context.acc());
    if (c.classes) labels_ = context.make({images_}, DType::i32);
    velocity_.emplace(context, model_, labels_, settings_);
  }

  void step(Context& context, int i) {
    Frame frame(context);
    advance(context, *velocity_, settings_, x_, i);
  }

  // Steps [begin, end) as one graph; false where they are to be taken one by one.
  bool launch([[maybe_unused]] int begin, [[maybe_unused]] int end) {
#if FM_CUDA
    auto* const queue = std::get_if<CudaQueue>(&context_->queue);
    if (!queue || !warm_ || settings_.steps > kMostCaptured) return false;
    auto at = graphs_.find({begin, end});
    if (at == graphs_.end()) {
      const CudaGraph made(*queue, [&] {
        for (int i = begin; i < end; ++i) step(*context_, i);
      });
      at = graphs_.emplace(std::pair{begin, end}, made).first;
    }
    at->second.launch(*queue);
    return true;
#else
    return false;
#endif
  }

  const FlowModel& model_;
  SampleSettings settings_, asked_;
  std::int64_t images_;
  bool labelled_, warm_ = false;
  std::unique_ptr<Context> context_;
  Tensor x_, labels_;
  std::optional<Velocity> velocity_;
#if FM_CUDA
  std::map<std::pair<int, int>, CudaGraph> graphs_;
#endif
};

Sampler::Sampler(const Queue& queue, DType compute, const FlowModel& model)
    : queue_(queue), compute_(compute), model_(model) {}

Sampler::~Sampler() = default;

Sampler::Batch& Sampler::batch_for(const SampleRequest& request, std::int64_t images) {
  const bool labelled = !request.labels.empty();
  if (!batch_ || !batch_->serves(request.settings, images, labelled)) {
    batch_.reset();  // its memory first
    batch_ = std::make_unique<Batch>(queue_, compute_, model_, request.settings, images, labelled);
  }
  return *batch_;
}

std::vector<float> Sampler::operator()(const SampleRequest& request) {
  const ModelConfig& config = model_.config();
  const std::int64_t pixels = std::int64_t{config.channels} * config.image * config.image;
  FM_CHECK(request.settings.steps > 0, "[solver] steps must be positive, got ",
           request.settings.steps);
  FM_CHECK(request.count > 0 && request.batch > 0,
           "[sample] the number of images must be positive, got ", request.count, " in batches of ",
           request.batch);
  FM_CHECK(
      !request.noise || static_cast<std::int64_t>(request.noise->size()) == request.count * pixels,
      "[sample] noise must hold ", request.count, " images of ", pixels, " values");
  FM_CHECK(
      request.labels.empty() || static_cast<std::int64_t>(request.labels.size()) == request.count,
      "[sample] labels must be one an image, got ", request.labels.size(), " for ", request.count);

  std::vector<float> samples;
  samples.reserve(static_cast<std::size_t>(request.count * pixels));
  const std::int64_t largest = std::min<std::int64_t>(request.batch, request.count);
  for (std::int64_t first = 0; first < request.count; first += largest) {
    const std::int64_t images = std::min(largest, request.count - first);
    Batch& batch = batch_for(request, images);
    const auto report = [&](int step) {
      if (request.on_step)
        request.on_step(first, images, step,
                        request.wants_states ? batch.images() : std::vector<float>{});
    };
    batch.start(request, first);
    report(0);
    batch.run(report, request.wants_states);
    const std::vector<float> done = batch.images();
    samples.insert(samples.end(), done.begin(), done.end());
  }
  return samples;
}

std::vector<float> sample(const Queue& queue, DType compute, const FlowModel& model,
                          const SampleRequest& request) {
  return Sampler(queue, compute, model)(request);
}

}  // namespace fm

#include "engine/context.h"

#include <algorithm>

namespace fm {

void check_compute_type(const Queue& queue, DType compute) {
  const bool cpu = std::holds_alternative<CpuQueue>(queue);
  const bool offered =
      cpu ? compute == DType::f32 || compute == DType::f64
          : compute == DType::f32 || compute == DType::f16 || compute == DType::bf16;
  FM_CHECK(offered, "[dtype] ",
           cpu ? "the CPU computes in fp32 or fp64" : "CUDA computes in fp16, bf16 or fp32",
           ", got ", name_of(compute));
}

Context::Context(const Queue& q, DType type) : queue(q), compute(type) {
  check_compute_type(queue, compute);
}

Context::Context(const Queue& q, DType type, std::size_t arena_bytes)
    : queue(q), compute(type), arena(q, arena_bytes) {
  check_compute_type(queue, compute);
}

Tensor Context::make(const Shape& shape, DType dtype) {
  Tensor tensor{nullptr, shape, dtype};
  tensor.data = arena.take(tensor.bytes());
  if (framed_) made_.push_back(tensor.data);
  return tensor;
}

namespace {

// f(main, side) for the two queues, which are of one kind.
template <class F>
void with_both(Queue& main, Queue& side, F&& f) {
  std::visit([&]<class Q>(Q& q) { f(q, std::get<Q>(side)); }, main);
}

}  // namespace

Queue& Context::side() {
  if (!side_) side_ = std::visit([](const auto& q) { return Queue(q.beside()); }, queue);
  return *side_;
}

void Context::on_side(const Work& work) {
  struct Swapped {
    Queue &here, &there;
    Swapped(Queue& a, Queue& b) : here(a), there(b) { std::swap(here, there); }
    ~Swapped() { std::swap(here, there); }
  } const swapped(queue, side());
  work();
}

void Context::on_both(const Work& main, const Work& side_work, bool at_room) {
  arena.hold();
  if (planning()) {
    main();
    side_work();
  } else {
    with_both(queue, side(), [&](auto& here, auto& there) {
      if (at_room) await_room(here);
      else fork(here, there);
    });
    main();
    if (at_room)
      with_both(queue, side(), [](auto& here, auto& there) { fork_at_room(here, there); });
    on_side(side_work);
    with_both(queue, side(), [](auto& here, auto& there) { join(here, there); });
  }
  arena.release();
}

void Context::fork_join(const Work& main, const Work& side_work) {
  on_both(main, side_work, false);
}

void Context::beside(const Work& main, const Work& side_work) {
  on_both(main, side_work, true);
}

void Context::image_by_image(const std::function<void()>& operations) {
  arena.hold();
  Parts parts;
  parts_ = &parts;
  try {
    operations();
  } catch (...) {
    parts_ = nullptr;
    throw;
  }
  parts_ = nullptr;
  const auto run = [&](int begin, int end) {
    for (const ImageWork& work : parts.work) work(begin, end);
  };
  if (parts.at > 0 && parts.at < parts.batch)
    fork_join([&] { run(0, parts.at); }, [&] { run(parts.at, parts.batch); });
  else run(0, parts.batch);
  arena.release();
}

void Context::by_images(int batch, ImageWork work) {
  if (!parts_) return work(0, batch);
  parts_->batch = batch;
  parts_->work.push_back(std::move(work));
}

void Context::part_images_at(int image) {
  if (parts_ && image > 0) parts_->at = image;
}

Frame::Frame(Context& context)
    : context_(context), outer_(std::move(context.made_)), outer_framed_(context.framed_) {
  context.made_.clear();
  context.framed_ = context.tape == nullptr;
}

void Frame::adopt(const Tensor& earlier) {
  if (context_.framed_ && std::erase(outer_, earlier.data)) context_.made_.push_back(earlier.data);
}

Frame::~Frame() {
  for (void* block : context_.made_) {
    if (std::find(kept_.begin(), kept_.end(), block) == kept_.end())
      context_.arena.give_back(block);
    else if (outer_framed_) outer_.push_back(block);
  }
  context_.made_ = std::move(outer_);
  context_.framed_ = outer_framed_;
}

}  // namespace fm

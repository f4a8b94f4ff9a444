#include "engine/tape.h"

#include <memory>
#include <utility>

namespace fm {

void Tape::record(Operation operation) {
  rooms_ += operation.leaves_room;
  operations_.push_back(std::move(operation));
}

void Tape::backward() {
  for (; !operations_.empty(); operations_.pop_back()) {
    Operation& operation = operations_.back();
    rooms_ -= operation.leaves_room;
    operation.backward();
    const auto found = gradients_.find(operation.output.data);
    if (found != gradients_.end()) {
      context_.arena.give_back(found->second.data);
      gradients_.erase(found);
    }
    context_.arena.give_back(place_of(operation.output));
    places_.erase(operation.output.data);
    for (const Tensor& saved : operation.saved) context_.arena.give_back(saved.data);
  }
  FM_CHECK(put_off_.empty(), "[tape] an operation that leaves room has not called beside()");
  gradients_.clear();
  places_.clear();
  constants_.clear();
}

void Tape::drop(const Tensor& output, std::function<void(const Tensor& again)> remake) {
  context_.arena.give_back(output.data);
  const auto again = std::make_shared<Tensor>();
  const auto make = [this, output, again, remake = std::move(remake)] {
    *again = context_.make(output.shape, output.dtype);
    remake(*again);
  };
  record({.name = "remake",
          .output = {},
          .saved = {},
          .backward =
              [this, output, again, make] {
                if (!*again) make();
                places_[output.data] = again->data;
              },
          .ahead = make});
}

void Tape::later(const std::vector<void*>& reads, std::function<void()> work) {
  if (rooms_ == 0) return work();
  for (void* block : reads) context_.arena.keep(block);
  put_off_.push_back({reads, std::move(work)});
}

void Tape::beside(const std::function<void()>& work) {
  const std::vector<PutOff> before = std::exchange(put_off_, {});  // `work` may put off more
  context_.beside(work, [&] {
    for (const PutOff& p : before) p.work();
    // The last operation is the one that leaves room.
    for (auto operation = operations_.rbegin() + 1; operation != operations_.rend(); ++operation) {
      if (operation->leaves_room) break;
      if (operation->ahead) operation->ahead();
    }
  });
  for (const PutOff& p : before)
    for (void* block : p.reads) context_.arena.let_go(block);
}

void* Tape::place_of(const Tensor& output) const {
  const auto found = places_.find(output.data);
  return found == places_.end() ? output.data : found->second;
}

Tensor Tape::value(const Tensor& output) const {
  return {place_of(output), output.shape, output.dtype};
}

void Tape::release(const Tensor& output) {
  context_.arena.give_back(place_of(output));
  places_[output.data] = nullptr;
}

Tensor Tape::overwrite(const Tensor& output) {
  const Tensor gradient = value(output);
  places_[output.data] = nullptr;
  FM_CHECK(gradients_.emplace(output.data, gradient).second,
           "[tape] an output whose gradient has been made is overwritten");
  return gradient;
}

Tensor Tape::gradient(const Tensor& value) const {
  const auto found = gradients_.find(value.data);
  FM_CHECK(found != gradients_.end(), "[tape] no gradient has reached ", value);
  return found->second.view(value.shape);
}

Tape::Target Tape::target(const Tensor& value) {
  const auto found = gradients_.find(value.data);
  if (found != gradients_.end()) return {found->second.view(value.shape), true};
  const Tensor made = context_.make(value.shape, value.dtype);
  gradients_.emplace(value.data, made);
  return {made, false};
}

void Tape::hand_over(const Tensor& from, const Tensor& to) {
  const auto found = gradients_.find(from.data);
  FM_CHECK(found != gradients_.end() && !gradients_.count(to.data) && from.count() == to.count() &&
               from.dtype == to.dtype,
           "[tape] a gradient is handed over once, between values of one size and type, got ", from,
           " to ", to);
  const Tensor gradient = found->second;
  gradients_.erase(found);
  gradients_.emplace(to.data, gradient);
}

}  // namespace fm

#include "engine/tape.h"

#include <utility>

namespace fm {

void Tape::backward() {
  for (; !operations_.empty(); operations_.pop_back()) {
    Operation& operation = operations_.back();
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
  gradients_.clear();
  places_.clear();
  constants_.clear();
}

void Tape::drop(const Tensor& output, std::function<void(const Tensor& again)> remake) {
  context_.arena.give_back(output.data);
  record({"remake", {}, {}, [this, output, remake = std::move(remake)] {
            const Tensor again = context_.make(output.shape, output.dtype);
            places_[output.data] = again.data;
            remake(again);
          }});
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

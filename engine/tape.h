// What happened in a forward pass, to be walked back: an explicit list of operations with their
// gradient functions.
//
// Memory: an operation's output, what it saved, and the gradient of its output are released as soon
// as its gradient function has run; everything that reads them has run by then. An output that
// costs less to compute again than to keep may be dropped in between.
//
// Beside: the last blocks of a long kernel leave most multiprocessors idle. What nobody waits for
// (gradients of weights, which only the optimizer reads) is put off until such an operation comes,
// and what will soon be waited for (dropped outputs) is made early, both on a second queue.
#pragma once

#include <functional>
#include <unordered_map>
#include <vector>

#include "engine/context.h"
#include "engine/tensor.h"

namespace fm {

class Tape {
 public:
  struct Operation {
    const char* name;
    Tensor output;
    std::vector<Tensor> saved;       // made by the operation for its gradient alone
    std::function<void()> backward;  // captures by name, so that what is kept alive is visible
    bool leaves_room = false;        // the gradient function calls beside()
    std::function<void()> ahead{};   // what of the gradient function may be done early, once
  };
  // Where an operation writes its share of an operand's gradient: `accumulate` is false for the
  // first writer.
  struct Target {
    Tensor gradient;
    bool accumulate;
  };

  explicit Tape(Context& context) : context_(context) {}

  void record(Operation operation);

  // Gives an output's memory back for the time from here, where the last operation that reads it
  // has been enqueued, to the same place on the way back, where `remake` writes it again. The
  // gradient functions that read it ask value() where it is. Its old address stays its name: who
  // else is given that memory is recorded later, and gone by the time this value is back.
  void drop(const Tensor& output, std::function<void(const Tensor& again)> remake);

  // Nothing flows back into this value (an image, a label).
  void constant(const Tensor& value) { constants_[value.data] = true; }
  bool wants(const Tensor& value) const { return !constants_.count(value.data); }

  // Runs every gradient function, last operation first, and forgets them.
  void backward();

  // The calls below are for gradient functions. A gradient has its value's shape and type.
  Tensor value(const Tensor& output) const;  // where it stands now, if it was dropped
  // Gives an output's memory back before its own operation's turn: nobody reads it from here on.
  void release(const Tensor& output);
  // The memory of an output for its gradient, when the value has been read for the last time or is
  // overwritten as it is read.
  Tensor overwrite(const Tensor& output);
  Tensor gradient(const Tensor& value) const;  // of an output; throws where nothing was written
  Target target(const Tensor& value);          // of an operand
  // Of an operand whose parts (columns) are overwritten by several operations, each its own, all of
  // them in the end.
  Tensor parts(const Tensor& value) { return target(value).gradient; }
  // The gradient of `from`, unchanged or changed in place, is from now on that of `to` (residual
  // connections).
  void hand_over(const Tensor& from, const Tensor& to);

  // Work of a gradient function that nobody waits for before the end of backward(): done at once,
  // or put off until a gradient function to come leaves room. It reads `reads` (values, gradients,
  // scratch), which stay as they are until then.
  void later(const std::vector<void*>& reads, std::function<void()> work);
  // Enqueues the work of an operation that leaves room, and beside it what was put off and what the
  // operations down to the next such one can do early.
  void beside(const std::function<void()>& work);

  std::size_t size() const { return operations_.size(); }

 private:
  struct PutOff {
    std::vector<void*> reads;
    std::function<void()> work;
  };

  void* place_of(const Tensor& output) const;

  Context& context_;
  std::vector<Operation> operations_;
  std::unordered_map<const void*, Tensor> gradients_;
  std::unordered_map<const void*, void*> places_;  // of outputs made again or released
  std::unordered_map<const void*, bool> constants_;
  int rooms_ = 0;  // operations to come that leave room
  std::vector<PutOff> put_off_;
};

}  // namespace fm

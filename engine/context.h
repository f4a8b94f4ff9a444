// What an operation needs: a queue, the compute type, the step's memory, and the tape where
// gradients are wanted.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <type_traits>
#include <vector>

#include "engine/arena.h"
#include "engine/tensor.h"

namespace fm {

class Tape;

class Context {
 public:
  // A context that plans: operations take memory and record gradients, but launch nothing.
  Context(const Queue& queue, DType compute);
  // One that runs, with this much memory a step.
  Context(const Queue& queue, DType compute, std::size_t arena_bytes);

  Queue queue;
  DType compute;               // of activations and of the weights' copy in matrix products
  bool narrow_stream = false;  // the residual stream in the compute type: half its bytes
  Arena arena;
  Tape* tape = nullptr;  // null: no gradients are wanted, nothing is saved for them

  bool planning() const { return arena.planning(); }
  bool on_cpu() const { return std::holds_alternative<CpuQueue>(queue); }
  DType acc() const { return acc_dtype(compute); }  // of statistics and gradients of parameters
  DType stream() const { return narrow_stream ? compute : acc(); }  // of the residual stream

  // A tensor that lives until the tape or a Frame releases it, or to the end of the step. Not
  // initialised.
  Tensor make(const Shape& shape, DType dtype);
  Tensor make(const Shape& shape) { return make(shape, compute); }

  // Enqueues `main` and, on a second queue beside this one, `side`; what comes after waits for
  // both. Neither may write what the other reads or writes; what either gives back is free only
  // after. On the CPU one after the other. In beside(), `side` waits for a kernel of main's that
  // was launched with room to begin (if there is none, for all of main).
  using Work = std::function<void()>;
  void fork_join(const Work& main, const Work& side);
  void beside(const Work& main, const Work& side);

  // Operations that go image by image. If one of them parts the images, those before are one chain
  // of work and the others a second one on a second queue: what follows a long kernel then runs
  // where the last blocks of another leave multiprocessors idle. Other work on their results comes
  // after it.
  void image_by_image(const std::function<void()>& operations);
  // What such an operation calls: `work(begin, end)` on images of `batch`, at once or, inside
  // image_by_image, when all its operations have been called.
  using ImageWork = std::function<void(int begin, int end)>;
  void by_images(int batch, ImageWork work);
  void part_images_at(int image);  // 0: not for this operation's sake

  // f.operator()<T>(queue) for the compute type and the queue there is.
  template <class F>
  decltype(auto) query(F&& f) {
    return std::visit([&](auto& q) { return with_type(q, f); }, queue);
  }
  // The same for work: nothing happens while planning.
  template <class F>
  void run(F&& f) {
    if (!planning()) query(f);
  }

 private:
  template <class Q, class F>
  decltype(auto) with_type(Q& q, F& f) {
    if constexpr (std::is_same_v<Q, CpuQueue>) {
      return compute == DType::f64 ? f.template operator()<double>(q)
                                   : f.template operator()<float>(q);
    } else {
      if (compute == DType::f16) return f.template operator()<f16>(q);
      if (compute == DType::bf16) return f.template operator()<bf16>(q);
      return f.template operator()<float>(q);
    }
  }

  friend class Frame;
  Queue& side();
  void on_side(const Work& work);
  void on_both(const Work& main, const Work& side, bool at_room);
  struct Parts {
    int batch = 0, at = 0;
    std::vector<ImageWork> work;
  };
  Parts* parts_ = nullptr;     // inside image_by_image
  std::optional<Queue> side_;  // made by the first fork
  std::vector<void*> made_;    // blocks of the innermost frame
  bool framed_ = false;
};

// Throws Fault::usage where this queue does not compute in this type: fp32 and fp64 on the CPU;
// fp32, fp16, bf16 on CUDA.
void check_compute_type(const Queue& queue, DType compute);

// Scratch memory of one operation, given back at the end of its scope (the queue is in order, so
// that is safe).
class Scratch {
 public:
  Scratch(Context& context, std::size_t bytes)
      : context_(context), data_(bytes ? context.arena.take(bytes) : nullptr) {}
  ~Scratch() {
    if (data_) context_.arena.give_back(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Context& context_;
  void* data_;
};

// Without a tape, what a block made is released when the block is done: all but its results, which
// then belong to the frame around it. With a tape, the tape does that, so a Frame does nothing.
// Frames nest.
class Frame {
 public:
  explicit Frame(Context& context);
  ~Frame();
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;
  void keep(const Tensor& result) { kept_.push_back(result.data); }
  // The result of an earlier block goes with this one, unless it is kept again.
  void adopt(const Tensor& earlier);

 private:
  Context& context_;
  std::vector<void*> outer_;
  bool outer_framed_;
  std::vector<void*> kept_;
};

}  // namespace fm

// The parameters of a model: named, and flat in memory.
//
// All master weights lie in one buffer, all gradients in another, and so on, so that the optimizer
// is one launch. Parameters are declared first (add), then given memory (materialise), then values
// (initialise or a checkpoint).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "engine/context.h"

namespace fm {

// The random numbers an element may start from: a function of (seed, parameter, element), the same
// on every machine.
class InitDraw {
 public:
  InitDraw(std::uint64_t seed, std::uint32_t parameter, std::uint64_t element)
      : seed_(seed), parameter_(parameter), element_(element) {}
  double uniform() const;  // in [0, 1)
  double normal() const;   // standard normal
  std::uint64_t element() const { return element_; }

 private:
  std::uint64_t seed_;
  std::uint32_t parameter_;
  std::uint64_t element_;
};
using Init = std::function<double(const InitDraw&)>;

Init init_constant(double value);
Init init_uniform(double bound);  // U(-bound, bound)
Init init_normal(double deviation);

struct Parameter {
  std::string name;
  Shape shape;
  Init init;
  std::uint32_t index = 0;  // order of declaration
  std::int64_t offset = 0;  // of its first element in the flat buffers
  Tensor master;            // acc type
  Tensor compute;           // compute type; master itself where the types agree
  Tensor gradient;          // acc type; null data without training
};

// Weight decay goes to matrices (rank >= 2) other than A_log and the norms' weights, never to
// vectors.
bool weight_decays(const Parameter&);

class ParamStore {
 public:
  // References stay valid.
  Parameter& add(std::string name, const Shape& shape, Init init);

  // Room in the flat buffers for parameters that are to be neighbours, without padding between
  // them: together they are one tensor. Weight decay goes to all of them or to none.
  struct Region {
    std::int64_t next, end;
  };
  Region reserve(std::int64_t count);
  Parameter& add(std::string name, const Shape& shape, Init init, Region& region);

  enum class Use { inference, training, training_with_ema };
  // Takes memory for everything `use` needs, on the context's queue.
  void materialise(Context& context, Use use);
  void initialise(std::uint64_t seed);

  // The flat buffers as tensors [flat_count()]; null data where there is none.
  Tensor master() const { return whole(master_, acc_); }
  Tensor gradient() const { return whole(gradient_, acc_); }
  Tensor m() const { return whole(m_, acc_); }
  Tensor v() const { return whole(v_, acc_); }
  Tensor ema() const { return whole(ema_, acc_); }
  Tensor compute() const { return whole(compute_, compute_type_); }
  const std::uint8_t* decays() const { return decays_.as<std::uint8_t>(); }

  std::vector<std::byte> read(const Tensor& flat);  // a flat buffer's bytes
  void write(const Tensor& flat, const std::vector<std::byte>& bytes);
  void refresh_compute();  // after the master weights changed

  const std::deque<Parameter>& all() const { return parameters_; }
  std::int64_t flat_count() const { return flat_count_; }  // padding included
  std::int64_t count() const;                              // of parameters proper
  std::size_t bytes() const;                               // of all buffers

 private:
  Tensor whole(const Buffer& buffer, DType dtype) const {
    return {buffer.data(), Shape{flat_count_}, dtype};
  }

  std::deque<Parameter> parameters_;
  std::int64_t flat_count_ = 0;
  DType acc_ = DType::f32, compute_type_ = DType::f32;
  std::vector<Queue> queue_;  // one, once materialised
  Buffer master_, gradient_, m_, v_, ema_, compute_, decays_;
};

}  // namespace fm

// The modulations of an adaLN model: the shifts, scales and gates of all its blocks and of its
// head, linear layers of one condition that start at zero. Each layer has parameters of its own;
// they are neighbours in memory, so that all layers are one product. Source: Peebles and Xie 2023
// (DiT), section 3.2.
#pragma once

#include <string>

#include "engine/context.h"
#include "engine/params.h"

namespace fm {

class Modulation {
 public:
  // Takes room for `vectors` vectors of d columns in all.
  Modulation(ParamStore& params, int d, int vectors);

  // Declares `name`.weight and `name`.bias of a layer that makes so many vectors; returns the first
  // of its columns.
  std::int64_t add(const std::string& name, int vectors);
  void materialise();  // after the parameters, with every layer added

  std::int64_t columns() const { return columns_; }  // of the layers so far

  // A condition [rows, d] -> [rows, vectors d], the layers' results side by side.
  Tensor operator()(Context& context, const Tensor& condition) const;

 private:
  ParamStore& params_;
  int d_;
  ParamStore::Region weights_, biases_;
  std::int64_t columns_ = 0;  // declared so far
  const Parameter *first_weight_ = nullptr, *first_bias_ = nullptr;
  Parameter weight_, bias_;  // of all layers; views, not in the store
};

}  // namespace fm

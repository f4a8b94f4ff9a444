#include "engine/params.h"

#include "kernels/adamw/adamw.h"
#include "kernels/base/rng.h"
#include "kernels/cast/cast.h"

namespace fm {

double InitDraw::uniform() const {
  const Random4 words = random4({seed_, stream::initialization, 0, parameter_},
                                static_cast<std::uint32_t>(element_ / 4));
  const std::uint32_t word[4] = {words.x0, words.x1, words.x2, words.x3};
  return ::fm::uniform(word[element_ % 4]);
}

double InitDraw::normal() const {
  const Normal4 z = normal4({seed_, stream::initialization, 0, parameter_},
                            static_cast<std::uint32_t>(element_ / 4));
  const float value[4] = {z.z0, z.z1, z.z2, z.z3};
  return value[element_ % 4];
}

Init init_constant(double value) {
  return [value](const InitDraw&) { return value; };
}
Init init_uniform(double bound) {
  return [bound](const InitDraw& draw) { return bound * (2 * draw.uniform() - 1); };
}
Init init_normal(double deviation) {
  return [deviation](const InitDraw& draw) { return deviation * draw.normal(); };
}

bool weight_decays(const Parameter& p) {
  return p.shape.rank() >= 2 && !p.name.ends_with("A_log") && !p.name.ends_with("_norm");
}

Parameter& ParamStore::add(std::string name, const Shape& shape, Init init) {
  Region own = reserve(shape.count());
  return add(std::move(name), shape, std::move(init), own);
}

ParamStore::Region ParamStore::reserve(std::int64_t count) {
  const std::int64_t begin = flat_count_;
  flat_count_ += (count + kDecayChunk - 1) / kDecayChunk * kDecayChunk;
  return {begin, begin + count};
}

Parameter& ParamStore::add(std::string name, const Shape& shape, Init init, Region& region) {
  FM_CHECK(region.next + shape.count() <= region.end, "[params] ", name, " ", shape,
           " does not fit its region: ", region.end - region.next, " elements are left");
  Parameter p;
  p.name = std::move(name);
  p.shape = shape;
  p.init = std::move(init);
  p.index = static_cast<std::uint32_t>(parameters_.size());
  p.offset = region.next;
  region.next += shape.count();
  return parameters_.emplace_back(std::move(p));
}

void ParamStore::materialise(Context& context, Use use) {
  acc_ = context.acc();
  compute_type_ = context.compute;
  queue_.assign(1, context.queue);
  const auto take = [&](Buffer& buffer, DType dtype) {
    buffer = Buffer(context.queue, static_cast<std::size_t>(flat_count_) * size_of(dtype));
    buffer.zero();  // the padding between parameters is zero and stays so
  };
  take(master_, acc_);
  if (compute_type_ != acc_) take(compute_, compute_type_);
  if (use != Use::inference) {
    take(gradient_, acc_);
    take(m_, acc_);
    take(v_, acc_);
    if (use == Use::training_with_ema) take(ema_, acc_);
    std::vector<std::uint8_t> flags(static_cast<std::size_t>(flat_count_ / kDecayChunk));
    for (const Parameter& p : parameters_)
      for (std::int64_t chunk = p.offset / kDecayChunk;
           chunk * kDecayChunk < p.offset + p.shape.count(); ++chunk)
        flags[static_cast<std::size_t>(chunk)] = weight_decays(p);
    decays_ = Buffer(context.queue, flags.size());
    decays_.upload_from(flags.data(), flags.size());
  }
  for (Parameter& p : parameters_) {
    const auto part = [&](const Buffer& buffer, DType dtype) {
      char* data = buffer.data()
                       ? buffer.as<char>() + p.offset * static_cast<std::int64_t>(size_of(dtype))
                       : nullptr;
      return Tensor{data, p.shape, dtype};
    };
    p.master = part(master_, acc_);
    p.compute = compute_.data() ? part(compute_, compute_type_) : p.master;
    p.gradient = part(gradient_, acc_);
  }
}

void ParamStore::initialise(std::uint64_t seed) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(flat_count_) * size_of(acc_));
  for (const Parameter& p : parameters_) {
    for (std::int64_t i = 0; i < p.shape.count(); ++i) {
      // Rounded to fp32 for every type, so that an fp64 run starts from the same weights.
      const auto value =
          static_cast<float>(p.init(InitDraw(seed, p.index, static_cast<std::uint64_t>(i))));
      const auto at = static_cast<std::size_t>(p.offset + i);
      if (acc_ == DType::f64) reinterpret_cast<double*>(bytes.data())[at] = value;
      else reinterpret_cast<float*>(bytes.data())[at] = value;
    }
  }
  write(master(), bytes);
  if (ema().data) write(ema(), bytes);
  refresh_compute();
}

std::vector<std::byte> ParamStore::read(const Tensor& flat) {
  std::vector<std::byte> bytes(flat.bytes());
  std::visit([&](auto& queue) { download(queue, bytes.data(), flat.data, bytes.size()); },
             queue_.at(0));
  return bytes;
}

void ParamStore::write(const Tensor& flat, const std::vector<std::byte>& bytes) {
  FM_CHECK(flat.bytes() == bytes.size(), "[params] expected ", flat.bytes(), " bytes, got ",
           bytes.size());
  std::visit([&](auto& queue) { upload(queue, flat.data, bytes.data(), bytes.size()); },
             queue_.at(0));
}

void ParamStore::refresh_compute() {
  if (!compute_.data()) return;
#if FM_CUDA
  auto& queue = std::get<CudaQueue>(queue_.at(0));
  const auto narrow = [&]<class T>() {
    cast(queue, Cast<float, T>{flat_count_, master_.as<float>(), compute_.as<T>()});
  };
  if (compute_type_ == DType::f16) narrow.template operator()<f16>();
  else narrow.template operator()<bf16>();
#endif
}

std::int64_t ParamStore::count() const {
  std::int64_t sum = 0;
  for (const Parameter& p : parameters_) sum += p.shape.count();
  return sum;
}

std::size_t ParamStore::bytes() const {
  return master_.bytes() + gradient_.bytes() + m_.bytes() + v_.bytes() + ema_.bytes() +
         compute_.bytes() + decays_.bytes();
}

}  // namespace fm

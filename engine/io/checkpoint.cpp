#include "engine/io/checkpoint.h"

#include <algorithm>
#include <map>

namespace fm {
namespace {

constexpr const char* kModel = "model.";
constexpr const char* kEma = "ema.";
constexpr const char* kM = "optim.m.";
constexpr const char* kV = "optim.v.";
constexpr std::size_t kListed = 8;  // names in a message

bool speaks_of_average(const std::string& prefix) {
  return prefix.find("ema") != std::string::npos || prefix.find("average") != std::string::npos;
}

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kListed); ++i)
    text += (i ? ", " : "") + names[i];
  if (names.size() > kListed) text += concat(", ... (", names.size(), " in all)");
  return text;
}

std::vector<std::int64_t> extents(const Shape& shape) {
  std::vector<std::int64_t> extents;
  for (int i = 0; i < shape.rank(); ++i) extents.push_back(shape[i]);
  return extents;
}

std::vector<std::string> names_of(const ParamStore& params) {
  std::vector<std::string> names;
  for (const Parameter& p : params.all()) names.push_back(p.name);
  return names;
}

// Every difference between the tensors under a prefix and the parameters, in one message.
void check_tensors(const SafetensorsFile& file, const ParamStore& params,
                   const std::string& prefix) {
  std::vector<std::string> missing, unexpected, misshapen;
  std::map<std::string, const Parameter*> expected;
  for (const Parameter& p : params.all()) {
    expected.emplace(prefix + p.name, &p);
    const StoredTensor* stored = file.find(prefix + p.name);
    if (!stored) missing.push_back(p.name);
    else if (stored->shape != extents(p.shape))
      misshapen.push_back(concat(p.name, " ", shape_text(stored->shape), " instead of ", p.shape));
  }
  for (const StoredTensor& stored : file.tensors()) {
    if (!stored.name.starts_with(prefix) || expected.count(stored.name)) continue;
    // What lies beside a bare model under another prefix of the same names (an average, moments) is
    // not part of it.
    const bool elsewhere = std::any_of(expected.begin(), expected.end(), [&](const auto& item) {
      return stored.name.ends_with("." + item.second->name);
    });
    if (!elsewhere) unexpected.push_back(stored.name);
  }
  if (missing.empty() && unexpected.empty() && misshapen.empty()) return;
  std::string message = concat("[checkpoint] ", file.path().string(), " does not hold this model",
                               prefix.empty() ? "" : " under `" + prefix + "`");
  if (!missing.empty()) message += "; missing: " + list_of(missing);
  if (!unexpected.empty()) message += "; unexpected: " + list_of(unexpected);
  if (!misshapen.empty()) message += "; misshapen: " + list_of(misshapen);
  fail(Fault::data, message);
}

// The tensors under a prefix into a flat buffer of the store.
void read_flat(const SafetensorsFile& file, ParamStore& params, const std::string& prefix,
               const Tensor& flat) {
  check_tensors(file, params, prefix);
  std::vector<std::byte> bytes(flat.bytes());
  const auto fill = [&]<class A>(A* to) {
    for (const Parameter& p : params.all()) {
      const std::vector<A> values = file.read_floats<A>(prefix + p.name);
      std::copy(values.begin(), values.end(), to + p.offset);
    }
  };
  if (flat.dtype == DType::f64) fill(reinterpret_cast<double*>(bytes.data()));
  else fill(reinterpret_cast<float*>(bytes.data()));
  params.write(flat, bytes);
}

std::string required_prefix(const SafetensorsFile& file, const ParamStore& params,
                            Weights weights) {
  std::string prefix;
  if (find_prefix(file, names_of(params), weights, prefix)) return prefix;
  std::vector<std::string> found;
  for (const StoredTensor& stored : file.tensors()) found.push_back(stored.name);
  fail(Fault::data, "[checkpoint] ", file.path().string(), " holds no ",
       weights == Weights::ema ? "ema " : "", "weights of this model; it has ",
       found.empty() ? "no tensors" : list_of(found));
}

}  // namespace

void write_checkpoint(const std::filesystem::path& path, ParamStore& params,
                      const Metadata& metadata) {
  struct Part {
    const char* prefix;
    Tensor flat;
    std::vector<std::byte> bytes;
  };
  std::vector<Part> parts = {{kModel, params.master(), {}},
                             {kEma, params.ema(), {}},
                             {kM, params.m(), {}},
                             {kV, params.v(), {}}};
  std::vector<TensorToStore> tensors;
  for (Part& part : parts) {
    if (!part.flat) continue;
    part.bytes = params.read(part.flat);
    for (const Parameter& p : params.all())
      tensors.push_back(
          {part.prefix + p.name, part.flat.dtype, extents(p.shape),
           part.bytes.data() + static_cast<std::size_t>(p.offset) * size_of(part.flat.dtype)});
  }
  write_safetensors(path, tensors, metadata);
}

bool find_prefix(const SafetensorsFile& file, const std::vector<std::string>& names,
                 Weights weights, std::string& prefix) {
  std::map<std::string, std::size_t> completed;  // prefix -> how many names it completes
  for (const StoredTensor& stored : file.tensors()) {
    for (const std::string& name : names) {
      if (!stored.name.ends_with(name)) continue;
      const std::string before = stored.name.substr(0, stored.name.size() - name.size());
      if ((before.empty() || before.back() == '.') && !before.starts_with("optim"))
        ++completed[before];
    }
  }
  const auto best_of = [&](bool average) {
    std::size_t most = 0;
    for (const auto& [before, count] : completed) {
      if (speaks_of_average(before) != average || count <= most) continue;
      most = count;
      prefix = before;
    }
    return most > 0;
  };
  if (weights == Weights::ema) return best_of(true);
  return best_of(false) || best_of(true);
}

bool has_weights(const SafetensorsFile& file, const ParamStore& params, Weights weights) {
  std::string prefix;
  return find_prefix(file, names_of(params), weights, prefix);
}

void read_weights(const SafetensorsFile& file, ParamStore& params, Weights weights) {
  read_flat(file, params, required_prefix(file, params, weights), params.master());
  params.refresh_compute();
}

void read_training_state(const SafetensorsFile& file, ParamStore& params) {
  read_flat(file, params, kModel, params.master());
  read_flat(file, params, kM, params.m());
  read_flat(file, params, kV, params.v());
  if (params.ema()) read_flat(file, params, kEma, params.ema());
  params.refresh_compute();
}

}  // namespace fm

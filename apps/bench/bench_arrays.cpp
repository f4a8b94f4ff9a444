#include "apps/bench/bench_arrays.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/parallel_for.h"
#include "kernels/base/rng.h"

namespace fm {
namespace {

constexpr std::uint64_t kSeed = 0xbe9c;

template <class T>
T narrowed(float x) {
  if constexpr (std::is_same_v<T, f16>) return to_f16(x);
  else if constexpr (std::is_same_v<T, bf16>) return to_bf16(x);
  else return static_cast<T>(x);
}
template <class T>
double widened(T x) {
  if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>) return to_float(x);
  else return static_cast<double>(x);
}

// f.operator()<T>() for a floating type.
template <class F>
decltype(auto) with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f16: return f.template operator()<f16>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    default: return f.template operator()<float>();
  }
}

float rounded_to(DType dtype, float x) {
  return with_float(dtype, [x]<class T>() { return static_cast<float>(widened(narrowed<T>(x))); });
}

bool is_finite(const std::byte* element, DType dtype) {
  return with_float(dtype, [element]<class T>() {
    T x;
    std::memcpy(&x, element, sizeof x);
    return std::isfinite(widened(x));
  });
}

// FNV-1a (Fowler, Noll, Vo) over 8 bytes at a time.
std::uint64_t hash(const std::byte* from, std::size_t bytes) {
  std::uint64_t value = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, from + i, std::min<std::size_t>(8, bytes - i));
    value = (value ^ word) * 0x100000001b3u;
  }
  return value;
}

}  // namespace

const Buffer& BenchArrays::made(std::size_t bytes) {
  return buffers_.emplace_back(queue_, bytes);
}

const Buffer& BenchArrays::uploaded(const void* from, std::size_t bytes) {
  Buffer& buffer = buffers_.emplace_back(queue_, bytes);
  buffer.upload_from(from, bytes);
  return buffer;
}

const Buffer& BenchArrays::normals(DType stored, DType rounded, std::int64_t count, Normal values) {
  const std::int64_t drawn = std::min(count, kPeriod);
  std::vector<float> floats(static_cast<std::size_t>(drawn));
  fill_normals({kSeed, stream::noise, 0, drawn_++}, 0, drawn, floats.data());
  const auto bytes = static_cast<std::size_t>(count) * size_of(stored);
  Buffer& buffer = buffers_.emplace_back(queue_, bytes);
  with_float(stored, [&]<class T>() {
    std::vector<T> typed(floats.size());
    for (std::size_t i = 0; i < floats.size(); ++i) {
      const double x = values.mean + values.deviation * static_cast<double>(floats[i]);
      typed[i] = narrowed<T>(rounded_to(rounded, static_cast<float>(x)));
    }
    buffer.upload_from(typed.data(), typed.size() * sizeof(T));
  });
  auto* const data = buffer.as<std::byte>();
  for (std::size_t done = static_cast<std::size_t>(drawn) * size_of(stored); done < bytes;) {
    const std::size_t more = std::min(done, bytes - done);
    copy_bytes(data + done, data, more);
    done += more;
  }
  return buffer;
}

const Buffer& BenchArrays::written(const std::string& name, DType dtype, const Rows& rows) {
  const std::int64_t elements = (rows.count - 1) * rows.stride + rows.width;
  const Buffer& buffer = made(static_cast<std::size_t>(elements) * size_of(dtype));
  outputs_.push_back({name, dtype, rows, buffer.data()});
  return buffer;
}

void BenchArrays::restored(const Buffer& data) {
  const Buffer& pristine = made(data.bytes());
  copy_bytes(pristine.data(), data.data(), data.bytes());
  restored_.push_back({data.data(), pristine.data(), data.bytes()});
}

void BenchArrays::restore(const void* array) {
  for (const Buffer& buffer : buffers_)
    if (buffer.data() == array) return restored(buffer);
  fail(Fault::usage, "[bench] only an array of these can be restored");
}

void BenchArrays::copy_bytes(void* to, const void* from, std::size_t bytes) {
  std::visit([&](auto& queue) { copy(queue, to, from, bytes); }, queue_);
}

void BenchArrays::begin() {
  for (const Output& output : outputs_) {
    const Rows& r = output.rows;
    const std::size_t bytes =
        static_cast<std::size_t>((r.count - 1) * r.stride + r.width) * size_of(output.dtype);
    std::visit([&](auto& queue) { fill_bytes(queue, output.data, 0xff, bytes); }, queue_);
  }
  for (const Restored& r : restored_) copy_bytes(r.data, r.pristine, r.bytes);
}

std::vector<std::byte> BenchArrays::bytes_of(const Output& output) {
  const Rows& r = output.rows;
  const std::size_t size = size_of(output.dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>((r.count - 1) * r.stride + r.width) * size);
  std::visit([&](auto& queue) { download(queue, bytes.data(), output.data, bytes.size()); },
             queue_);
  return bytes;
}

std::vector<BenchArrays::Values> BenchArrays::read() {
  std::vector<Values> all;
  for (const Output& output : outputs_) {
    const std::vector<std::byte> bytes = bytes_of(output);
    Values& one = all.emplace_back(Values{output.name, {}});
    with_float(output.dtype, [&]<class T>() {
      const Rows& r = output.rows;
      for (std::int64_t row = 0; row < r.count; ++row)
        for (std::int64_t i = 0; i < r.width; ++i) {
          T x;
          std::memcpy(&x, bytes.data() + static_cast<std::size_t>(row * r.stride + i) * sizeof x,
                      sizeof x);
          one.values.push_back(widened(x));
        }
    });
  }
  return all;
}

BenchArrays::Fingerprint BenchArrays::fingerprint(CpuQueue& host) {
  Fingerprint result;
  for (const Output& output : outputs_) {
    const std::vector<std::byte> bytes = bytes_of(output);
    const Rows& r = output.rows;
    const std::size_t size = size_of(output.dtype);
    // In pieces of whole rows, or of parts of one long row.
    const std::int64_t piece = std::min<std::int64_t>(r.width, 1 << 16);
    const std::int64_t pieces_a_row = (r.width + piece - 1) / piece;
    const std::int64_t pieces = r.count * pieces_a_row;
    std::vector<std::uint64_t> hashes(static_cast<std::size_t>(pieces));
    std::vector<std::uint8_t> finite(static_cast<std::size_t>(pieces), 1);
    parallel_for(host, pieces, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t first = p % pieces_a_row * piece;
        const std::int64_t count = std::min(piece, r.width - first);
        const std::byte* from =
            bytes.data() + static_cast<std::size_t>(p / pieces_a_row * r.stride + first) * size;
        const auto at = static_cast<std::size_t>(p);
        hashes[at] = hash(from, static_cast<std::size_t>(count) * size);
        for (std::int64_t i = 0; i < count && finite[at]; ++i)
          finite[at] = is_finite(from + static_cast<std::size_t>(i) * size, output.dtype);
      }
    });
    result.bits = (result.bits ^ hash(reinterpret_cast<const std::byte*>(hashes.data()),
                                      hashes.size() * sizeof hashes[0])) *
                  0x100000001b3u;
    if (result.not_finite.empty() &&
        std::find(finite.begin(), finite.end(), std::uint8_t{0}) != finite.end())
      result.not_finite = output.name;
  }
  return result;
}

}  // namespace fm

#include "apps/environment.h"

#include <charconv>
#include <fstream>
#include <thread>

#include "engine/context.h"

#if FM_CUDA
#include <cuda_runtime.h>
#endif

namespace fm {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name"))
      return line.substr(std::min(line.find(':') + 2, line.size()));
  return "CPU";
}

#if FM_CUDA
std::string cuda_version(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}
#endif

}  // namespace

std::string version_text() {
#if FM_CUDA
  return concat(FM_VERSION " (" FM_COMMIT ", CUDA ", cuda_version(CUDART_VERSION), ")");
#else
  return FM_VERSION " (" FM_COMMIT ", CPU only)";
#endif
}

Json environment_json(const Queue& queue) {
  Json json;
  json["version"] = FM_VERSION;
  json["commit"] = FM_COMMIT;
  json["compiler"] = concat("g++ ", __VERSION__);
  json["device"] = device_name(queue);
  json["cores"] = std::thread::hardware_concurrency();
  if (const auto* cpu = std::get_if<CpuQueue>(&queue)) json["threads"] = cpu->threads();
#if FM_CUDA
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  json["cuda_runtime"] = cuda_version(runtime);
  json["cuda_driver"] = driver ? cuda_version(driver) : "none";
#endif
  return json;
}

Queue make_queue(const std::string& device, int threads) {
  FM_CHECK(threads >= 0 && threads <= 1024, "[device] threads must be 0 (one a core) to 1024, got ",
           threads);
  if (device == "cpu" || (device == "auto" && cuda_device_count() == 0)) return CpuQueue(threads);
  int index = 0;
  if (device.starts_with("cuda:")) {
    const auto [end, error] =
        std::from_chars(device.data() + 5, device.data() + device.size(), index);
    FM_CHECK(error == std::errc() && end == device.data() + device.size() && index >= 0,
             "[device] must be auto, cpu, cuda or cuda:N, got ", device);
  } else {
    FM_CHECK(device == "auto" || device == "cuda",
             "[device] must be auto, cpu, cuda or cuda:N, got ", device);
  }
#if FM_CUDA
  return CudaQueue(index);
#else
  fail(Fault::device,
       "[device] this build has no CUDA backend; use --device cpu, or build where nvcc >= 12.4 is");
#endif
}

std::string device_name(const Queue& queue) {
#if FM_CUDA
  if (const auto* cuda = std::get_if<CudaQueue>(&queue)) return cuda->limits.name;
#endif
  return concat(cpu_name(), ", ", std::get<CpuQueue>(queue).threads(), " threads");
}

DType make_dtype(const std::string& dtype, const Queue& queue) {
  const bool cpu = std::holds_alternative<CpuQueue>(queue);
  DType type = cpu ? DType::f32 : DType::f16;
  if (dtype != "auto") {
    bool known = false;
    for (const DType candidate : {DType::f32, DType::f16, DType::bf16, DType::f64}) {
      if (dtype != name_of(candidate)) continue;
      type = candidate;
      known = true;
    }
    FM_CHECK(known, "[dtype] must be auto, fp16, bf16, fp32 or fp64, got ", dtype);
  }
  check_compute_type(queue, type);
  return type;
}

}  // namespace fm

// Versions and machine: what a run was made with.
#pragma once

#include <string>

#include "engine/io/fields.h"
#include "kernels/base/dtype.h"
#include "kernels/base/queue.h"

namespace fm {

std::string version_text();           // "0.1.0 (commit, CUDA 13.0)"
Json environment_json(const Queue&);  // version, commit, compiler, CUDA, device, driver, cores

// "auto": the first CUDA device where there is one, else the CPU. "cpu", "cuda", "cuda:N". Throws
// Fault::device where it is missing, Fault::usage for another text. threads: of the CPU; 0: one a
// core.
Queue make_queue(const std::string& device, int threads);
std::string device_name(const Queue&);

// "auto": fp16 on CUDA, fp32 on the CPU. Throws Fault::usage where the device does not compute in
// it.
DType make_dtype(const std::string& dtype, const Queue&);

}  // namespace fm

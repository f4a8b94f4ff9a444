// Products by cuBLASLt. What a shape needs (descriptors, the heuristic's first algorithm) is
// prepared at its first call and found again at later ones, which neither allocate nor query: they
// can be captured in a CUDA graph.
//
// cuBLASLt is column-major. A row-major d [m, n] is its d' [n, m], so b comes first:
// d' = b' a'^T; an operand with k inside is its [k, .] matrix, one with k outside its [., k].
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <map>
#include <memory>
#include <type_traits>

#include "kernels/base/cuda_check.h"
#include "kernels/matmul/product.h"

namespace fm {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;
constexpr std::int64_t kWidestAccess = 16;  // bytes: no kernel asks for more than this alignment

// Everything an algorithm's choice depends on.
struct PlanKey {
  struct Matrix {
    std::int64_t ld, group_stride, alignment;
    bool k_inner;
    auto operator<=>(const Matrix&) const = default;
  };
  std::int64_t m, n, k;
  int groups;
  DType type, d_type;
  bool bias;
  Matrix a, b, d;
  auto operator<=>(const PlanKey&) const = default;
};

// The descriptors are plain memory and own nothing.
struct Plan {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, d;
  cublasLtMatmulAlgo_t algorithm;
  bool exists;
};

std::string describe(const PlanKey& key) {
  return concat(key.groups, " x [", key.m, ", ", key.k, "] x [", key.k, ", ", key.n, "] ",
                name_of(key.type), " -> ", name_of(key.d_type), key.bias ? " with bias" : "",
                ", row strides ", key.a.ld, ", ", key.b.ld, ", ", key.d.ld);
}

void check(cublasStatus_t status, const char* call, const PlanKey& key) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail(Fault::device, "[matmul] ", call, " failed: ", cublasLtGetStatusString(status), " for ",
         describe(key));
}

cudaDataType_t cuda_type(DType type) {
  return type == DType::f16 ? CUDA_R_16F : type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The largest power of two up to kWidestAccess that divides the address and the distances in bytes.
template <class T>
std::int64_t alignment_of(const T* data, std::int64_t ld, std::int64_t group_stride) {
  const auto bits = reinterpret_cast<std::uintptr_t>(data) |
                    static_cast<std::uintptr_t>(ld * std::int64_t{sizeof(T)}) |
                    static_cast<std::uintptr_t>(group_stride * std::int64_t{sizeof(T)}) |
                    static_cast<std::uintptr_t>(kWidestAccess);
  return std::int64_t{1} << std::countr_zero(bits);
}

template <class T>
PlanKey::Matrix matrix_key(const T* data, std::int64_t ld, std::int64_t group_stride, int groups,
                           bool k_inner) {
  if (groups == 1) group_stride = 0;
  return {ld, group_stride, alignment_of(data, ld, group_stride), k_inner};
}

template <class T, class D>
PlanKey key_of(const Product<T, D>& p, const T* bias) {
  PlanKey key{p.m,
              p.n,
              p.k,
              p.groups,
              dtype_of<T>(),
              dtype_of<D>(),
              bias != nullptr,
              matrix_key(p.a.data, p.a.ld, p.a.group_stride, p.groups, p.a.k_inner),
              matrix_key(p.b.data, p.b.ld, p.b.group_stride, p.groups, p.b.k_inner),
              matrix_key(p.d, p.ldd, p.d_group_stride, p.groups, false)};
  // The epilogue reads the bias as it writes d: the same width of access.
  if (bias) key.d.alignment = std::min(key.d.alignment, alignment_of(bias, 0, 0));
  return key;
}

template <class Value>
void set_operation(Plan& plan, cublasLtMatmulDescAttributes_t what, Value value,
                   const PlanKey& key) {
  check(cublasLtMatmulDescSetAttribute(&plan.operation, what, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute", key);
}

cublasLtMatrixLayoutOpaque_t layout(DType type, std::int64_t rows, std::int64_t columns,
                                    std::int64_t ld, std::int64_t group_stride,
                                    const PlanKey& key) {
  cublasLtMatrixLayoutOpaque_t made;
  check(cublasLtMatrixLayoutInit(&made, cuda_type(type), static_cast<std::uint64_t>(rows),
                                 static_cast<std::uint64_t>(columns), ld),
        "cublasLtMatrixLayoutInit", key);
  if (key.groups == 1) return made;
  const std::int32_t groups = key.groups;
  check(cublasLtMatrixLayoutSetAttribute(&made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &groups,
                                         sizeof groups),
        "cublasLtMatrixLayoutSetAttribute", key);
  check(cublasLtMatrixLayoutSetAttribute(&made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                         &group_stride, sizeof group_stride),
        "cublasLtMatrixLayoutSetAttribute", key);
  return made;
}

cublasLtMatrixLayoutOpaque_t operand_layout(const PlanKey::Matrix& x, std::int64_t extent,
                                            const PlanKey& key) {
  return layout(key.type, x.k_inner ? key.k : extent, x.k_inner ? extent : key.k, x.ld,
                x.group_stride, key);
}

template <class Value>
void prefer(cublasLtMatmulPreferenceOpaque_t& preference, cublasLtMatmulPreferenceAttributes_t what,
            Value value, const PlanKey& key) {
  check(cublasLtMatmulPreferenceSetAttribute(&preference, what, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute", key);
}

// Where sums are split, the parts meet in the workspace in a fixed order: INPLACE adds them as they
// come, and OUTPUT_TYPE rounds each to d's type.
cublasLtMatmulPreferenceOpaque_t preference_of(const PlanKey& key) {
  cublasLtMatmulPreferenceOpaque_t made;
  check(cublasLtMatmulPreferenceInit(&made), "cublasLtMatmulPreferenceInit", key);
  prefer(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes}, key);
  prefer(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), key);
  prefer(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
         static_cast<std::uint32_t>(key.b.alignment), key);
  prefer(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
         static_cast<std::uint32_t>(key.a.alignment), key);
  prefer(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
         static_cast<std::uint32_t>(key.d.alignment), key);
  prefer(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
         static_cast<std::uint32_t>(key.d.alignment), key);
  return made;
}

// The bias pointer is set anew at every call; the heuristic wants to see one, too.
Plan make_plan(cublasLtHandle_t handle, const PlanKey& key, const void* bias) {
  Plan plan{};
  check(cublasLtMatmulDescInit(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescInit", key);
  set_operation(plan, CUBLASLT_MATMUL_DESC_TRANSA,
                std::int32_t{key.b.k_inner ? CUBLAS_OP_T : CUBLAS_OP_N}, key);
  set_operation(plan, CUBLASLT_MATMUL_DESC_TRANSB,
                std::int32_t{key.a.k_inner ? CUBLAS_OP_N : CUBLAS_OP_T}, key);
  if (key.bias) {
    set_operation(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, std::uint32_t{CUBLASLT_EPILOGUE_BIAS}, key);
    set_operation(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, key);
  }
  plan.a = operand_layout(key.b, key.n, key);
  plan.b = operand_layout(key.a, key.m, key);
  plan.d = layout(key.d_type, key.n, key.m, key.d.ld, key.d.group_stride, key);

  cublasLtMatmulPreferenceOpaque_t preference = preference_of(key);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &plan.operation, &plan.a, &plan.b, &plan.d, &plan.d, &preference, 1, &found, &count);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "cublasLtMatmulAlgoGetHeuristic", key);
  plan.exists = status == CUBLAS_STATUS_SUCCESS && count > 0 &&
                found.state == CUBLAS_STATUS_SUCCESS && found.workspaceSize <= kWorkspaceBytes;
  plan.algorithm = found.algo;
  return plan;
}

struct DestroyHandle {
  void operator()(cublasLtContext* handle) const { cublasLtDestroy(handle); }
};

}  // namespace

struct MatmulPlans {
  explicit MatmulPlans(const CudaQueue& used_by) : queue(used_by) {
    cublasLtHandle_t made = nullptr;
    const cublasStatus_t status = cublasLtCreate(&made);
    if (status != CUBLAS_STATUS_SUCCESS)
      fail(Fault::device, "[matmul] cublasLtCreate failed: ", cublasLtGetStatusString(status));
    handle.reset(made);
    workspace = allocate(queue, kWorkspaceBytes);
  }
  ~MatmulPlans() { release(queue, workspace); }
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  Plan& plan(const PlanKey& key, const void* bias) {
    const auto at = plans.find(key);
    if (at != plans.end()) return at->second;
    return plans.emplace(key, make_plan(handle.get(), key, bias)).first->second;
  }

  CudaQueue queue;  // copied before it holds these plans: no cycle
  std::unique_ptr<cublasLtContext, DestroyHandle> handle;
  void* workspace = nullptr;
  std::map<PlanKey, Plan> plans;
};

namespace {

// False where cuBLASLt has no algorithm.
template <class T, class D>
bool multiply_planned(CudaQueue& queue, const Product<T, D>& p, const T* bias) {
  if (!queue.matmul_plans) queue.matmul_plans = std::make_shared<MatmulPlans>(queue);
  MatmulPlans& plans = *queue.matmul_plans;
  const PlanKey key = key_of(p, bias);
  Plan& plan = plans.plan(key, bias);
  if (!plan.exists) return false;
  if (bias) set_operation(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, key);
  const float alpha = 1, beta = p.accumulate ? 1 : 0;
  check(cublasLtMatmul(plans.handle.get(), &plan.operation, &alpha, p.b.data, &plan.a, p.a.data,
                       &plan.b, &beta, p.d, &plan.d, p.d, &plan.d, &plan.algorithm, plans.workspace,
                       kWorkspaceBytes, queue.stream()),
        "cublasLtMatmul", key);
  return true;
}

}  // namespace

template <class T, class D>
void multiply(CudaQueue& queue, const Product<T, D>& product) {
  if (!multiply_planned<T, D>(queue, product, nullptr)) multiply_simple(queue, product);
}

template <class T>
bool multiply_with_bias(CudaQueue& queue, const Product<T, T>& product, const T* bias) {
  return multiply_planned(queue, product, bias);
}

MatmulPlanCount matmul_plan_count(const CudaQueue& queue) {
  MatmulPlanCount count{0, 0};
  if (!queue.matmul_plans) return count;
  for (const auto& [key, plan] : queue.matmul_plans->plans) {
    ++count.all;
    if (!plan.exists) ++count.without_algorithm;
  }
  return count;
}

template void multiply(CudaQueue&, const Product<float, float>&);
template void multiply(CudaQueue&, const Product<f16, f16>&);
template void multiply(CudaQueue&, const Product<f16, float>&);
template void multiply(CudaQueue&, const Product<bf16, bf16>&);
template void multiply(CudaQueue&, const Product<bf16, float>&);
template bool multiply_with_bias(CudaQueue&, const Product<float, float>&, const float*);
template bool multiply_with_bias(CudaQueue&, const Product<f16, f16>&, const f16*);
template bool multiply_with_bias(CudaQueue&, const Product<bf16, bf16>&, const bf16*);

}  // namespace fm

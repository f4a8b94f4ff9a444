// A tool that NVTX loads into a program (NVTX_INJECTION64_PATH): counts the ranges of the domain fm
// by their path, outer ranges first ("step/forward/block"), and writes "count path" lines to the
// file that FM_NVTX_COUNTS names when the program ends. Of one thread, as the engine's ranges are.
#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

struct Counts {
  std::map<std::string, long> of;
  std::string path;
  long unbalanced = 0;

  ~Counts() {
    const char* const file = std::getenv("FM_NVTX_COUNTS");
    std::FILE* const out = file ? std::fopen(file, "w") : nullptr;
    if (!out) return;
    for (const auto& [name, count] : of) std::fprintf(out, "%ld %s\n", count, name.c_str());
    std::fprintf(out, "%ld unbalanced\n", unbalanced + (path.empty() ? 0 : 1));
    std::fclose(out);
  }
};
Counts counts;
char fm_domain, other_domain;  // their addresses are the handles

nvtxDomainHandle_t create_domain(const char* name) {
  return reinterpret_cast<nvtxDomainHandle_t>(std::strcmp(name, "fm") ? &other_domain : &fm_domain);
}
bool is_fm(nvtxDomainHandle_t domain) {
  return reinterpret_cast<char*>(domain) == &fm_domain;
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  if (!is_fm(domain)) return 0;
  const bool text = event->messageType == NVTX_MESSAGE_TYPE_ASCII && event->message.ascii;
  if (!counts.path.empty()) counts.path += '/';
  counts.path += text ? event->message.ascii : "?";
  ++counts.of[counts.path];
  return 0;
}

int pop(nvtxDomainHandle_t domain) {
  if (!is_fm(domain)) return 0;
  if (counts.path.empty()) ++counts.unbalanced;
  const std::size_t slash = counts.path.rfind('/');
  counts.path.resize(slash == std::string::npos ? 0 : slash);
  return 0;
}

template <class Function>
void set(NvtxFunctionTable table, unsigned size, unsigned index, Function* function) {
  if (index < size) *table[index] = reinterpret_cast<NvtxFunctionPointer>(function);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(
    NvtxGetExportTableFunc_t export_table) {
  const auto* callbacks =
      static_cast<const NvtxExportTableCallbacks*>(export_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size))
    return 0;
  set(table, size, NVTX_CBID_CORE2_DomainCreateA, create_domain);
  set(table, size, NVTX_CBID_CORE2_DomainRangePushEx, push);
  set(table, size, NVTX_CBID_CORE2_DomainRangePop, pop);
  return 1;
}

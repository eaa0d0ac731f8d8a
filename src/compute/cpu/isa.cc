#include "compute/cpu/isa.h"

#include <cstdlib>
#include <string>

namespace moraine {
namespace {

constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512};

// The first instruction-set extension that `isa` needs and this CPU lacks; null if it has all.
const char* MissingFeature(Isa isa) {
#if defined(MORAINE_X86_KERNELS)
  __builtin_cpu_init();
#define MORAINE_NEED(feature) \
  if (!__builtin_cpu_supports(feature)) return feature
  if (isa >= Isa::kAvx2) {
    MORAINE_NEED("avx2");
    MORAINE_NEED("fma");
    MORAINE_NEED("f16c");
  }
  if (isa == Isa::kAvxVnni) MORAINE_NEED("avxvnni");
  if (isa == Isa::kAvx512) {
    MORAINE_NEED("avx512f");
    MORAINE_NEED("avx512bw");
    MORAINE_NEED("avx512dq");
    MORAINE_NEED("avx512vl");
    MORAINE_NEED("avx512vnni");
  }
#undef MORAINE_NEED
  return nullptr;
#else
  return isa == Isa::kScalar ? nullptr : "a build with x86-64 kernels";
#endif
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvxVnni: return "avx_vnni";
    case Isa::kAvx512: return "avx512_vnni";
  }
  return "unknown";
}

bool IsaSupported(Isa isa) { return MissingFeature(isa) == nullptr; }

Isa BestIsa() {
  Isa best = Isa::kScalar;
  for (const Isa isa : kAllIsas) {
    if (IsaSupported(isa)) best = isa;
  }
  return best;
}

Result<Isa> ChooseIsa(std::string_view override_name) {
  std::string_view name = override_name;
  if (name.empty()) {
    const char* variable = std::getenv("MORAINE_ISA");
    if (variable != nullptr) name = variable;
  }
  if (name.empty()) return BestIsa();
  for (const Isa isa : kAllIsas) {
    if (name != IsaName(isa)) continue;
    const char* missing = MissingFeature(isa);
    if (missing == nullptr) return isa;
    return Unsupported("ISA " + std::string(name) + " needs " + missing +
                       ", which this CPU does not have");
  }
  return InvalidArgument("unknown ISA \"" + std::string(name) +
                         "\": expected scalar, avx2, avx_vnni or avx512_vnni");
}

const KernelTable& KernelsOf(Isa isa) {
  switch (isa) {
#if defined(MORAINE_X86_KERNELS)
    case Isa::kAvx2: return kAvx2Kernels;
    case Isa::kAvxVnni: return kAvxVnniKernels;
    case Isa::kAvx512: return kAvx512Kernels;
#endif
    default: return kScalarKernels;
  }
}

}  // namespace moraine

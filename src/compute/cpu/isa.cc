#include "compute/cpu/isa.h"

#include <cstdlib>
#include <string>

#if defined(MORAINE_X86_KERNELS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moraine {
namespace {

#if defined(MORAINE_X86_KERNELS)
enum Register { kEax, kEbx, kEcx, kEdx };
// For features whose names not every supported compiler knows.
bool CpuidBit(uint32_t leaf, uint32_t subleaf, Register which, int bit) {
  uint32_t registers[4] = {};
  return __get_cpuid_count(leaf, subleaf, &registers[kEax], &registers[kEbx], &registers[kEcx],
                           &registers[kEdx]) != 0 &&
         (registers[which] >> bit & 1) != 0;
}

// AMX with int8, in the CPU and by leave of Linux, which must be asked for the 8 KiB of tile
// registers (5.16 and later; every thread then has it).
const char* MissingAmxFeature() {
  if (!CpuidBit(7, 0, kEdx, 24)) return "amx-tile";
  if (!CpuidBit(7, 0, kEdx, 25)) return "amx-int8";
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted ? nullptr : "the system's permission for AMX tiles (Linux 5.16)";
}
#endif

// The first instruction-set extension that `isa` needs and this CPU lacks; null if it has all.
const char* MissingFeature(Isa isa) {
#if defined(MORAINE_X86_KERNELS)
  __builtin_cpu_init();
#define MORAINE_NEED(feature) \
  if (!__builtin_cpu_supports(feature)) return feature
  if (isa >= Isa::kAvx2) {
    MORAINE_NEED("avx2");
    MORAINE_NEED("fma");
    if (!CpuidBit(1, 0, kEcx, 29)) return "f16c";
  }
  if (isa == Isa::kAvxVnni && !CpuidBit(7, 1, kEax, 4)) return "avxvnni";
  if (isa >= Isa::kAvx512) {
    MORAINE_NEED("avx512f");
    MORAINE_NEED("avx512bw");
    MORAINE_NEED("avx512dq");
    MORAINE_NEED("avx512vl");
    MORAINE_NEED("avx512vnni");
  }
#undef MORAINE_NEED
  return isa == Isa::kAmx ? MissingAmxFeature() : nullptr;
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
    case Isa::kAmx: return "amx";
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
                         "\": expected scalar, avx2, avx_vnni, avx512_vnni or amx");
}

const KernelTable& KernelsOf(Isa isa) {
  switch (isa) {
#if defined(MORAINE_X86_KERNELS)
    case Isa::kAvx2: return kAvx2Kernels;
    case Isa::kAvxVnni: return kAvxVnniKernels;
    case Isa::kAvx512: return kAvx512Kernels;
    case Isa::kAmx: return kAmxKernels;
#endif
    default: return kScalarKernels;
  }
}

}  // namespace moraine

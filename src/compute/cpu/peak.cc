#include "compute/cpu/peak.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"
#include "compute/cpu/isa.h"

#if defined(MORAINE_X86_KERNELS)
#include <immintrin.h>
#endif

namespace moraine {

#if defined(MORAINE_X86_KERNELS)

namespace {

// 12 chains: the latency of 4 or 5 cycles times two ports, and what AVX2's 16 registers hold. The
// empty asm keeps each step from being merged with the next, at no instruction.
constexpr int kChains = 12;

#define MORAINE_PEAK_LOOP(Vector, constraint, Zero, step) \
  Vector chain[kChains];                                  \
  _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) chain[i] = Zero; \
  for (uint32_t n = 0; n < iterations; ++n) {             \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) { \
      step;                                               \
      asm volatile("" : "+" constraint(chain[i]));        \
    }                                                     \
  }

__attribute__((target("avx512f,avx512vnni"))) double Int8Avx512(uint32_t iterations) {
  const __m512i w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
  MORAINE_PEAK_LOOP(__m512i, "v", _mm512_setzero_si512(),
                    chain[i] = _mm512_dpbusd_epi32(chain[i], w, x))
  return 128.0 * kChains * iterations;
}

__attribute__((target("avx2,avxvnni"))) double Int8AvxVnni(uint32_t iterations) {
  const __m256i w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(5);
  MORAINE_PEAK_LOOP(__m256i, "x", _mm256_setzero_si256(),
                    chain[i] = _mm256_dpbusd_avx_epi32(chain[i], w, x))
  return 64.0 * kChains * iterations;
}

__attribute__((target("avx2"))) double Int8Avx2(uint32_t iterations) {
  const __m256i w = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  __m256i x = _mm256_set1_epi8(5);
  MORAINE_PEAK_LOOP(__m256i, "x", _mm256_setzero_si256(), {
    asm volatile("" : "+x"(x));  // else one product would serve all chains
    chain[i] = _mm256_add_epi32(chain[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
  })
  return 64.0 * kChains * iterations;
}

__attribute__((target("avx512f"))) double FmaAvx512(uint32_t iterations) {
  const __m512 w = _mm512_set1_ps(0.5f), x = _mm512_set1_ps(0.25f);
  MORAINE_PEAK_LOOP(__m512, "v", _mm512_setzero_ps(), chain[i] = _mm512_fmadd_ps(chain[i], w, x))
  return 32.0 * kChains * iterations;
}

__attribute__((target("avx2,fma"))) double FmaAvx2(uint32_t iterations) {
  const __m256 w = _mm256_set1_ps(0.5f), x = _mm256_set1_ps(0.25f);
  MORAINE_PEAK_LOOP(__m256, "x", _mm256_setzero_ps(), chain[i] = _mm256_fmadd_ps(chain[i], w, x))
  return 16.0 * kChains * iterations;
}

#undef MORAINE_PEAK_LOOP

// Four chains of whole tiles: a product takes 16 cycles and gives its result after 52.
__attribute__((target("amx-tile,amx-int8"))) double Int8Amx(uint32_t iterations) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("" : : "r"(&config) : "memory");  // GCC 12 takes it for a load of 8 bytes
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (uint32_t n = 0; n < iterations; ++n) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_release();
  return 2.0 * 16 * 16 * 64 * 4 * iterations;
}

}  // namespace

__attribute__((target("avx2"))) uint64_t ReadBytes(const std::byte* data, size_t bytes) {
  constexpr size_t kStreams = 4, kAhead = 2048;
  __m256i even = _mm256_setzero_si256(), odd = even;
  while (bytes > 0) {
    const size_t part = std::min(kReadStreamBytes, bytes / kStreams);
    for (size_t i = 0; i < part; i += 64) {
      // Near its end a stream looks ahead to where it goes on, behind the other three.
      const size_t ahead = i + kAhead < part ? kAhead : kAhead + (kStreams - 1) * part;
#pragma GCC unroll 4
      for (size_t stream = 0; stream < kStreams; ++stream) {
        const std::byte* p = data + stream * part + i;
        _mm_prefetch(reinterpret_cast<const char*>(p) + ahead, _MM_HINT_T0);
        even = _mm256_xor_si256(even, _mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
        odd = _mm256_xor_si256(odd, _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32)));
      }
    }
    data += kStreams * part;
    bytes -= kStreams * part;
  }
  const __m256i all = _mm256_xor_si256(even, odd);
  const __m128i half =
      _mm_xor_si128(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return static_cast<uint64_t>(_mm_extract_epi64(half, 0)) ^
         static_cast<uint64_t>(_mm_extract_epi64(half, 1));
}

double RunPeakLoop(Isa isa, PeakWork work, uint32_t iterations) {
  CHECK(isa != Isa::kScalar && IsaSupported(isa), IsaName(isa));
  const bool fma = work == PeakWork::kFloatFma;
  switch (isa) {
    case Isa::kAmx: return fma ? FmaAvx512(iterations) : Int8Amx(iterations);
    case Isa::kAvx512: return fma ? FmaAvx512(iterations) : Int8Avx512(iterations);
    case Isa::kAvxVnni: return fma ? FmaAvx2(iterations) : Int8AvxVnni(iterations);
    default: return fma ? FmaAvx2(iterations) : Int8Avx2(iterations);
  }
}

#else

uint64_t ReadBytes(const std::byte* data, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, data + i, sizeof(word));
    sum ^= word;
  }
  return sum;
}

double RunPeakLoop(Isa isa, PeakWork, uint32_t) {
  CHECK(false, std::string("no peak loop for ") + IsaName(isa));
}

#endif

}  // namespace moraine

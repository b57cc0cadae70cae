// The instructions of AVX-512 and VNNI that the kernels name, made of AVX2's, to run their paths on CPUs without them.
#pragma once
#include "avx_vnni.h"

namespace by_avx2 {

typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

struct Halves {
    __m256i low, high;
};
static inline Halves split(__m512i v) {
    Halves halves;
    memcpy(&halves, &v, sizeof v);
    return halves;
}
static inline __m512i joined(__m256i low, __m256i high) {
    Halves halves = {low, high};
    __m512i v;
    memcpy(&v, &halves, sizeof v);
    return v;
}
static inline void stream(void *to, __m512 v) { memcpy(to, &v, sizeof v); }
static inline __m512 larger(__m512 a, __m512 b) { return a > b ? a : b; }
static inline __m512i larger(__m512i a, __m512i b) { return (__m512i)((Ints)a > (Ints)b ? (Ints)a : (Ints)b); }
static inline __m128i low_bytes(__m512i v) { return (__m128i)__builtin_convertvector((Ints)v, Bytes); }
static inline __m512i of_bytes(__m128i v) { return (__m512i)__builtin_convertvector((Bytes)v, Ints); }
static inline __m512 of_halves(__m256i v) {
    return (__m512)joined((__m256i)_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                          (__m256i)_mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
}
static inline __m512i dpbusd(__m512i sums, __m512i bytes, __m512i signed_bytes) {
    Halves s = split(sums), b = split(bytes), i = split(signed_bytes);
    return joined(dpbusd_by_avx2(s.low, b.low, i.low), dpbusd_by_avx2(s.high, b.high, i.high));
}
static inline __m512i chosen(__m512i a, __m512i from, __m512i b) {
    Ints out, first = (Ints)a, second = (Ints)b, at = (Ints)from;
    for (int i = 0; i < 16; i++) out[i] = at[i] & 16 ? second[at[i] & 15] : first[at[i] & 15];
    return (__m512i)out;
}
static inline __m256i half(__m512i v, int which) { return which ? split(v).high : split(v).low; }
static inline __m512i with_half(__m512i v, __m256i part, int which) {
    return which ? joined(split(v).low, part) : joined(part, split(v).high);
}

} // namespace by_avx2

#define _mm512_stream_ps by_avx2::stream
#define _mm512_max_ps by_avx2::larger
#define _mm512_max_epi32 by_avx2::larger
#define _mm512_cvtepi32_epi8 by_avx2::low_bytes
#define _mm512_cvtepi8_epi32 by_avx2::of_bytes
#define _mm512_cvtph_ps by_avx2::of_halves
#define _mm512_dpbusd_epi32 by_avx2::dpbusd
#define _mm512_permutex2var_epi32 by_avx2::chosen
#define _mm512_castsi512_si256(v) by_avx2::half(v, 0)
#define _mm512_extracti64x4_epi64 by_avx2::half
#define _mm512_castsi256_si512(v) by_avx2::joined(v, v)
#define _mm512_inserti64x4 by_avx2::with_half

// Not on the command line: the compiler's own header would then take its AVX-512 functions for callable.
#define __AVX512F__ 1
#if defined(WITH_VNNI)
#define __AVX512VNNI__ 1
#endif

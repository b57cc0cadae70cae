// Sums of the products of four pairs of bytes, in each lane of 32 bits.
//
// Both factors are signed. x86 multiplies signed bytes by unsigned ones only: there 128 is added to each byte of a right
// factor when it is packed (RIGHT_FLIP), and whoever multiplies subtracts 128 times the sum of the left factor's bytes.
#pragma once
#include "vector.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)
constexpr bool FAST_DOTS = true, UNSIGNED_RIGHT = true;
inline Ints dot4(Ints sums, Words right, Words left) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)right, (__m512i)left);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr bool FAST_DOTS = true, UNSIGNED_RIGHT = true;
inline Ints dot4(Ints sums, Words right, Words left) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)right, (__m256i)left);
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool FAST_DOTS = true, UNSIGNED_RIGHT = false;
inline Ints dot4(Ints sums, Words right, Words left) {
    return (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)right, (int8x16_t)left);
}
#else
constexpr bool FAST_DOTS = false, UNSIGNED_RIGHT = false;
inline Ints dot4(Ints sums, Words right, Words left) {
    for (int byte = 0; byte < 32; byte += 8)
        sums += ((Ints)(right << (24 - byte)) >> 24) * ((Ints)(left << (24 - byte)) >> 24);
    return sums;
}
#endif

constexpr uint32_t RIGHT_FLIP = UNSIGNED_RIGHT ? 0x80808080u : 0; // adds 128 to each byte of a right factor

#if defined(__AVX2__)
// |left| is unsigned, and two products of bytes up to 127 fit into 16 bits.
inline __m256i dot4_of_signs(__m256i right, __m256i left) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(left), _mm256_sign_epi8(right, left));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif

// As dot4, for bytes from -127 to 127: a way for CPUs without an instruction for it.
inline Ints dot4_symmetric(Ints sums, Words right, Words left) {
#if defined(__AVX512F__) && !defined(__AVX512VNNI__)
    __m512i r = (__m512i)right, l = (__m512i)left;
    __m256i low = dot4_of_signs(_mm512_castsi512_si256(r), _mm512_castsi512_si256(l));
    __m256i high = dot4_of_signs(_mm512_extracti64x4_epi64(r, 1), _mm512_extracti64x4_epi64(l, 1));
    return sums + (Ints)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#elif defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
    return sums + (Ints)dot4_of_signs((__m256i)right, (__m256i)left);
#elif defined(__aarch64__) && !defined(__ARM_FEATURE_DOTPROD)
    int8x16_t r = (int8x16_t)right, l = (int8x16_t)left;
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(r), vget_low_s8(l)));
    return sums + (Ints)vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(r, l)));
#else
    return dot4(sums, right, left);
#endif
}

} // namespace

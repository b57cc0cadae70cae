// The product of AVX-VNNI by instructions of AVX2, to run its path on CPUs without it.
#pragma once
#include <cstdint>
#include <cstring>
#include <immintrin.h>

// sums + the products of four unsigned bytes with four signed ones, in each lane of 32 bits.
static inline __m256i dpbusd_by_avx2(__m256i sums, __m256i bytes, __m256i signed_bytes) {
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(signed_bytes, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(signed_bytes, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

#define _mm256_dpbusd_avx_epi32 dpbusd_by_avx2

// Vectors as wide as the CPU's, for x86 and ARM, with the vector extensions of GCC and Clang.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 6, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr int LANES = 4, TILE_ROWS = 6, TILE_VECTORS = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef float UnalignedFloats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t Word __attribute__((aligned(1), may_alias));
typedef uint32_t UnalignedWords __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef int8_t UnalignedBytes __attribute__((vector_size(LANES), aligned(1), may_alias));

inline Floats load(const float *p) { return *(const UnalignedFloats *)p; }
inline void store(float *p, Floats v) { *(UnalignedFloats *)p = v; }
inline Words load_words(const void *p) { return *(const UnalignedWords *)p; }

// Stores past the caches, for outputs too large to stay there: saves reading the cache line before it is written.
inline void stream(float *aligned, Floats v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(aligned, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(aligned, (__m256)v);
#else
    store(aligned, v);
#endif
}

inline void stream_fence() {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

// Not 0 + value, which compilers must compute because it turns -0 into 0: that took a third of a product's time.
inline Floats splat(float value) { return value - Floats{}; }
#if defined(__AVX512F__) // the comparison as compilers translate it takes twice as long
inline Floats max(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Ints max(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#else
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Ints max(Ints a, Ints b) { return a > b ? a : b; }
#endif

// The bits of |v|. As integers they are ordered like the magnitudes, with NaN above all.
inline Ints magnitude(Floats v) { return (Ints)v & 0x7fffffff; }

typedef float Quads __attribute__((vector_size(16)));

inline float horizontal_sum(Floats v) {
    Quads parts[LANES / 4], total = {};
    memcpy(parts, &v, sizeof v);
    for (int i = 0; i < LANES / 4; i++) total += parts[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

inline float horizontal_max(Floats v) {
    Quads parts[LANES / 4], most;
    memcpy(parts, &v, sizeof v);
    most = parts[0];
    for (int i = 1; i < LANES / 4; i++) most = parts[i] > most ? parts[i] : most;
    float a = most[0] > most[1] ? most[0] : most[1], b = most[2] > most[3] ? most[2] : most[3];
    return a > b ? a : b;
}

// The float32 with the largest of such bits.
inline float horizontal_max_magnitude(Ints v) {
    int32_t most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    float value;
    memcpy(&value, &most, sizeof value);
    return value;
}

inline Ints round_to_int(Floats v) {
    Floats half = v < 0.0f ? splat(-0.5f) : splat(0.5f);
    return __builtin_convertvector(v + half, Ints);
}

// A float32 below 2^21 in magnitude, plus this, has its nearest integer in its lowest bytes.
constexpr float ROUNDS = 12582912.0f;
inline Words round_to_low_bytes(Floats v) { return (Words)(v + ROUNDS); }

// Stores the lowest byte of each lane.
inline void store_bytes(void *p, Words v) {
#if defined(__AVX512F__) // GCC 12 takes the bytes out one by one where it knows that the rest is not needed
    *(UnalignedBytes *)p = (Bytes)_mm512_cvtepi32_epi8((__m512i)v);
#else
    *(UnalignedBytes *)p = __builtin_convertvector((Ints)v, Bytes);
#endif
}

inline Words load_bytes(const int8_t *p) {
#if defined(__AVX512F__) // as with store_bytes
    return (Words)_mm512_cvtepi8_epi32((__m128i) * (const UnalignedBytes *)p);
#else
    return (Words) __builtin_convertvector(*(const UnalignedBytes *)p, Ints);
#endif
}

// The float32 of LANES positive float16 numbers.
inline Floats load_halves(const void *p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__) && defined(__AVX__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(1), may_alias));
    Ints bits = __builtin_convertvector(*(const Halves *)p, Ints);
    Ints exponent = bits < 0x7c00 ? Ints{} + (112 << 23) : Ints{} + (224 << 23); // of infinity and NaN
    Floats normal = (Floats)((bits << 13) + exponent), tiny = __builtin_convertvector(bits, Floats) * 0x1p-24f;
    return bits < 0x400 ? tiny : normal;
#endif
}

// A positive float32 below 65520 as float16, rounded to the nearest, ties to even.
inline uint16_t to_half(float value) {
    if (value < 0x1p-14f) return (uint16_t)(value * 0x1p24f + 0x1p23f - 0x1p23f);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)((bits >> 13) - (112 << 10));
}

// e^v to about 2 units in the last place: v = n ln 2 + r, a polynomial in r (Cephes' expf), 2^n by its bits.
// Keeps NaN.
inline Floats exponential(Floats v) {
    v = v < -87.0f ? splat(-87.0f) : v;
    v = v > 88.0f ? splat(88.0f) : v;
    Ints n = round_to_int(v * 1.44269504f);
    Floats whole = __builtin_convertvector(n, Floats);
    Floats r = v - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((n + 127) << 23);
}

// A pseudo-random number from an integer: the finalizer of MurmurHash3 (Austin Appleby, public domain).
inline Words hash32(Words x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

inline uint32_t hash32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Transposes LANES x LANES words of 32 bits and flips the bits `flip` in each; *_row are row strides in words.
inline void transpose_block(const Word *from, int64_t from_row, Word *to, int64_t to_row, uint32_t flip) {
#if defined(__AVX512F__)
    __m512i rows[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = (__m512i)(load_words(from + i * from_row) ^ flip);
#pragma GCC unroll 4
    for (int apart = 1; apart < LANES; apart *= 2) { // swap the off-diagonal squares of every 2 x 2
        Ints upper, lower;
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) {
            upper[k] = k & apart ? LANES + k - apart : k;
            lower[k] = k & apart ? LANES + k : k + apart;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & apart)) {
                __m512i first = rows[i], second = rows[i + apart];
                rows[i] = _mm512_permutex2var_epi32(first, (__m512i)upper, second);
                rows[i + apart] = _mm512_permutex2var_epi32(first, (__m512i)lower, second);
            }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) *(UnalignedWords *)(to + i * to_row) = (Words)rows[i];
#else
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < LANES; k++) to[k * to_row + i] = from[i * from_row + k] ^ flip;
#endif
}

} // namespace

// Vectors of the width that the CPU has, written once for x86 and ARM: GCC's and Clang's vector extensions.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

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
typedef float FloatsAnywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t IntsAnywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int8_t BytesAnywhere __attribute__((vector_size(LANES), aligned(1), may_alias));

static inline Floats load(const float *p) { return *(const FloatsAnywhere *)p; }
static inline void store(float *p, Floats v) { *(FloatsAnywhere *)p = v; }
static inline Floats all(float value) { return Floats{} + value; }
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats magnitude(Floats v) { return (Floats)((Words)v & (Words{} + 0x7fffffffu)); }

typedef float Quads __attribute__((vector_size(16)));

static inline float sum(Floats v) {
    Quads parts[LANES / 4], total = {};
    memcpy(parts, &v, sizeof v);
    for (int i = 0; i < LANES / 4; i++) total += parts[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

static inline float largest(Floats v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

static inline Ints nearest(Floats v) {
    Floats half = v < 0.0f ? all(-0.5f) : all(0.5f);
    return __builtin_convertvector(v + half, Ints);
}

// e^v to about 2 units in the last place: v = n ln 2 + r, a polynomial in r (Cephes' expf), 2^n by its bits.
// What is not a number stays so.
static inline Floats exponential(Floats v) {
    v = v < -87.0f ? all(-87.0f) : v;
    v = v > 88.0f ? all(88.0f) : v;
    Ints n = nearest(v * 1.44269504f);
    Floats whole = __builtin_convertvector(n, Floats);
    Floats r = v - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((n + 127) << 23);
}

// 32 bits that look like chance, from a number: the finalizer of MurmurHash3 (Austin Appleby, public domain).
static inline Words mixed(Words x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static inline uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

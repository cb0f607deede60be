// Vectors of floats on any processor, with the few operations that a compiler does not find by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct Brain {  // a bfloat16: the upper half of a float32
    uint16_t bits;
};
struct Half {  // a float16
    uint16_t bits;
};

// Whole numbers of two bytes, widened. GCC 12 takes its own generic form of this apart, byte by byte.
inline Integers widened(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Integers);
#endif
}

inline float value_of(float x) { return x; }
inline float value_of(Brain x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float value_of(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude < 0x0400) {  // subnormal: a multiple of 2^-24
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (magnitude >= 0x7c00 ? 0x7f800000 | magnitude << 13 : (magnitude << 13) + (112u << 23));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The same number in all lanes. Not `Vector{} + x`, which a compiler must really add, as it makes 0 of -0: next to fused
// multiplications that would take as long as they do, and this is a load.
inline Vector splat(float x) {
#if defined(__AVX512F__)
    return (Vector)_mm512_set1_ps(x);
#elif defined(__AVX__)
    return (Vector)_mm256_set1_ps(x);
#elif defined(__aarch64__)
    return (Vector)vdupq_n_f32(x);
#else
    return Vector{} + x;
#endif
}

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline Vector load(const Brain* from) { return reinterpret_cast<Vector>(widened(&from->bits) << 16); }
inline Vector load(const Half* from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
    return (Vector)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
#else
    Vector values;
    for (int i = 0; i < LANES; ++i) values[i] = value_of(from[i]);
    return values;
#endif
}
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

template <class T>
T rounded(float value);
template <>
inline float rounded<float>(float value) {
    return value;
}
template <>
inline Brain rounded<Brain>(float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// a * b + c, in one rounding where the processor can. Written explicitly, and compiled without contraction: left to
// itself, a compiler fuses here and not there, and results would depend on the width of a pass.
inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// What `join` makes of all lanes, the halves of a vector first.
template <class V, class Join>
inline auto folded(V v, Join join) {
    auto lane = v[0];
    typedef decltype(lane) Four __attribute__((vector_size(16)));
    Four parts[LANES / 4];
    __builtin_memcpy(parts, &v, sizeof v);
    for (int n = LANES / 8; n; n /= 2)
        for (int i = 0; i < n; ++i) parts[i] = join(parts[i], parts[i + n]);
    return join(join(parts[0][0], parts[0][2]), join(parts[0][1], parts[0][3]));
}
inline float sum(Vector v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}
inline int32_t sum(Integers v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Vector v) {
    return folded(v, [](auto a, auto b) { return a > b ? a : b; });
}

// The lowest bytes of whole numbers.
inline void store_bytes(int8_t* to, Integers values) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)values));
#else
    for (int i = 0; i < LANES; ++i) to[i] = static_cast<int8_t>(values[i]);
#endif
}

// to[i] = the sum of v[i], for eight vectors.
inline void sums_of_eight(const Vector* v, float* to) {
#if defined(__AVX2__)
    __m256 part[8];
    for (int i = 0; i < 8; ++i) {
#if defined(__AVX512F__)
        const __m512d both = _mm512_castps_pd((__m512)v[i]);
        part[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm256_castpd_ps(_mm512_extractf64x4_pd(both, 1)));
#else
        part[i] = (__m256)v[i];
#endif
    }
    for (int i = 0; i < 4; ++i) part[i] = _mm256_hadd_ps(part[2 * i], part[2 * i + 1]);
    for (int i = 0; i < 2; ++i) part[i] = _mm256_hadd_ps(part[2 * i], part[2 * i + 1]);
    const __m256 low = _mm256_permute2f128_ps(part[0], part[1], 0x20), high = _mm256_permute2f128_ps(part[0], part[1], 0x31);
    _mm256_storeu_ps(to, _mm256_add_ps(low, high));
#else
    for (int i = 0; i < 8; ++i) to[i] = sum(v[i]);
#endif
}

inline float dot(const float* a, const float* b, int64_t n) {
    Vector total = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) total = fused(load(a + i), load(b + i), total);
    float rest = sum(total);
    for (; i < n; ++i) rest += a[i] * b[i];
    return rest;
}

// e^x, to two units in the last place; 0 below 1e-38, at most e^87. The method is Cephes' (expf): x = n ln 2 + r.
inline Vector exponential(Vector x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the lowest bits
    const Vector low = Vector{} - 87.0f, high = -low;
    const Vector floor = x < low ? low : x, inside = floor > high ? high : floor;
    const Vector shifted = inside * 1.44269504f + shift;
    const Vector n = shifted - shift;
    const Vector r = inside - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = fused(r, Vector{} + 1.9875691500e-4f, Vector{} + 1.3981999507e-3f);
    for (float c : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fused(p, r, Vector{} + c);
    p = p * r * r + r + 1.0f;
    const Integers power = reinterpret_cast<Integers>(shifted) << 23;
    const Vector scaled = reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + power);
    return x < low ? Vector{} : scaled;  // NaN stays NaN
}

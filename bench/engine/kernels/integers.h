// Products of weights of four or eight bits with activations of eight: whole numbers are multiplied and summed within
// groups of 32 inputs, and scaled by floats between groups.
//
// Activations are quantised per position and group, so that a position's result does not depend on its neighbours.
// Q4, as GGUF's Q4_1: weight = scale * code + least, code 0..15. Q8, as GGUF's Q8_0: weight = scale * code, code
// -127..127. Scales and least values are float16, here in panels:
//   Q4 codes  [panels, groups, 4, PANEL, 4]: of eight inputs, the low half-bytes are the first four, the high ones the
//             others; scales [panels, groups, 2, PANEL]: scales, then least values.
//   Q8 codes  [panels, groups, 8, PANEL, 4]; scales [panels, groups, PANEL].
#pragma once

#include "vectors.h"

constexpr int AHEAD = 4096;  // bytes of weights that are asked for before they are needed

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define WIDE_DOT 1
constexpr int MOST_INTEGERS = 8;  // positions of a block
#else
constexpr int MOST_INTEGERS = 4;
#endif
constexpr int PANEL = 16;  // rows of a matrix that are worked on together
constexpr int GROUP = 32;  // inputs that share a scale
constexpr int FOURS = GROUP / 4;
constexpr int FOUR_ROWS = 4 * PANEL;  // bytes of four inputs of all rows, a byte each

// x at some positions: code * scale, by groups; and the sum of each group's codes.
struct Activations {
    const int8_t* codes;    // [n, k]
    const float* scales;    // [n, k / GROUP]
    const int32_t* totals;  // [n, k / GROUP]

    static int64_t floats(int64_t n, int64_t k) { return n * (k / 4 + 2 * (k / GROUP)); }

    Activations from(int64_t position, int64_t k) const {
        return {codes + position * k, scales + position * (k / GROUP), totals + position * (k / GROUP)};
    }

    // `memory`: of floats(n, k).
    static Activations of(const float* x, int64_t n, int64_t k, float* memory) {
        const int64_t groups = n * (k / GROUP);
        float* scales = memory;
        auto* totals = reinterpret_cast<int32_t*>(memory + groups);
        auto* codes = reinterpret_cast<int8_t*>(memory + 2 * groups);
        for (int64_t g = 0; g < groups; ++g) quantise(x + g * GROUP, codes + g * GROUP, scales[g], totals[g]);
        return {codes, scales, totals};
    }

  private:
    static void quantise(const float* x, int8_t* codes, float& scale, int32_t& total) {
        Vector highest = {}, nothing = {};  // nothing: NaN where x is not finite, which must not come to look like a number
        for (int i = 0; i < GROUP; i += LANES) {
            const Vector value = load(x + i), size = value < 0.0f ? -value : value;
            highest = size > highest ? size : highest;
            nothing += value - value;
        }
        float most = 0.0f;
        for (int i = 0; i < LANES; ++i) most = std::max(most, highest[i]);
        const bool finite = sum(nothing) == 0.0f;
        scale = finite ? most / 127.0f : NAN;
        const float inverse = finite && most > 0.0f ? 127.0f / most : 0.0f;
        const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the lowest bits
        int32_t whole[GROUP];
        total = 0;
        for (int i = 0; i < GROUP; i += LANES) {
            const Vector shifted = (finite ? load(x + i) : Vector{}) * inverse + shift;
            const Integers code = reinterpret_cast<Integers>(shifted) - 0x4b400000;
            std::memcpy(whole + i, &code, sizeof code);
        }
        for (int i = 0; i < GROUP; ++i) {
            codes[i] = static_cast<int8_t>(whole[i]);
            total += whole[i];
        }
    }
};

template <class T = int32_t>
inline T four_of(const int8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

#if defined(WIDE_DOT)

// sums[j] = the products of a group's four-bit codes with position j.
template <int N>
inline void group_of_q4(const uint8_t* weight, const int8_t* x, const int32_t*, int64_t k, int64_t, Integers (*sums)[1]) {
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512i low[N], high[N];
    for (int j = 0; j < N; ++j) low[j] = high[j] = _mm512_setzero_si512();
    for (int i = 0; i < FOURS / 2; ++i, weight += FOUR_ROWS) {
        const __m512i both = _mm512_loadu_si512(weight);
        __builtin_prefetch(weight + AHEAD);
        const __m512i first = _mm512_and_si512(both, low_half);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
        for (int j = 0; j < N; ++j) {
            low[j] = _mm512_dpbusd_epi32(low[j], first, _mm512_set1_epi32(four_of(x + j * k + 8 * i)));
            high[j] = _mm512_dpbusd_epi32(high[j], second, _mm512_set1_epi32(four_of(x + j * k + 8 * i + 4)));
        }
    }
    for (int j = 0; j < N; ++j) sums[j][0] = (Integers)_mm512_add_epi32(low[j], high[j]);
}

// The same for eight-bit codes w: one factor must have no sign, so 128 is added to w, and taken away from the sum.
template <int N>
inline void group_of_q8(
    const uint8_t* weight, const int8_t* x, const int32_t* totals, int64_t k, int64_t groups, Integers (*sums)[1]) {
    const __m512i top = _mm512_set1_epi8(-128);
    __m512i even[N], odd[N];
    for (int j = 0; j < N; ++j) even[j] = odd[j] = _mm512_setzero_si512();
    for (int i = 0; i < FOURS; i += 2, weight += 2 * FOUR_ROWS) {
        const __m512i first = _mm512_xor_si512(_mm512_loadu_si512(weight), top);
        const __m512i second = _mm512_xor_si512(_mm512_loadu_si512(weight + FOUR_ROWS), top);
        __builtin_prefetch(weight + AHEAD);
        __builtin_prefetch(weight + AHEAD + FOUR_ROWS);
        for (int j = 0; j < N; ++j) {
            even[j] = _mm512_dpbusd_epi32(even[j], first, _mm512_set1_epi32(four_of(x + j * k + 4 * i)));
            odd[j] = _mm512_dpbusd_epi32(odd[j], second, _mm512_set1_epi32(four_of(x + j * k + 4 * i + 4)));
        }
    }
    for (int j = 0; j < N; ++j)
        sums[j][0] = (Integers)_mm512_add_epi32(even[j], odd[j]) - 128 * totals[j * groups];
}

#elif defined(__AVX2__)

// Sums of two bytes hold a group of four-bit codes: 8 * 2 * 15 * 127 < 2^15.
template <int N>
inline void group_of_q4(
    const uint8_t* weight, const int8_t* x, const int32_t*, int64_t k, int64_t, Integers (*sums)[PANEL / LANES]) {
    const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i total[N][2];
    for (int j = 0; j < N; ++j) total[j][0] = total[j][1] = _mm256_setzero_si256();
    for (int i = 0; i < FOURS / 2; ++i, weight += FOUR_ROWS) {
        __builtin_prefetch(weight + AHEAD);
        for (int h = 0; h < 2; ++h) {
            const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight) + h);
            const __m256i first = _mm256_and_si256(both, low_half);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
            for (int j = 0; j < N; ++j) {
                const __m256i low = _mm256_maddubs_epi16(first, _mm256_set1_epi32(four_of(x + j * k + 8 * i)));
                const __m256i high = _mm256_maddubs_epi16(second, _mm256_set1_epi32(four_of(x + j * k + 8 * i + 4)));
                total[j][h] = _mm256_add_epi16(total[j][h], _mm256_add_epi16(low, high));
            }
        }
    }
    for (int j = 0; j < N; ++j)
        for (int h = 0; h < 2; ++h) total[j][h] = _mm256_madd_epi16(total[j][h], ones);
    for (int j = 0; j < N; ++j) std::memcpy(sums[j], total[j], sizeof total[j]);
}

// The same for eight-bit codes w: |w| times x with w's sign, as one factor must have none. 2 * 127 * 127 < 2^15.
template <int N>
inline void group_of_q8(
    const uint8_t* weight, const int8_t* x, const int32_t*, int64_t k, int64_t, Integers (*sums)[PANEL / LANES]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total[N][2];
    for (int j = 0; j < N; ++j) total[j][0] = total[j][1] = _mm256_setzero_si256();
    for (int i = 0; i < FOURS; ++i, weight += FOUR_ROWS) {
        __builtin_prefetch(weight + AHEAD);
        for (int h = 0; h < 2; ++h) {
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight) + h);
            const __m256i sizes = _mm256_abs_epi8(codes);
            for (int j = 0; j < N; ++j) {
                const __m256i four = _mm256_set1_epi32(four_of(x + j * k + 4 * i));
                const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(four, codes));
                total[j][h] = _mm256_add_epi32(total[j][h], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    for (int j = 0; j < N; ++j) std::memcpy(sums[j], total[j], sizeof total[j]);
}

#else  // any processor

template <int N>
inline void group_of_q4(
    const uint8_t* weight, const int8_t* x, const int32_t*, int64_t k, int64_t, Integers (*sums)[PANEL / LANES]) {
    for (int j = 0; j < N; ++j) {
        int32_t total[PANEL] = {};
        for (int i = 0; i < FOURS / 2; ++i)
            for (int r = 0; r < PANEL; ++r)
                for (int t = 0; t < 4; ++t) {
                    const uint8_t both = weight[i * FOUR_ROWS + r * 4 + t];
                    const int8_t* at = x + j * k + 8 * i + t;
                    total[r] += (both & 15) * at[0] + (both >> 4) * at[4];
                }
        std::memcpy(sums[j], total, sizeof total);
    }
}

template <int N>
inline void group_of_q8(
    const uint8_t* weight, const int8_t* x, const int32_t*, int64_t k, int64_t, Integers (*sums)[PANEL / LANES]) {
    for (int j = 0; j < N; ++j) {
        int32_t total[PANEL] = {};
        for (int i = 0; i < FOURS; ++i)
            for (int r = 0; r < PANEL; ++r)
                for (int t = 0; t < 4; ++t)
                    total[r] += static_cast<int8_t>(weight[i * FOUR_ROWS + r * 4 + t]) * x[j * k + 4 * i + t];
        std::memcpy(sums[j], total, sizeof total);
    }
}

#endif

template <int N, bool FOUR_BITS>
inline void integer_product(
    const uint8_t* weight, const Half* scales, Activations x, int64_t k, float (*sums)[PANEL]) {
    constexpr int V = PANEL / LANES;
    const int64_t groups = k / GROUP;
    Vector total[N][V] = {};
    for (int64_t g = 0; g < groups; ++g) {
        Integers part[N][V];
        const auto group = FOUR_BITS ? group_of_q4<N> : group_of_q8<N>;
        group(weight, x.codes + g * GROUP, x.totals + g, k, groups, part);
        weight += PANEL * GROUP / (FOUR_BITS ? 2 : 1);
        for (int v = 0; v < V; ++v) {
            const Vector scale = load(scales + v * LANES);
            const Vector least = FOUR_BITS ? load(scales + PANEL + v * LANES) : Vector{};
            for (int j = 0; j < N; ++j) {
                const float unit = x.scales[j * groups + g];
                const Vector value = __builtin_convertvector(part[j][v], Vector) * unit;
                if constexpr (FOUR_BITS) {
                    const float sum_of_group = unit * static_cast<float>(x.totals[j * groups + g]);
                    total[j][v] = fused(least, Vector{} + sum_of_group, total[j][v]);
                }
                total[j][v] = fused(scale, value, total[j][v]);
            }
        }
        scales += PANEL * (FOUR_BITS ? 2 : 1);
    }
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) store(sums[j] + v * LANES, total[j][v]);
}

template <int N, bool FOUR_BITS>
inline void integer_product(
    int n, const uint8_t* weight, const Half* scales, Activations x, int64_t k, float (*sums)[PANEL]) {
    if (n == N) return integer_product<N, FOUR_BITS>(weight, scales, x, k, sums);
    if constexpr (N > 1) integer_product<N - 1, FOUR_BITS>(n, weight, scales, x, k, sums);
}

// sums[j][r] = the product of row r of a panel and position j, of n <= MOST_INTEGERS.
inline void integer_product(
    int n, bool four_bits, const uint8_t* panels, const Half* scales, int64_t panel, Activations x, int64_t k,
    float (*sums)[PANEL]) {
    const uint8_t* weight = panels + panel * k * PANEL / (four_bits ? 2 : 1);
    const Half* own = scales + panel * (k / GROUP) * PANEL * (four_bits ? 2 : 1);
    if (four_bits) {
        integer_product<MOST_INTEGERS, true>(n, weight, own, x, k, sums);
    } else {
        integer_product<MOST_INTEGERS, false>(n, weight, own, x, k, sums);
    }
}

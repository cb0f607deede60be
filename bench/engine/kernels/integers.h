// Products of weights of four or eight bits with activations of eight: whole numbers are multiplied and summed within
// groups of 32 inputs, and scaled by floats between groups.
//
// Activations are quantised per position and group, so that a position's result does not depend on its neighbours.
// Q4, as GGUF's Q4_1: weight = scale * code + least, code 0..15. Q8, as GGUF's Q8_0: weight = scale * code, code
// -127..127. Scales and least values are float16, here in panels:
//   Q4 codes  [panels, groups, 8, PANEL, 2]: of four inputs i, the low half-bytes are inputs 4i, 4i+1, the high ones
//             4i+2, 4i+3; scales [panels, groups, 2, PANEL]: scales, then least values.
//   Q8 codes  [panels, groups, 8, PANEL, 4]; scales [panels, groups, PANEL].
#pragma once

#include "vectors.h"

constexpr int PANEL = 16;         // rows of a matrix that are worked on together
constexpr int GROUP = 32;         // inputs that share a scale
constexpr int MOST_INTEGERS = 4;  // positions of a block
constexpr int QUADS = GROUP / 4;

// x at some positions: code * scale, by groups; and for least values, the sum of each group.
struct Activations {
    const int8_t* codes;  // [n, k]
    const float *scales, *sums;  // [n, k / GROUP]

    static int64_t floats(int64_t n, int64_t k) { return n * (k / 4 + 2 * (k / GROUP)); }

    Activations from(int64_t position, int64_t k) const {
        return {codes + position * k, scales + position * (k / GROUP), sums + position * (k / GROUP)};
    }

    // `memory`: of floats(n, k).
    static Activations of(const float* x, int64_t n, int64_t k, float* memory) {
        const int64_t groups = n * (k / GROUP);
        float *scales = memory, *sums = memory + groups;
        auto* codes = reinterpret_cast<int8_t*>(memory + 2 * groups);
        for (int64_t g = 0; g < groups; ++g) quantise(x + g * GROUP, codes + g * GROUP, scales[g], sums[g]);
        return {codes, scales, sums};
    }

  private:
    static void quantise(const float* x, int8_t* codes, float& scale, float& sum_of_group) {
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
        int32_t whole[GROUP], total = 0;
        for (int i = 0; i < GROUP; i += LANES) {
            const Vector shifted = (finite ? load(x + i) : Vector{}) * inverse + shift;
            const Integers code = reinterpret_cast<Integers>(shifted) - 0x4b400000;
            std::memcpy(whole + i, &code, sizeof code);
        }
        for (int i = 0; i < GROUP; ++i) {
            codes[i] = static_cast<int8_t>(whole[i]);
            total += whole[i];
        }
        sum_of_group = scale * static_cast<float>(total);
    }
};

#if defined(__AVX2__)

// Sixteen numbers of two bytes as vectors of four.
inline void widen(__m256i numbers, Integers* to) {
#if defined(__AVX512F__)
    to[0] = (Integers)_mm512_cvtepi16_epi32(numbers);
#else
    to[0] = (Integers)_mm256_cvtepi16_epi32(_mm256_castsi256_si128(numbers));
    to[1] = (Integers)_mm256_cvtepi16_epi32(_mm256_extracti128_si256(numbers, 1));
#endif
}
template <class T>
inline T unaligned(const int8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// sums[j] = the products of a group's four-bit codes with position j. Sums of two bytes hold it: 8 * 2 * 15 * 127 < 2^15.
template <int N>
inline void group_of_q4(const uint8_t* weight, const int8_t* x, int64_t k, Integers (*sums)[PANEL / LANES]) {
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i low[N], high[N];
    for (int j = 0; j < N; ++j) low[j] = high[j] = _mm256_setzero_si256();
    for (int q = 0; q < QUADS; ++q) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + q * 2 * PANEL));
        _mm_prefetch(reinterpret_cast<const char*>(weight + q * 2 * PANEL) + 4096, _MM_HINT_T0);
        const __m256i first = _mm256_and_si256(both, low_half);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
        for (int j = 0; j < N; ++j) {
            const int8_t* at = x + j * k + 4 * q;
            low[j] = _mm256_add_epi16(low[j], _mm256_maddubs_epi16(first, _mm256_set1_epi16(unaligned<int16_t>(at))));
            high[j] = _mm256_add_epi16(high[j], _mm256_maddubs_epi16(second, _mm256_set1_epi16(unaligned<int16_t>(at + 2))));
        }
    }
    for (int j = 0; j < N; ++j) {
        Integers more[PANEL / LANES];
        widen(low[j], sums[j]);
        widen(high[j], more);
        for (int v = 0; v < PANEL / LANES; ++v) sums[j][v] += more[v];
    }
}

// The same for eight-bit codes: |w| times x with w's sign, as one factor must have none. 2 * 127 * 127 < 2^15.
template <int N>
inline void group_of_q8(const uint8_t* weight, const int8_t* x, int64_t k, Integers (*sums)[PANEL / LANES]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total[N][2];
    for (int j = 0; j < N; ++j) total[j][0] = total[j][1] = _mm256_setzero_si256();
    for (int q = 0; q < QUADS; ++q)
        for (int half = 0; half < 2; ++half) {
            const uint8_t* at = weight + (2 * q + half) * 2 * PANEL;
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            _mm_prefetch(reinterpret_cast<const char*>(at) + 4096, _MM_HINT_T0);
            const __m256i sizes = _mm256_abs_epi8(codes);
            for (int j = 0; j < N; ++j) {
                const __m256i four = _mm256_set1_epi32(unaligned<int32_t>(x + j * k + 4 * q));
                const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(four, codes));
                total[j][half] = _mm256_add_epi32(total[j][half], _mm256_madd_epi16(pairs, ones));
            }
        }
    for (int j = 0; j < N; ++j) std::memcpy(sums[j], total[j], sizeof total[j]);
}

#else  // any processor

template <int N>
inline void group_of_q4(const uint8_t* weight, const int8_t* x, int64_t k, Integers (*sums)[PANEL / LANES]) {
    for (int j = 0; j < N; ++j) {
        int32_t total[PANEL] = {};
        for (int q = 0; q < QUADS; ++q)
            for (int r = 0; r < PANEL; ++r)
                for (int t = 0; t < 2; ++t) {
                    const uint8_t both = weight[(q * PANEL + r) * 2 + t];
                    const int8_t* at = x + j * k + 4 * q + t;
                    total[r] += (both & 15) * at[0] + (both >> 4) * at[2];
                }
        std::memcpy(sums[j], total, sizeof total);
    }
}

template <int N>
inline void group_of_q8(const uint8_t* weight, const int8_t* x, int64_t k, Integers (*sums)[PANEL / LANES]) {
    for (int j = 0; j < N; ++j) {
        int32_t total[PANEL] = {};
        for (int q = 0; q < QUADS; ++q)
            for (int r = 0; r < PANEL; ++r)
                for (int t = 0; t < 4; ++t)
                    total[r] += static_cast<int8_t>(weight[(q * PANEL + r) * 4 + t]) * x[j * k + 4 * q + t];
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
        if constexpr (FOUR_BITS) {
            group_of_q4<N>(weight, x.codes + g * GROUP, k, part);
        } else {
            group_of_q8<N>(weight, x.codes + g * GROUP, k, part);
        }
        weight += PANEL * GROUP / (FOUR_BITS ? 2 : 1);
        for (int v = 0; v < V; ++v) {
            const Vector scale = load(scales + v * LANES);
            const Vector least = FOUR_BITS ? load(scales + PANEL + v * LANES) : Vector{};
            for (int j = 0; j < N; ++j) {
                const Vector value = __builtin_convertvector(part[j][v], Vector) * x.scales[j * groups + g];
                if constexpr (FOUR_BITS) total[j][v] = fused(least, Vector{} + x.sums[j * groups + g], total[j][v]);
                total[j][v] = fused(scale, value, total[j][v]);
            }
        }
        scales += PANEL * (FOUR_BITS ? 2 : 1);
    }
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) store(sums[j] + v * LANES, total[j][v]);
}

// sums[j][r] = the product of row r of a panel and position j, of n <= MOST_INTEGERS.
inline void integer_product(
    int n, bool four_bits, const uint8_t* panels, const Half* scales, int64_t panel, Activations x, int64_t k,
    float (*sums)[PANEL]) {
    const uint8_t* weight = panels + panel * k * PANEL / (four_bits ? 2 : 1);
    const Half* own = scales + panel * (k / GROUP) * PANEL * (four_bits ? 2 : 1);
    switch (n * 2 + four_bits) {
        case 2: return integer_product<1, false>(weight, own, x, k, sums);
        case 3: return integer_product<1, true>(weight, own, x, k, sums);
        case 4: return integer_product<2, false>(weight, own, x, k, sums);
        case 5: return integer_product<2, true>(weight, own, x, k, sums);
        case 6: return integer_product<3, false>(weight, own, x, k, sums);
        case 7: return integer_product<3, true>(weight, own, x, k, sums);
        case 8: return integer_product<4, false>(weight, own, x, k, sums);
        default: return integer_product<4, true>(weight, own, x, k, sums);
    }
}

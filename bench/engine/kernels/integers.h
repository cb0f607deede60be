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
constexpr int REGISTER = 64;      // bytes
constexpr int MOST_INTEGERS = 8;  // positions of a block
#elif defined(__AVX2__)
constexpr int REGISTER = 32;
constexpr int MOST_INTEGERS = 4;
#else
constexpr int REGISTER = 16;
constexpr int MOST_INTEGERS = 4;
#endif
constexpr int PANEL = 16;  // rows of a matrix that are worked on together
constexpr int GROUP = 32;  // inputs that share a scale
constexpr int FOURS = GROUP / 4;
constexpr int FOUR_ROWS = 4 * PANEL;  // bytes of four inputs of all rows, a byte each

// x at some positions: code * scale, by groups; and the sum of each group's codes.
struct Activations {
    int8_t* codes;    // [n, k]
    float* scales;    // [n, k / GROUP]
    int32_t* totals;  // [n, k / GROUP]

    static int64_t floats(int64_t n, int64_t k) { return n * (k / 4 + 2 * (k / GROUP)); }

    Activations from(int64_t position, int64_t k) const {
        return {codes + position * k, scales + position * (k / GROUP), totals + position * (k / GROUP)};
    }

    // `memory`: of floats(n, k).
    static Activations in(float* memory, int64_t n, int64_t k) {
        const int64_t groups = n * (k / GROUP);
        return {
            reinterpret_cast<int8_t*>(memory + 2 * groups), memory, reinterpret_cast<int32_t*>(memory + groups)};
    }

    // Quantises x [n, k] to positions [0, n).
    void fill(const float* x, int64_t n, int64_t k) const {
        for (int64_t g = 0; g < n * (k / GROUP); ++g) quantise(x + g * GROUP, codes + g * GROUP, scales[g], totals[g]);
    }

  private:
    static void quantise(const float* x, int8_t* codes, float& scale, int32_t& total) {
        Vector highest = {}, nothing = {};  // nothing: NaN where x is not finite, which must not come to look like a number
        for (int i = 0; i < GROUP; i += LANES) {
            const Vector value = load(x + i), size = value < 0.0f ? -value : value;
            highest = size > highest ? size : highest;
            nothing += value - value;
        }
        const float most = largest(highest);
        const bool finite = sum(nothing) == 0.0f;
        scale = finite ? most / 127.0f : NAN;
        const float inverse = finite && most > 0.0f ? 127.0f / most : 0.0f;
        const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the lowest bits
        Integers all = {};
        for (int i = 0; i < GROUP; i += LANES) {
            const Vector shifted = (finite ? load(x + i) : Vector{}) * inverse + shift;
            const Integers code = reinterpret_cast<Integers>(shifted) - 0x4b400000;
            store_bytes(codes + i, code);
            all += code;
        }
        total = sum(all);
    }
};

typedef int32_t Fours __attribute__((vector_size(REGISTER)));  // four bytes of a row in each lane; or their sum
typedef int32_t UnalignedFours __attribute__((vector_size(REGISTER), aligned(1), may_alias));

// What differs between processors, for weights w and activations x, four bytes of both in each lane:
//   add_codes(sum, w, x)   sum + their products, w 0..15; up to GROUP / 4 times, then
//   sum_of_codes(sum)      the sum in 32 bits
//   add_signed(sum, w, x)  sum + their products, w -127..127, each w raised by RAISED
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) || defined(__AVX2__) && defined(__AVXVNNI__)

constexpr int RAISED = 128;  // as one factor must have no sign
inline Fours add_codes(Fours sum, Fours w, Fours x) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (Fours)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
    return (Fours)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#endif
}
inline Fours sum_of_codes(Fours sum) { return sum; }
inline Fours add_signed(Fours sum, Fours w, Fours x) { return add_codes(sum, w ^ static_cast<int32_t>(0x80808080), x); }

#elif defined(__AVX2__)

constexpr int RAISED = 0;
// Sums of two bytes hold a group of four-bit codes: 8 * 2 * 15 * 127 < 2^15.
inline Fours add_codes(Fours sum, Fours w, Fours x) {
    return (Fours)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)x));
}
inline Fours sum_of_codes(Fours sum) { return (Fours)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
// |w| times x with w's sign, as one factor must have none. 2 * 127 * 127 < 2^15.
inline Fours add_signed(Fours sum, Fours w, Fours x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
    return sum + (Fours)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#else

constexpr int RAISED = 0;
inline Fours add_signed(Fours sum, Fours w, Fours x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (Fours)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
#else  // any processor: products of every other byte, in pairs. 2 * 127 * 127 < 2^15.
    typedef int16_t Pairs __attribute__((vector_size(REGISTER)));
    const Pairs a = (Pairs)w, b = (Pairs)x, pairs = (a << 8 >> 8) * (b << 8 >> 8) + (a >> 8) * (b >> 8);
    return sum + ((Fours)pairs << 16 >> 16) + ((Fours)pairs >> 16);
#endif
}
inline Fours add_codes(Fours sum, Fours w, Fours x) { return add_signed(sum, w, x); }
inline Fours sum_of_codes(Fours sum) { return sum; }

#endif

inline Fours in_each_lane(const int8_t* four) {
    int32_t value;
    std::memcpy(&value, four, sizeof value);
    return Fours{} + value;
}

// sums[j] = the products of a group's codes with position j. Sums are kept in two parts where one register holds the
// panel: so no addition waits for the one before.
template <int N, bool FOUR_BITS>
inline void group_product(
    const uint8_t* weight, const int8_t* x, const int32_t* totals, int64_t k, int64_t groups,
    Integers (*sums)[PANEL / LANES]) {
    constexpr int V = FOUR_ROWS / REGISTER, PARTS = V == 1 ? 2 : 1;
    Fours total[PARTS][N][V] = {};
    for (int i = 0; i < FOURS; i += 2, weight += (FOUR_BITS ? 1 : 2) * FOUR_ROWS) {
        for (int at = 0; at < (FOUR_BITS ? 1 : 2) * FOUR_ROWS; at += FOUR_ROWS) __builtin_prefetch(weight + at + AHEAD);
        for (int v = 0; v < V; ++v) {
            auto codes = [&](int at) { return *reinterpret_cast<const UnalignedFours*>(weight + at + v * REGISTER); };
            Fours first = codes(0), second;
            if constexpr (FOUR_BITS) {
                second = first >> 4 & 0x0f0f0f0f;
                first &= 0x0f0f0f0f;
            } else {
                second = codes(FOUR_ROWS);
            }
            for (int j = 0; j < N; ++j) {
                constexpr auto add = FOUR_BITS ? add_codes : add_signed;
                Fours &even = total[0][j][v], &odd = total[PARTS - 1][j][v];
                even = add(even, first, in_each_lane(x + j * k + 4 * i));
                odd = add(odd, second, in_each_lane(x + j * k + 4 * i + 4));
            }
        }
    }
    for (int j = 0; j < N; ++j) {
        for (int v = 0; v < V; ++v) {
            Fours& sum = total[0][j][v];
            if constexpr (PARTS == 2) sum += total[1][j][v];
            sum = FOUR_BITS ? sum_of_codes(sum) : sum - RAISED * totals[j * groups];
        }
        std::memcpy(sums[j], total[0][j], FOUR_ROWS);
    }
}

template <int N, bool FOUR_BITS>
inline void integer_product(
    const uint8_t* weight, const Half* scales, Activations x, int64_t k, float (*sums)[PANEL]) {
    constexpr int V = PANEL / LANES;
    const int64_t groups = k / GROUP;
    Vector total[N][V] = {};
    for (int64_t g = 0; g < groups; ++g) {
        Integers part[N][V];
        group_product<N, FOUR_BITS>(weight, x.codes + g * GROUP, x.totals + g, k, groups, part);
        weight += PANEL * GROUP / (FOUR_BITS ? 2 : 1);
        for (int v = 0; v < V; ++v) {
            const Vector scale = load(scales + v * LANES);
            const Vector least = FOUR_BITS ? load(scales + PANEL + v * LANES) : Vector{};
            for (int j = 0; j < N; ++j) {
                const float unit = x.scales[j * groups + g];
                const Vector value = __builtin_convertvector(part[j][v], Vector) * unit;
                if constexpr (FOUR_BITS) {
                    const float sum_of_group = unit * static_cast<float>(x.totals[j * groups + g]);
                    total[j][v] = fused(least, splat(sum_of_group), total[j][v]);
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

// Products with weights in panels: 16 rows of a matrix, interleaved, so that 16 outputs are summed side by side in
// registers while memory is read as one stream.
//
// A panel's weights are read once for up to MOST positions. Each output is summed in the order of its inputs whatever
// the number of positions is: the width of a pass changes no result.
#pragma once

#include "integers.h"
#include "vectors.h"

#ifdef __AVX512F__
constexpr int MOST = 12;     // positions of a block, and
constexpr int TOGETHER = 2;  // panels at a time: so many sums fit into the registers
#else
constexpr int MOST = 6;
constexpr int TOGETHER = 1;
#endif
constexpr int64_t SUMMED = 192;  // inputs of a sum in registers: sums of sums round less than one long sum
constexpr int FEW = 8;       // positions up to which memory is the limit rather than arithmetic

enum Kind : int64_t { FLOAT32, BFLOAT16, Q4, Q8 };

// y = x W^T + b. W [outputs, inputs] in panels of PANEL rows, the last one padded with zeros.
//   FLOAT32, BFLOAT16: [panels, inputs, PANEL]. Where the processor has products of bfloat16, inputs are rounded to it,
//   too, as torch does.
//   Q4, Q8: see integers.h.
// paired: W is two matrices of outputs / 2 rows each; their panels take turns.
struct Matrix {
    const void* panels;
    const Half* scales;  // Q4, Q8
    const float* bias;   // [outputs], or null
    int64_t outputs, inputs, kind, paired;
};

inline int64_t halves_of(const Matrix& m) { return m.paired ? 2 : 1; }
inline int64_t rows_of(const Matrix& m) { return m.outputs / halves_of(m); }  // of each half
inline int64_t panels_of(const Matrix& m) { return halves_of(m) * ((rows_of(m) + PANEL - 1) / PANEL); }

// The output of a panel's first row, and how many of its rows are outputs.
struct Rows {
    int64_t first;
    int count;
};
inline Rows outputs_of(const Matrix& m, int64_t panel) {
    const int64_t halves = halves_of(m), within = panel / halves * PANEL;
    return {panel % halves * rows_of(m) + within, static_cast<int>(std::min<int64_t>(PANEL, rows_of(m) - within))};
}

// Blocks of n positions: as few as can be, and nearly alike.
struct Blocks {
    int64_t n, count;
    Blocks(int64_t n, int64_t most) : n(n), count((n + most - 1) / most) {}
    int64_t first(int64_t block) const { return n * block / count; }
};

// sums[p][j][r] = the product of row r of panel p and position j, for P panels one after the other. Two at a time share
// the reading of an input.
template <int N, int P, class T>
inline void panel_product(const T* weight, const float* x, int64_t k, float (*sums)[MOST][PANEL]) {
    constexpr int V = PANEL / LANES;
    for (int64_t i = 0; i < k;) {
        const bool is_first = i == 0;
        Vector total[P][N][V] = {};
        for (const int64_t end = std::min(i + SUMMED, k); i < end; ++i, weight += PANEL) {
            Vector row[P][V];
            for (int p = 0; p < P; ++p)
                for (int v = 0; v < V; ++v) row[p][v] = load(weight + p * k * PANEL + v * LANES);
            for (int p = 0; p < P; ++p) __builtin_prefetch(reinterpret_cast<const char*>(weight + p * k * PANEL) + AHEAD);
            for (int j = 0; j < N; ++j) {
                const Vector value = Vector{} + x[j * k + i];
                for (int p = 0; p < P; ++p)
                    for (int v = 0; v < V; ++v) total[p][j][v] = fused(row[p][v], value, total[p][j][v]);
            }
        }
        for (int p = 0; p < P; ++p)
            for (int j = 0; j < N; ++j)
                for (int v = 0; v < V; ++v) {
                    float* sum = sums[p][j] + v * LANES;
                    store(sum, is_first ? total[p][j][v] : load(sum) + total[p][j][v]);
                }
    }
}

#ifdef __AVX512BF16__

// bfloat16 weights and activations, two products at a time; sums in float32.
template <int N, int>
inline void panel_product(const Brain* weight, const Brain* x, int64_t k, float (*sums)[MOST][PANEL]) {
    alignas(64) uint16_t order[2 * PANEL];  // of two inputs' weights, row by row -> pairs of a row's two
    for (int i = 0; i < 2 * PANEL; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * PANEL);
    const __m512i in_pairs = _mm512_load_si512(order);
    __m512 total[N];
    for (int j = 0; j < N; ++j) total[j] = _mm512_setzero_ps();
    auto add = [&](__m512i two, int64_t i, uint32_t seen) {
        const __m512i pairs = _mm512_permutexvar_epi16(in_pairs, two);
        for (int j = 0; j < N; ++j) {
            uint32_t both = 0;
            std::memcpy(&both, x + j * k + i, seen);
            total[j] = _mm512_dpbf16_ps(total[j], (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(static_cast<int>(both)));
        }
    };
    int64_t i = 0;
    for (; i + 2 <= k; i += 2, weight += 2 * PANEL) {
        __builtin_prefetch(reinterpret_cast<const char*>(weight) + AHEAD);
        add(_mm512_loadu_si512(weight), i, 4);
    }
    if (i < k) add(_mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight))), i, 2);
    for (int j = 0; j < N; ++j) store(sums[0][j], (Vector)total[j]);
}
typedef Brain Narrow;  // what bfloat16 weights are multiplied with

#else
typedef float Narrow;
#endif

template <int P, int N = MOST, class T, class X>
inline void panel_product(int n, const T* weight, const X* x, int64_t k, float (*sums)[MOST][PANEL]) {
    if (n == N) return panel_product<N, P>(weight, x, k, sums);
    if constexpr (N > 1) panel_product<P, N - 1>(n, weight, x, k, sums);
}

// The inputs of a product at n positions, in the form that its matrix asks for. `memory`: of floats(n, k), this thread's
// own.
struct Inputs {
    const float* x = nullptr;
    const Narrow* narrow = nullptr;
    Activations quantised = {};

    static int64_t floats(int64_t n, int64_t k) { return std::max((n * k + 1) / 2, Activations::floats(n, k)); }

    Inputs() = default;
    Inputs(const Matrix& m, const float* x, int64_t n, float* memory) : x(x) {
        if (m.kind == Q4 || m.kind == Q8) {
            quantised = Activations::of(x, n, m.inputs, memory);
        } else if constexpr (sizeof(Narrow) < sizeof(float)) {
            if (m.kind != BFLOAT16) return;
            auto* made = reinterpret_cast<Narrow*>(memory);
            for (int64_t i = 0; i < n * m.inputs; ++i) made[i] = rounded<Narrow>(x[i]);
            narrow = made;
        } else {
            narrow = reinterpret_cast<const Narrow*>(x);
        }
    }
};

// Calls emit(position, first output, number of outputs, their sums) for panels [first, end) at n positions.
template <class Emit>
inline void multiply(const Matrix& m, const Inputs& in, int64_t n, int64_t first, int64_t end, Emit emit) {
    const int64_t k = m.inputs;
    const Blocks blocks(n, m.kind == Q4 || m.kind == Q8 ? MOST_INTEGERS : MOST);
    float sums[TOGETHER][MOST][PANEL];
    int64_t together = 1;
    for (int64_t panel = first; panel < end; panel += together) {
        // Of few positions memory is the limit, and one stream of it is faster than two.
        together = m.kind == FLOAT32 && n > FEW ? std::min<int64_t>(TOGETHER, end - panel) : 1;
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t j = blocks.first(b);
            const int some = static_cast<int>(blocks.first(b + 1) - j);
            switch (m.kind) {
                case FLOAT32: {
                    const float* weight = static_cast<const float*>(m.panels) + panel * k * PANEL;
                    if (together == 1) {
                        panel_product<1>(some, weight, in.x + j * k, k, sums);
                    } else {
                        panel_product<TOGETHER>(some, weight, in.x + j * k, k, sums);
                    }
                    break;
                }
                case BFLOAT16: {
                    const Brain* weight = static_cast<const Brain*>(m.panels) + panel * k * PANEL;
                    panel_product<1>(some, weight, in.narrow + j * k, k, sums);
                    break;
                }
                default:
                    integer_product(
                        some, m.kind == Q4, static_cast<const uint8_t*>(m.panels), m.scales, panel,
                        in.quantised.from(j, k), k, sums[0]);
            }
            for (int64_t p = 0; p < together; ++p) {
                const Rows rows = outputs_of(m, panel + p);
                for (int t = 0; t < some; ++t) {
                    for (int r = 0; m.bias && r < rows.count; ++r) sums[p][t][r] += m.bias[rows.first + r];
                    emit(j + t, rows.first, rows.count, sums[p][t]);
                }
            }
        }
    }
}

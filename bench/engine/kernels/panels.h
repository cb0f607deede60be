// Products with weights in panels: 16 rows of a matrix, interleaved, so that 16 outputs are summed side by side in
// registers while memory is read as one stream.
//
// A panel's weights are read once for up to MOST positions. Each output is summed in the order of its inputs whatever
// the number of positions is: the width of a pass changes no result.
#pragma once

#include "tiles.h"

#ifdef __AVX512F__
constexpr int MOST = 12;     // positions of a block, and
constexpr int TOGETHER = 2;  // panels at a time: so many sums fit into the registers
#else
constexpr int MOST = 6;
constexpr int TOGETHER = 1;
#endif
constexpr int64_t SUMMED = 192;  // inputs of a sum in registers: sums of sums round less than one long sum
constexpr int FEW = 8;       // positions up to which memory is the limit rather than arithmetic
constexpr int64_t MANY = 64;            // positions beyond which
constexpr int64_t CACHED = 256 << 10;   // bytes of panels stay in the second-level cache while all positions pass

enum Kind : int64_t { FLOAT32, BFLOAT16, Q4, Q8 };

// y = x W^T + b. W [outputs, inputs] in panels of PANEL rows, the last one padded with zeros.
//   FLOAT32, BFLOAT16: [panels, inputs, PANEL].
//   BFLOAT16 where the processor has products of it: [panels, inputs / 2, PANEL, 2], an odd number of inputs padded with
//   zeros. Inputs are rounded to bfloat16, too, as torch does.
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

// work(r) for r < count: a whole panel, as nearly all are, in vectors.
template <class Work>
inline void for_some(int count, Work work) {
    if (count == PANEL) {
        for (int r = 0; r < PANEL; ++r) work(r);
    } else {
        for (int r = 0; r < count; ++r) work(r);
    }
}

// Blocks of n positions: as few as can be, and nearly alike.
struct Blocks {
    int64_t n, count;
    Blocks(int64_t n, int64_t most) : n(n), count((n + most - 1) / most) {}
    int64_t first(int64_t block) const { return n * block / count; }
};

// sums[p][j][r] = the product of row r of panel p and position j, for P panels, `apart` weights from one to the next;
// `stride`: inputs from one position to the next. Two panels at a time share the reading of an input.
template <int N, int P, class T>
inline void panel_product(
    const T* weight, int64_t apart, const float* x, int64_t stride, int64_t k, float (*sums)[MOST][PANEL]) {
    constexpr int V = PANEL / LANES;
    for (int64_t i = 0; i < k;) {
        const bool is_first = i == 0;
        Vector total[P][N][V] = {};
        for (const int64_t end = std::min(i + SUMMED, k); i < end; ++i, weight += PANEL) {
            Vector row[P][V];
            for (int p = 0; p < P; ++p)
                for (int v = 0; v < V; ++v) row[p][v] = load(weight + p * apart + v * LANES);
            for (int p = 0; p < P; ++p) __builtin_prefetch(reinterpret_cast<const char*>(weight + p * apart) + AHEAD);
            for (int j = 0; j < N; ++j) {
                const Vector value = splat(x[j * stride + i]);
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
inline void panel_product(
    const Brain* weight, int64_t, const Brain* x, int64_t stride, int64_t k, float (*sums)[MOST][PANEL]) {
    __m512 total[N];
    for (int j = 0; j < N; ++j) total[j] = _mm512_setzero_ps();
    auto add = [&](int64_t i, uint32_t seen) {
        const auto pairs = (__m512bh)_mm512_loadu_si512(weight + i * PANEL);
        __builtin_prefetch(reinterpret_cast<const char*>(weight + i * PANEL) + AHEAD);
        for (int j = 0; j < N; ++j) {
            uint32_t both = 0;
            std::memcpy(&both, x + j * stride + i, seen);
            total[j] = _mm512_dpbf16_ps(total[j], pairs, (__m512bh)_mm512_set1_epi32(static_cast<int>(both)));
        }
    };
    int64_t i = 0;
    for (; i + 2 <= k; i += 2) add(i, 4);
    if (i < k) add(i, 2);
    for (int j = 0; j < N; ++j) store(sums[0][j], (Vector)total[j]);
}
typedef Brain Narrow;  // what bfloat16 weights are multiplied with

#else
typedef float Narrow;
#endif

template <int P, int N = MOST, class T, class X>
inline void panel_product(
    int n, const T* weight, int64_t apart, const X* x, int64_t stride, int64_t k, float (*sums)[MOST][PANEL]) {
    if (n == N) return panel_product<N, P>(weight, apart, x, stride, k, sums);
    if constexpr (N > 1) panel_product<P, N - 1>(n, weight, apart, x, stride, k, sums);
}

// The inputs of a product at n positions, in the form that its matrix asks for, once they are filled in. `memory`: of
// floats(n, k).
struct Inputs {
    const float* x;
    Narrow* narrow;
    Activations quantised;
    int64_t k, kind;

    static int64_t floats(int64_t n, int64_t k) { return std::max((n * k + 1) / 2, Activations::floats(n, k)); }

    Inputs(const Matrix& m, const float* x, int64_t n, float* memory)
        : x(x), narrow(reinterpret_cast<Narrow*>(memory)), quantised(Activations::in(memory, n, m.inputs)), k(m.inputs),
          kind(m.kind) {}

    // Positions [first, end), of which x is known.
    void fill(int64_t first, int64_t end) const {
        if (kind == Q4 || kind == Q8) {
            quantised.from(first, k).fill(x + first * k, end - first, k);
        } else if (kind == BFLOAT16 && sizeof(Narrow) < sizeof(float)) {
            for (int64_t i = first * k; i < end * k; ++i) narrow[i] = rounded<Narrow>(x[i]);
        }
    }
    const Narrow* factors() const {
        return sizeof(Narrow) < sizeof(float) ? narrow : reinterpret_cast<const Narrow*>(x);
    }
};

// Adds the bias to the sums of position j and calls emit.
template <class Emit>
inline void emit_sums(const Matrix& m, int64_t j, Rows rows, float* sums, Emit emit) {
    if (m.bias) for_some(rows.count, [&](int r) { sums[r] += m.bias[rows.first + r]; });
    emit(j, rows.first, rows.count, sums);
}

#ifdef HAS_TILES
// `multiply` for bfloat16 weights, 32 inputs at a time.
template <class Emit>
inline void multiply_in_tiles(const Matrix& m, const Inputs& in, int64_t n, int64_t first, int64_t end, Emit emit) {
    const int64_t k = m.inputs;
    float sums[2][TILED][PANEL];
    const Tiles tiles(n);
    for (int64_t from = first, together; from < end; from += together) {
        together = std::min<int64_t>(2, end - from);
        const Brain* weight = static_cast<const Brain*>(m.panels) + from * k * PANEL;
        for (int64_t done = 0; done < n; done += TILED) {
            const int64_t j = std::max<int64_t>(0, std::min(done, n - TILED));  // the last block may overlap the one before
            tile_product(together, n, weight, in.factors() + j * k, k, sums);
            for (int64_t p = 0; p < together; ++p)
                for (int64_t t = done; t < std::min(done + TILED, n); ++t)
                    emit_sums(m, t, outputs_of(m, from + p), sums[p][t - j], emit);
        }
    }
}
#endif

// Calls emit(position, first output, number of outputs, their sums) for panels [first, end) at n positions; of a pair of
// panels both in turn before the next pair.
template <class Emit>
inline void multiply(const Matrix& m, const Inputs& in, int64_t n, int64_t first, int64_t end, Emit emit) {
#ifdef HAS_TILES
    if (m.kind == BFLOAT16 && m.inputs % TILE_INPUTS == 0 && has_tiles())
        return multiply_in_tiles(m, in, n, first, end, emit);
#endif
    const int64_t k = m.inputs, halves_of_bytes = m.kind == FLOAT32 ? 8 : m.kind == BFLOAT16 ? 4 : m.kind == Q8 ? 2 : 1;
    const Blocks blocks(n, m.kind == Q4 || m.kind == Q8 ? MOST_INTEGERS : MOST);
    // Of few positions memory is the limit, and one stream of it is faster than two.
    const int64_t side_by_side = m.kind == FLOAT32 && n > FEW ? TOGETHER : 1;
    const int64_t pairs = n > MANY ? std::max<int64_t>(1, CACHED / (PANEL * k * halves_of_bytes)) : 0;
    const int64_t group = pairs ? 2 * pairs : side_by_side;
    float sums[TOGETHER][MOST][PANEL];
    for (int64_t from = first; from < end; from += group) {
        const int64_t to = std::min(from + group, end);
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t j = blocks.first(b);
            const int some = static_cast<int>(blocks.first(b + 1) - j);
            for (int64_t panel = from, together; panel < to; panel += together) {
                together = std::min(side_by_side, to - panel);
                switch (m.kind) {
                    case FLOAT32: {
                        const float* weight = static_cast<const float*>(m.panels) + panel * k * PANEL;
                        if (together == 1) {
                            panel_product<1>(some, weight, 0, in.x + j * k, k, k, sums);
                        } else {
                            panel_product<TOGETHER>(some, weight, k * PANEL, in.x + j * k, k, k, sums);
                        }
                        break;
                    }
                    case BFLOAT16: {
                        const int64_t padded = sizeof(Narrow) < sizeof(float) ? k + k % 2 : k;
                        const Brain* weight = static_cast<const Brain*>(m.panels) + panel * padded * PANEL;
                        panel_product<1>(some, weight, 0, in.factors() + j * k, k, k, sums);
                        break;
                    }
                    default:
                        integer_product(
                            some, m.kind == Q4, static_cast<const uint8_t*>(m.panels), m.scales, panel,
                            in.quantised.from(j, k), k, sums[0]);
                }
                for (int64_t p = 0; p < together; ++p) {
                    for (int t = 0; t < some; ++t) emit_sums(m, j + t, outputs_of(m, panel + p), sums[p][t], emit);
                }
            }
        }
    }
}

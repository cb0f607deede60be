// Products with weights in panels: 16 rows of a matrix, interleaved, so that 16 outputs are summed side by side in
// registers while memory is read as one stream.
//
// A panel's weights are read once for up to MOST positions. Each output is summed in the order of its inputs whatever
// the number of positions is: the width of a pass changes no result.
#pragma once

#include "integers.h"
#include "vectors.h"

#ifdef __AVX512F__
constexpr int MOST = 12;     // positions of a block: so many sums fit into the registers
#else
constexpr int MOST = 6;
#endif

enum Kind : int64_t { FLOAT32, BFLOAT16, Q4, Q8 };

// y = x W^T + b. W [outputs, inputs] in panels of PANEL rows, the last one padded with zeros.
//   FLOAT32, BFLOAT16: [panels, inputs, PANEL].
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

// sums[j][r] = the product of the panel's row r and position j.
template <int N, class T>
inline void panel_product(const T* weight, const float* x, int64_t k, float (*sums)[PANEL]) {
    constexpr int V = PANEL / LANES;
    Vector total[N][V] = {};
    for (int64_t i = 0; i < k; ++i, weight += PANEL) {
        Vector row[V];
        for (int v = 0; v < V; ++v) row[v] = load(weight + v * LANES);
        __builtin_prefetch(reinterpret_cast<const char*>(weight) + AHEAD);
        for (int j = 0; j < N; ++j) {
            const Vector value = Vector{} + x[j * k + i];
            for (int v = 0; v < V; ++v) total[j][v] = fused(row[v], value, total[j][v]);
        }
    }
    for (int j = 0; j < N; ++j)
        for (int v = 0; v < V; ++v) store(sums[j] + v * LANES, total[j][v]);
}

template <int N = MOST, class T>
inline void panel_product(int n, const T* weight, const float* x, int64_t k, float (*sums)[PANEL]) {
    if (n == N) return panel_product<N>(weight, x, k, sums);
    if constexpr (N > 1) panel_product<N - 1>(n, weight, x, k, sums);
}

// The inputs of a product at n positions, in the form that its matrix asks for. `memory`: of
// Activations::floats(n, k), this thread's own.
struct Inputs {
    const float* x = nullptr;
    Activations quantised = {};

    Inputs() = default;
    Inputs(const Matrix& m, const float* x, int64_t n, float* memory) : x(x) {
        if (m.kind == Q4 || m.kind == Q8) quantised = Activations::of(x, n, m.inputs, memory);
    }
};

// Calls emit(position, first output, number of outputs, their sums) for panels [first, end) at n positions.
template <class Emit>
inline void multiply(const Matrix& m, const Inputs& in, int64_t n, int64_t first, int64_t end, Emit emit) {
    const int64_t k = m.inputs;
    const Blocks blocks(n, m.kind == Q4 || m.kind == Q8 ? MOST_INTEGERS : MOST);
    float sums[MOST][PANEL];
    for (int64_t panel = first; panel < end; ++panel) {
        const Rows rows = outputs_of(m, panel);
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t j = blocks.first(b);
            const int some = static_cast<int>(blocks.first(b + 1) - j);
            switch (m.kind) {
                case FLOAT32:
                    panel_product(some, static_cast<const float*>(m.panels) + panel * k * PANEL, in.x + j * k, k, sums);
                    break;
                case BFLOAT16:
                    panel_product(some, static_cast<const Brain*>(m.panels) + panel * k * PANEL, in.x + j * k, k, sums);
                    break;
                default:
                    integer_product(
                        some, m.kind == Q4, static_cast<const uint8_t*>(m.panels), m.scales, panel,
                        in.quantised.from(j, k), k, sums);
            }
            for (int t = 0; t < some; ++t) {
                for (int r = 0; m.bias && r < rows.count; ++r) sums[t][r] += m.bias[rows.first + r];
                emit(j + t, rows.first, rows.count, sums[t]);
            }
        }
    }
}

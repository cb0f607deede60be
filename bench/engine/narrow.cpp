// Narrow passes of a Llama-family decoder on a CPU: all layers over a few positions in one call.
//
// A pass over one position reads every weight once and does two operations with each, so it can be as fast as memory is
// read, if nothing else takes time. Done operation by operation from Python, the small steps between the products take a
// third of it. Here a pass is one parallel region; its threads share the rows of every product and wait for each other
// six times a layer.
//
// A product over n positions reads each weight once for up to 6 of them, so that verifying a few drafts costs little
// more than one token. Each output is summed in the same order whatever n is: the width of a pass changes no result.
//
// All activations are float32. Built by native.py for the machine it runs on; plain C interface, no torch headers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <omp.h>
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;  // two registers where vectors are shorter
#endif
constexpr int MOST = 6;      // positions that share one reading of a weight: more would not fit into the registers
constexpr int ROWS = LANES;  // weight rows that are worked on together


typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// a * b + c in one rounding, always: left to itself, a compiler fuses here and not there, and results would depend on
// which of the functions below was taken.
inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline float sum(Vector v) {
    typedef float Four __attribute__((vector_size(16)));
    Four parts[LANES / 4];
    __builtin_memcpy(parts, &v, sizeof v);
    for (int n = LANES / 8; n; n /= 2)
        for (int i = 0; i < n; ++i) parts[i] += parts[i + n];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

inline float dot(const float* a, const float* b, int64_t n) {
    Vector total = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) total += load(a + i) * load(b + i);
    float rest = sum(total);
    for (; i < n; ++i) rest += a[i] * b[i];
    return rest;
}

// e^x, to two units in the last place; 0 where that is below 1e-38. The method is Cephes' (expf): x = n ln 2 + r.
inline Vector exponential(Vector x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the lowest bits
    const Vector low = Vector{} - 87.0f, inside = x < low ? low : x, shifted = inside * 1.44269504f + shift;
    const Vector n = shifted - shift;
    const Vector r = inside - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Integers power = reinterpret_cast<Integers>(shifted) << 23;
    const Vector scaled = reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) + power);
    return x < low ? Vector{} : scaled;  // what is no number stays none
}

}  // namespace

extern "C" {

// y = x W^T + b; W [outputs, inputs], row by row.
struct Matrix {
    const float* weight;
    const float* bias;  // or null
    int64_t outputs, inputs;
};

struct Layer {
    const float *input_norm, *q_norm, *k_norm, *post_norm;  // q_norm, k_norm: or null
    Matrix qkv, out, gate_up, down;
};

struct Pass {
    const Layer* layers;
    int64_t count, positions, hidden, heads, kv_heads, head_dim;
    float eps;
    int32_t threads;
    const float* x;            // [positions, hidden]
    float* y;                  // [positions, hidden]: out; may not be x
    const float *cos, *sin;    // [positions, head_dim], sin's first half negated
    float* cache;              // of the first layer: keys, then values [kv_heads, room, head_dim] each
    int64_t layer_stride, room, start;
    const float* mask;         // [positions, start + positions], added to the scores; null: causal
    float* scratch;            // scratch_floats(pass) of them
};

}  // extern "C"

namespace {

// sums[j][first + r] = the product of weight row r and position j; the weights of the next rows are asked for meanwhile.
template <int R, int N>
inline void block(const float* weight, const float* x, int64_t k, int first, float (*sums)[ROWS]) {
    Vector total[R][N] = {};
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        Vector row[R];
        for (int r = 0; r < R; ++r) row[r] = load(weight + r * k + i);
        for (int r = 0; r < R; ++r) __builtin_prefetch(weight + (R + r) * k + i);
        for (int j = 0; j < N; ++j) {
            const Vector value = load(x + j * k + i);
            for (int r = 0; r < R; ++r) total[r][j] = fused(row[r], value, total[r][j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j) {
            float rest = sum(total[r][j]);
            for (int64_t t = i; t < k; ++t) rest = std::fma(weight[r * k + t], x[j * k + t], rest);
            sums[j][first + r] = rest;
        }
}

// ROWS rows with N positions, R rows at a time: as many as the registers hold.
template <int R, int N>
inline void rows_of(const float* weight, const float* x, int64_t k, int rows, float (*sums)[ROWS]) {
    int r = 0;
    for (; r + R <= rows; r += R) block<R, N>(weight + r * k, x, k, r, sums);
    for (; r < rows; ++r) block<1, N>(weight + r * k, x, k, r, sums);
}

inline void products(const float* weight, const float* x, int64_t k, int rows, int n, float (*sums)[ROWS]) {
    switch (n) {
        case 1: return rows_of<8, 1>(weight, x, k, rows, sums);
        case 2: return rows_of<4, 2>(weight, x, k, rows, sums);
        case 3: return rows_of<4, 3>(weight, x, k, rows, sums);
        case 4: return rows_of<2, 4>(weight, x, k, rows, sums);
        case 5: return rows_of<2, 5>(weight, x, k, rows, sums);
        default: return rows_of<2, 6>(weight, x, k, rows, sums);
    }
}

struct Range {
    int64_t first, end;
};

// This thread's share of `items`, in whole groups of `unit`.
inline Range share(int64_t items, int64_t unit) {
    const int64_t groups = (items + unit - 1) / unit, threads = omp_get_num_threads(), own = omp_get_thread_num();
    return {std::min(items, groups * own / threads * unit), std::min(items, groups * (own + 1) / threads * unit)};
}

// Calls emit(position, output, value) for this thread's outputs of W x + b at every position.
template <class Emit>
inline void multiply(const Matrix& m, const float* x, int64_t n, Emit emit) {
    float sums[MOST][ROWS];
    const Range own = share(m.outputs, ROWS);
    for (int64_t o = own.first; o < own.end; o += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, own.end - o));
        for (int64_t j = 0; j < n; j += MOST) {
            const int some = static_cast<int>(std::min<int64_t>(MOST, n - j));
            products(m.weight + o * m.inputs, x + j * m.inputs, m.inputs, rows, some, sums);
            for (int t = 0; t < some; ++t)
                for (int r = 0; r < rows; ++r) emit(j + t, o + r, sums[t][r] + (m.bias ? m.bias[o + r] : 0.0f));
        }
    }
}

// The MLP's middle, silu(gate) * up, of which the matrix holds first all gates, then all ups.
inline void gated(const Matrix& m, const float* x, int64_t n, float* inner) {
    float gate[MOST][ROWS] = {}, up[MOST][ROWS] = {};
    const int64_t width = m.outputs / 2;
    const Range own = share(width, ROWS);
    for (int64_t o = own.first; o < own.end; o += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, own.end - o));
        for (int64_t j = 0; j < n; j += MOST) {
            const int some = static_cast<int>(std::min<int64_t>(MOST, n - j));
            products(m.weight + o * m.inputs, x + j * m.inputs, m.inputs, rows, some, gate);
            products(m.weight + (width + o) * m.inputs, x + j * m.inputs, m.inputs, rows, some, up);
            for (int t = 0; t < some; ++t) {
                for (int r = 0; m.bias && r < rows; ++r) {
                    gate[t][r] += m.bias[o + r];
                    up[t][r] += m.bias[width + o + r];
                }
                const Vector g = load(gate[t]);
                store(gate[t], g / (exponential(-g) + 1.0f) * load(up[t]));
                std::copy(gate[t], gate[t] + rows, inner + (j + t) * width + o);
            }
        }
    }
}

// Every position divided by its root mean square and times `weight`. Each thread does it for itself: that takes less
// time than to wait for another.
inline void normed(const float* x, const float* weight, int64_t n, int64_t d, float eps, float* out) {
    for (int64_t j = 0; j < n; ++j) {
        const float* from = x + j * d;
        const float scale = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + eps);
        for (int64_t i = 0; i < d; ++i) out[j * d + i] = from[i] * scale * weight[i];
    }
}

// One head's query or key at one position: its own norm if it has one, then its rotation.
inline void rotate(const float* from, const float* norm, const Pass& p, const float* cos, const float* sin, float* to) {
    const int64_t d = p.head_dim, half = d / 2;
    float scale = 1.0f;
    if (norm) scale = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + p.eps);
    auto value = [&](int64_t i) { return norm ? from[i] * scale * norm[i] : from[i]; };
    for (int64_t i = 0; i < d; ++i) to[i] = value(i) * cos[i] + value(i < half ? i + half : i - half) * sin[i];
}

// Queries lie by key head, then by position: those that read the same keys are neighbours.
inline int64_t query_at(const Pass& p, int64_t position, int64_t head) {
    const int64_t group = p.heads / p.kv_heads;
    return (head / group * p.positions + position) * group + head % group;
}

// Queries, keys and values of a layer: turned, and keys and values put into the cache. Shared out by heads.
inline void place(const Layer& layer, const Pass& p, const float* qkv, float* queries, float* keys, float* values) {
    const int64_t d = p.head_dim, all = p.heads + 2 * p.kv_heads;
    const Range own = share(p.positions * all, 1);
    for (int64_t item = own.first; item < own.end; ++item) {
        const int64_t j = item / all, head = item % all, at = p.start + j;
        const float *from = qkv + item * d, *cos = p.cos + j * d, *sin = p.sin + j * d;
        if (head < p.heads) {
            rotate(from, layer.q_norm, p, cos, sin, queries + query_at(p, j, head) * d);
        } else if (head < p.heads + p.kv_heads) {
            rotate(from, layer.k_norm, p, cos, sin, keys + ((head - p.heads) * p.room + at) * d);
        } else {
            std::copy(from, from + d, values + ((head - p.heads - p.kv_heads) * p.room + at) * d);
        }
    }
}

// scores[t][s] = query t . key s, for `some` queries.
inline void score(
    const float* queries, const float* keys, int64_t d, int64_t seen, int some, float* scores, int64_t stride) {
    float sums[MOST][ROWS];
    for (int64_t s = 0; s < seen; s += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, seen - s));
        products(keys + s * d, queries, d, rows, some, sums);
        for (int t = 0; t < some; ++t) std::copy(sums[t], sums[t] + rows, scores + t * stride + s);
    }
}

// In place: scale, add the mask if there is one, and let what is seen add up to 1.
inline void softmax(float* scores, const float* mask, float scale, int64_t seen) {
    float highest = -INFINITY, total = 0.0f;
    for (int64_t s = 0; s < seen; ++s) {
        scores[s] = scores[s] * scale + (mask ? mask[s] : 0.0f);
        highest = std::max(highest, scores[s]);
    }
    // Whole vectors, the last one padded: there is room, and what is no score is nothing.
    for (int64_t s = seen; s % LANES; ++s) scores[s] = -INFINITY;
    Vector sums = {};
    for (int64_t s = 0; s < seen; s += LANES) {
        const Vector values = exponential(load(scores + s) - highest);
        store(scores + s, values);
        sums += values;
    }
    total = sum(sums);
    for (int64_t s = 0; s < seen; ++s) scores[s] /= total;
}

// to[0..d) = sum of weight s times value s, in registers for as many columns as they hold.
inline void mix(const float* weights, const float* values, int64_t d, int64_t seen, float* to) {
    constexpr int HELD = 8;
    int64_t i = 0;
    for (; i + HELD * LANES <= d; i += HELD * LANES) {
        Vector total[HELD] = {};
        for (int64_t s = 0; s < seen; ++s)
            for (int h = 0; h < HELD; ++h) total[h] += weights[s] * load(values + s * d + i + h * LANES);
        for (int h = 0; h < HELD; ++h) store(to + i + h * LANES, total[h]);
    }
    for (; i + LANES <= d; i += LANES) {
        Vector total = {};
        for (int64_t s = 0; s < seen; ++s) total += weights[s] * load(values + s * d + i);
        store(to + i, total);
    }
    for (; i < d; ++i) {
        to[i] = 0.0f;
        for (int64_t s = 0; s < seen; ++s) to[i] += weights[s] * values[s * d + i];
    }
}

// Softmax attention, shared out by queries; a few that read the same keys at a time.
inline void attend(
    const Pass& p, const float* queries, const float* keys, const float* values, float* scores, float* out) {
    const int64_t d = p.head_dim, group = p.heads / p.kv_heads, all = p.start + p.positions, stride = all + LANES;
    const int64_t sharing = p.positions * group;  // queries that read the same keys
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    const Range own = share(p.positions * p.heads, 1);
    for (int64_t first = own.first; first < own.end;) {
        const int64_t kv_head = first / sharing, end = std::min(own.end, (kv_head + 1) * sharing);
        const int some = static_cast<int>(std::min<int64_t>(MOST, end - first));
        const float *k = keys + kv_head * p.room * d, *v = values + kv_head * p.room * d;
        score(queries + first * d, k, d, all, some, scores, stride);
        for (int t = 0; t < some; ++t) {
            const int64_t within = first + t - kv_head * sharing, j = within / group;
            const int64_t head = kv_head * group + within % group, seen = p.mask ? all : p.start + j + 1;
            softmax(scores + t * stride, p.mask ? p.mask + j * all : nullptr, scale, seen);
            mix(scores + t * stride, v, d, seen, out + (j * p.heads + head) * d);
        }
        first += some;
    }
}

struct Scratch {
    float *normed, *qkv, *queries, *attended, *inner, *scores;
};

inline int64_t inner_width(const Pass& p) {
    int64_t most = 0;
    for (int64_t i = 0; i < p.count; ++i) most = std::max(most, p.layers[i].gate_up.outputs / 2);
    return most;
}

inline void run_layer(const Layer& layer, const Pass& p, float* keys, const Scratch& s) {
    const int64_t n = p.positions, d = p.hidden, q = p.heads * p.head_dim, all = q + 2 * p.kv_heads * p.head_dim;
    float* values = keys + p.kv_heads * p.room * p.head_dim;
    float* own_scores = s.scores + omp_get_thread_num() * MOST * (p.start + n + LANES);
    float* own_normed = s.normed + omp_get_thread_num() * n * d;
    auto add = [&](int64_t j, int64_t o, float value) { p.y[j * d + o] += value; };
    normed(p.y, layer.input_norm, n, d, p.eps, own_normed);
    multiply(layer.qkv, own_normed, n, [&](int64_t j, int64_t o, float value) { s.qkv[j * all + o] = value; });
#pragma omp barrier
    place(layer, p, s.qkv, s.queries, keys, values);
#pragma omp barrier
    attend(p, s.queries, keys, values, own_scores, s.attended);
#pragma omp barrier
    multiply(layer.out, s.attended, n, add);
#pragma omp barrier
    normed(p.y, layer.post_norm, n, d, p.eps, own_normed);
    gated(layer.gate_up, own_normed, n, s.inner);
#pragma omp barrier
    multiply(layer.down, s.inner, n, add);
#pragma omp barrier
}

}  // namespace

extern "C" {

// Floats of scratch memory that a pass needs.
int64_t scratch_floats(const Pass* pass) {
    const Pass& p = *pass;
    const int64_t q = p.heads * p.head_dim, all = q + 2 * p.kv_heads * p.head_dim;
    const int64_t shared = p.positions * (all + 2 * q + inner_width(p));
    return shared + p.threads * (p.positions * p.hidden + MOST * (p.start + p.positions + LANES));
}

void run_layers(const Pass* pass) {
    const Pass& p = *pass;
    const int64_t n = p.positions, q = p.heads * p.head_dim, all = q + 2 * p.kv_heads * p.head_dim;
    Scratch s;
    s.qkv = p.scratch;
    s.queries = s.qkv + n * all;
    s.attended = s.queries + n * q;
    s.inner = s.attended + n * q;
    s.normed = s.inner + n * inner_width(p);
    s.scores = s.normed + p.threads * n * p.hidden;
    std::copy(p.x, p.x + n * p.hidden, p.y);
#pragma omp parallel num_threads(p.threads)
    for (int64_t i = 0; i < p.count; ++i) run_layer(p.layers[i], p, p.cache + i * p.layer_stride, s);
}

// y [n, outputs] = x [n, inputs] W^T + b, and + added [n, outputs] where it is given.
void multiply_add(const Matrix* m, const float* x, const float* added, float* y, int64_t n, int32_t threads) {
#pragma omp parallel num_threads(threads)
    multiply(*m, x, n, [&](int64_t j, int64_t o, float value) {
        const int64_t at = j * m->outputs + o;
        y[at] = value + (added ? added[at] : 0.0f);
    });
}

}  // extern "C"

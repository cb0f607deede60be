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
// Weights are float32, bfloat16 or Q4_1: groups of 32 four-bit codes with a scale and a least value each, as in GGUF
// files (where these two are float16; here they are float32). Whatever they are, products are summed and states are held in float32; in a bfloat16 model the states
// between layers and the cache are rounded to bfloat16, so that a pass may stop at any layer and go on from there.
//
// Built by native.py for the machine it runs on; plain C interface, no torch headers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#if defined(__AVX2__) || defined(__FMA__)
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
constexpr int GROUP = 32;    // weights that share a scale in Q4_1

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

struct Brain {  // a bfloat16: the upper half of a float32
    uint16_t bits;
};

// Whole numbers of one or two bytes, widened. GCC 12 takes its own generic form of this apart, byte by byte.
inline Integers widened(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Integers);
#endif
}
inline Integers widened(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Integers);
#endif
}

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline Vector load(const Brain* from) { return reinterpret_cast<Vector>(widened(&from->bits) << 16); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

inline float value_of(float x) { return x; }
inline float value_of(Brain x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T>
T rounded(float value);
template <>
inline float rounded<float>(float value) {
    return value;
}
template <>
inline Brain rounded<Brain>(float value) {  // to the nearest, ties to even; what is no number stays none
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// a * b + c, in one rounding where the processor can. Said explicitly, and to be compiled without contraction: left to
// itself, a compiler fuses here and not there, and results would depend on which of the functions below was taken.
inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    Vector result;
    for (int i = 0; i < LANES; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
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
    for (; i + LANES <= n; i += LANES) total = fused(load(a + i), load(b + i), total);
    float rest = sum(total);
    for (; i < n; ++i) rest += a[i] * b[i];
    return rest;
}

// e^x, to two units in the last place; 0 where that is below 1e-38, no more than e^87. The
// method is Cephes' (expf): x = n ln 2 + r.
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
    return x < low ? Vector{} : scaled;  // what is no number stays none
}

}  // namespace

extern "C" {

enum Kind : int64_t { FLOAT32, BFLOAT16, Q4 };

// y = x W^T + b; W [outputs, inputs], row by row.
struct Matrix {
    const void* weight;  // Q4: per row and group 16 bytes; the low halves are its first 16 codes, the high ones the rest
    const float* bias;   // or null
    int64_t outputs, inputs, kind;
    const float *scales, *least;  // Q4: [outputs, inputs / GROUP]; a weight is scale * code + least
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
    void* cache;               // of the first layer: keys, then values [kv_heads, room, head_dim] each
    int64_t layer_stride, room, start;  // the stride in elements
    int64_t kind;              // of the cache, and of the states between layers
    const float* mask;         // [positions, start + positions], added to the scores; null: causal
    float* scratch;            // scratch_floats(pass) of them
};

}  // extern "C"

namespace {

// sums[j][first + r] = the product of weight row r and position j; the weights of the next rows are asked for meanwhile.
template <int R, int N, class T>
inline void block(const T* weight, const float* x, int64_t k, int first, float (*sums)[ROWS]) {
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
            for (int64_t t = i; t < k; ++t) rest = std::fma(value_of(weight[r * k + t]), x[j * k + t], rest);
            sums[j][first + r] = rest;
        }
}

struct Codes {  // a place in a Q4 matrix
    const uint8_t* codes;
    const float *scales, *least;
    const float* group_sums;  // of x: [positions, k / GROUP]

    Codes from_row(int64_t r, int64_t k) const {
        return {codes + r * k / 2, scales + r * (k / GROUP), least + r * (k / GROUP), group_sums};
    }
};

// The same for Q4: sum of scale * (codes . x) + least * (sum of x) over the groups of a row.
template <int R, int N>
inline void block(const Codes& at, const float* x, int64_t k, int first, float (*sums)[ROWS]) {
    const int64_t groups = k / GROUP;
    Vector total[R][N] = {};
    for (int64_t g = 0; g < groups; ++g) {
        for (int r = 0; r < R; ++r) {
            const uint8_t* codes = at.codes + (r * groups + g) * (GROUP / 2);
            __builtin_prefetch(codes + R * k / 2);
            Vector part[N] = {};
            for (int c = 0; c < GROUP / 2; c += LANES) {
                const Integers both = widened(codes + c);
                const Vector low = __builtin_convertvector(both & 15, Vector);
                const Vector high = __builtin_convertvector(both >> 4, Vector);
                for (int j = 0; j < N; ++j) {
                    const float* from = x + j * k + g * GROUP + c;
                    part[j] = fused(low, load(from), part[j]);
                    part[j] = fused(high, load(from + GROUP / 2), part[j]);
                }
            }
            const Vector scale = Vector{} + at.scales[r * groups + g];
            for (int j = 0; j < N; ++j) total[r][j] = fused(scale, part[j], total[r][j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j)
            sums[j][first + r] = sum(total[r][j]) + dot(at.least + r * groups, at.group_sums + j * groups, groups);
}

template <class T>
inline const T* from_row(const T* weight, int64_t r, int64_t k) {
    return weight + r * k;
}
inline Codes from_row(const Codes& at, int64_t r, int64_t k) { return at.from_row(r, k); }

// Some rows with N positions, R rows at a time: as many as the registers hold.
template <int R, int N, class At>
inline void rows_of(const At& at, const float* x, int64_t k, int rows, float (*sums)[ROWS]) {
    int r = 0;
    for (; r + R <= rows; r += R) block<R, N>(from_row(at, r, k), x, k, r, sums);
    for (; r < rows; ++r) block<1, N>(from_row(at, r, k), x, k, r, sums);
}

template <class At>
inline void products(const At& at, const float* x, int64_t k, int rows, int n, float (*sums)[ROWS]) {
    switch (n) {
        case 1: return rows_of<8, 1>(at, x, k, rows, sums);
        case 2: return rows_of<4, 2>(at, x, k, rows, sums);
        case 3: return rows_of<4, 3>(at, x, k, rows, sums);
        case 4: return rows_of<2, 4>(at, x, k, rows, sums);
        case 5: return rows_of<2, 5>(at, x, k, rows, sums);
        default: return rows_of<2, 6>(at, x, k, rows, sums);
    }
}

// The products of a matrix's rows from `o` on, of whatever kind; group_sums: of these positions of x, for Q4.
inline void products(
    const Matrix& m, int64_t o, const float* x, const float* group_sums, int rows, int n, float (*sums)[ROWS]) {
    const int64_t k = m.inputs;
    switch (m.kind) {
        case FLOAT32: return products(static_cast<const float*>(m.weight) + o * k, x, k, rows, n, sums);
        case BFLOAT16: return products(static_cast<const Brain*>(m.weight) + o * k, x, k, rows, n, sums);
        default: {
            const Codes all = {static_cast<const uint8_t*>(m.weight), m.scales, m.least, group_sums};
            return products(all.from_row(o, k), x, k, rows, n, sums);
        }
    }
}

// What Q4 needs of x [n, k]: the sum of each group.
inline void sum_groups(const Matrix& m, const float* x, int64_t n, float* group_sums) {
    if (m.kind != Q4) return;
    for (int64_t g = 0; g < n * m.inputs / GROUP; ++g) {
        Vector total = {};
        for (int i = 0; i < GROUP; i += LANES) total += load(x + g * GROUP + i);
        group_sums[g] = sum(total);
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

// Calls emit(position, output, value) for this thread's outputs of W x + b at every position. group_sums: this
// thread's memory for Q4, [n, inputs / GROUP].
template <class Emit>
inline void multiply(const Matrix& m, const float* x, int64_t n, float* group_sums, Emit emit) {
    float sums[MOST][ROWS];
    sum_groups(m, x, n, group_sums);
    const Range own = share(m.outputs, ROWS);
    for (int64_t o = own.first; o < own.end; o += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, own.end - o));
        for (int64_t j = 0; j < n; j += MOST) {
            const int some = static_cast<int>(std::min<int64_t>(MOST, n - j));
            products(m, o, x + j * m.inputs, group_sums + j * (m.inputs / GROUP), rows, some, sums);
            for (int t = 0; t < some; ++t)
                for (int r = 0; r < rows; ++r) emit(j + t, o + r, sums[t][r] + (m.bias ? m.bias[o + r] : 0.0f));
        }
    }
}

// The MLP's middle, silu(gate) * up, of which the matrix holds first all gates, then all ups.
inline void gated(const Matrix& m, const float* x, int64_t n, float* group_sums, float* inner) {
    float gate[MOST][ROWS] = {}, up[MOST][ROWS] = {};
    const int64_t width = m.outputs / 2;
    sum_groups(m, x, n, group_sums);
    const Range own = share(width, ROWS);
    for (int64_t o = own.first; o < own.end; o += ROWS) {
        const int rows = static_cast<int>(std::min<int64_t>(ROWS, own.end - o));
        for (int64_t j = 0; j < n; j += MOST) {
            const int some = static_cast<int>(std::min<int64_t>(MOST, n - j));
            const float *from = x + j * m.inputs, *from_sums = group_sums + j * (m.inputs / GROUP);
            products(m, o, from, from_sums, rows, some, gate);
            products(m, width + o, from, from_sums, rows, some, up);
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
template <class T>
inline void rotate(const float* from, const float* norm, const Pass& p, const float* cos, const float* sin, T* to) {
    const int64_t d = p.head_dim, half = d / 2;
    float scale = 1.0f;
    if (norm) scale = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + p.eps);
    auto value = [&](int64_t i) { return norm ? from[i] * scale * norm[i] : from[i]; };
    for (int64_t i = 0; i < d; ++i)
        to[i] = rounded<T>(value(i) * cos[i] + value(i < half ? i + half : i - half) * sin[i]);
}

// Queries lie by key head, then by position: those that read the same keys are neighbours.
inline int64_t query_at(const Pass& p, int64_t position, int64_t head) {
    const int64_t group = p.heads / p.kv_heads;
    return (head / group * p.positions + position) * group + head % group;
}

// Queries, keys and values of a layer: turned, and keys and values put into the cache. Shared out by heads.
template <class T>
inline void place(const Layer& layer, const Pass& p, const float* qkv, float* queries, T* keys, T* values) {
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
            T* to = values + ((head - p.heads - p.kv_heads) * p.room + at) * d;
            for (int64_t i = 0; i < d; ++i) to[i] = rounded<T>(from[i]);
        }
    }
}

// scores[t][s] = query t . key s, for `some` queries.
template <class T>
inline void score(
    const float* queries, const T* keys, int64_t d, int64_t seen, int some, float* scores, int64_t stride) {
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
template <class T>
inline void mix(const float* weights, const T* values, int64_t d, int64_t seen, float* to) {
    constexpr int HELD = 8;
    int64_t i = 0;
    for (; i + HELD * LANES <= d; i += HELD * LANES) {
        Vector total[HELD] = {};
        for (int64_t s = 0; s < seen; ++s)
            for (int h = 0; h < HELD; ++h)
                total[h] = fused(Vector{} + weights[s], load(values + s * d + i + h * LANES), total[h]);
        for (int h = 0; h < HELD; ++h) store(to + i + h * LANES, total[h]);
    }
    for (; i + LANES <= d; i += LANES) {
        Vector total = {};
        for (int64_t s = 0; s < seen; ++s) total = fused(Vector{} + weights[s], load(values + s * d + i), total);
        store(to + i, total);
    }
    for (; i < d; ++i) {
        to[i] = 0.0f;
        for (int64_t s = 0; s < seen; ++s) to[i] += weights[s] * value_of(values[s * d + i]);
    }
}

// Softmax attention, shared out by queries; a few that read the same keys at a time.
template <class T>
inline void attend(const Pass& p, const float* queries, const T* keys, const T* values, float* scores, float* out) {
    const int64_t d = p.head_dim, group = p.heads / p.kv_heads, all = p.start + p.positions, stride = all + LANES;
    const int64_t sharing = p.positions * group;  // queries that read the same keys
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    const Range own = share(p.positions * p.heads, 1);
    for (int64_t first = own.first; first < own.end;) {
        const int64_t kv_head = first / sharing, end = std::min(own.end, (kv_head + 1) * sharing);
        const int some = static_cast<int>(std::min<int64_t>(MOST, end - first));
        const T *k = keys + kv_head * p.room * d, *v = values + kv_head * p.room * d;
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

// Memory of a pass: first what all threads share, then each thread's own.
struct Scratch {
    float *qkv, *queries, *attended, *inner;       // [positions, ..]
    float *normed, *group_sums, *scores;           // this thread's
};

struct Sizes {
    int64_t qkv, queries, inner, widest;  // per position; widest: inputs of any product

    explicit Sizes(const Pass& p) : queries(p.heads * p.head_dim), inner(0) {
        qkv = queries + 2 * p.kv_heads * p.head_dim;
        for (int64_t i = 0; i < p.count; ++i) inner = std::max(inner, p.layers[i].gate_up.outputs / 2);
        widest = std::max({p.hidden, queries, inner});
    }
    int64_t shared(const Pass& p) const { return p.positions * (qkv + 2 * queries + inner); }
    int64_t own(const Pass& p) const {
        return p.positions * (p.hidden + widest / GROUP + 1) + MOST * (p.start + p.positions + LANES);
    }
};

inline Scratch part_of(const Pass& p, const Sizes& sizes, int64_t thread) {
    const int64_t n = p.positions;
    Scratch s;
    s.qkv = p.scratch;
    s.queries = s.qkv + n * sizes.qkv;
    s.attended = s.queries + n * sizes.queries;
    s.inner = s.attended + n * sizes.queries;
    s.normed = p.scratch + sizes.shared(p) + thread * sizes.own(p);
    s.group_sums = s.normed + n * p.hidden;
    s.scores = s.group_sums + n * (sizes.widest / GROUP + 1);
    return s;
}

template <class T>
inline void run_layer(const Layer& layer, const Pass& p, const Sizes& sizes, const Scratch& s, T* keys) {
    const int64_t n = p.positions, d = p.hidden, all = sizes.qkv;
    T* values = keys + p.kv_heads * p.room * p.head_dim;
    auto add = [&](int64_t j, int64_t o, float value) {
        float& state = p.y[j * d + o];
        state = value_of(rounded<T>(state + value));
    };
    normed(p.y, layer.input_norm, n, d, p.eps, s.normed);
    multiply(layer.qkv, s.normed, n, s.group_sums, [&](int64_t j, int64_t o, float value) { s.qkv[j * all + o] = value; });
#pragma omp barrier
    place(layer, p, s.qkv, s.queries, keys, values);
#pragma omp barrier
    attend(p, s.queries, keys, values, s.scores, s.attended);
#pragma omp barrier
    multiply(layer.out, s.attended, n, s.group_sums, add);
#pragma omp barrier
    normed(p.y, layer.post_norm, n, d, p.eps, s.normed);
    gated(layer.gate_up, s.normed, n, s.group_sums, s.inner);
#pragma omp barrier
    multiply(layer.down, s.inner, n, s.group_sums, add);
#pragma omp barrier
}

template <class T>
inline void run(const Pass& p) {
    const Sizes sizes(p);
#pragma omp parallel num_threads(p.threads)
    {
        const Scratch own = part_of(p, sizes, omp_get_thread_num());
        for (int64_t i = 0; i < p.count; ++i)
            run_layer(p.layers[i], p, sizes, own, static_cast<T*>(p.cache) + i * p.layer_stride);
    }
}

}  // namespace

extern "C" {

// Floats of scratch memory that a pass needs.
int64_t scratch_floats(const Pass* p) {
    const Sizes sizes(*p);
    return sizes.shared(*p) + p->threads * sizes.own(*p);
}

void run_layers(const Pass* p) {
    std::copy(p->x, p->x + p->positions * p->hidden, p->y);
    if (p->kind == BFLOAT16) {
        run<Brain>(*p);
    } else {
        run<float>(*p);
    }
}

// y [n, outputs] = x [n, inputs] W^T + b, and + added [n, outputs] where it is given. scratch: n * inputs / GROUP floats
// for each thread, for Q4 only.
void multiply_add(
    const Matrix* m, const float* x, const float* added, float* y, int64_t n, int32_t threads, float* scratch) {
#pragma omp parallel num_threads(threads)
    multiply(
        *m, x, n, scratch + omp_get_thread_num() * n * (m->inputs / GROUP), [&](int64_t j, int64_t o, float value) {
            const int64_t at = j * m->outputs + o;
            y[at] = value + (added ? added[at] : 0.0f);
        });
}

}  // extern "C"

// Attention of the rows of a pass: queries, keys and values are rotated and put where they belong, then read.
#pragma once

#include "pass.h"

constexpr int SHARING = 6;  // queries that look at the same keys while these are in the cache

// One head's query or key at one position: its own norm if it has one, then its rotation.
template <class T>
inline void rotate(const float* from, const float* norm, const Pass& p, const float* cos, const float* sin, T* to) {
    const int64_t d = p.head_dim, half = d / 2;
    float scale = 1.0f;
    if (norm) scale = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + p.eps);
    auto value = [&](int64_t i) { return norm ? from[i] * scale * norm[i] : from[i]; };
    for (int64_t i = 0; i < half; ++i) to[i] = rounded<T>(value(i) * cos[i] + value(i + half) * sin[i]);
    for (int64_t i = half; i < d; ++i) to[i] = rounded<T>(value(i) * cos[i] + value(i - half) * sin[i]);
}

// A text's keys in a layer, counted from the pass's first.
template <class T>
inline T* keys_of(const Pass& p, const Text& text, int64_t number) {
    return static_cast<T*>(text.cache) + number * p.layer_stride;
}

// Queries are in the order of texts, key heads, rows: those that read the same keys are neighbours.
inline int64_t query_at(const Pass& p, int64_t row, int64_t head) {
    const int64_t group = p.heads / p.kv_heads;
    const Text& text = p.text[p.text_of[row]];
    return text.first * p.heads + (head / group * text.width + row - text.first) * group + head % group;
}

// Heads [first, end) of queries, keys and values, counted over all rows: keys and values go into the cache.
template <class T>
inline void place(
    const Layer& layer, const Pass& p, int64_t number, const float* qkv, float* queries, int64_t first, int64_t end) {
    const int64_t d = p.head_dim, all = p.heads + 2 * p.kv_heads;
    for (int64_t item = first; item < end; ++item) {
        const int64_t row = item / all, head = item % all;
        const Text& text = p.text[p.text_of[row]];
        T* keys = keys_of<T>(p, text, number) + (text.start + row - text.first) * d;
        const float *from = qkv + item * d, *cos = p.cos + row * d, *sin = p.sin + row * d;
        if (head < p.heads) {
            rotate(from, layer.q_norm, p, cos, sin, queries + query_at(p, row, head) * d);
        } else if (head < p.heads + p.kv_heads) {
            rotate(from, layer.k_norm, p, cos, sin, keys + (head - p.heads) * p.room * d);
        } else {
            T* to = keys + p.values + (head - p.heads - p.kv_heads) * p.room * d;
            for (int64_t i = 0; i < d; ++i) to[i] = rounded<T>(from[i]);
        }
    }
}

// scores[s] = query . key s, eight keys at a time. Beyond the last key, it is taken again: so each key's score is
// summed in one order, however many there are.
template <class T>
inline void score(const float* query, const T* keys, int64_t d, int64_t first, int64_t end, int64_t all, float* scores) {
    for (int64_t s = first; s < end; s += 8) {
        const T* key[8];
        Vector total[8] = {};
        for (int r = 0; r < 8; ++r) key[r] = keys + std::min(s + r, all - 1) * d;
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) {
            const Vector part = load(query + i);
            for (int r = 0; r < 8; ++r) total[r] = fused(load(key[r] + i), part, total[r]);
        }
        sums_of_eight(total, scores + s);
        for (; i < d; ++i)
            for (int r = 0; r < 8; ++r) scores[s + r] = std::fma(value_of(key[r][i]), query[i], scores[s + r]);
    }
}

// In place: scale, add the mask if there is one, and take the exponentials of what is seen, the largest 1; their sum.
inline float exponentials(float* scores, const float* mask, float scale, int64_t seen) {
    Vector high = Vector{} - INFINITY;
    int64_t whole = 0;
    for (; whole + LANES <= seen; whole += LANES) {
        Vector values = load(scores + whole) * scale;
        if (mask) values += load(mask + whole);
        high = values > high ? values : high;
        store(scores + whole, values);
    }
    float highest = largest(high);
    for (int64_t s = whole; s < seen; ++s) {
        scores[s] = scores[s] * scale + (mask ? mask[s] : 0.0f);
        highest = std::max(highest, scores[s]);
    }
    // Whole vectors, the last one padded: there is room, and what is no score counts for nothing.
    for (int64_t s = seen; s % LANES; ++s) scores[s] = -INFINITY;
    Vector sums = {};
    for (int64_t s = 0; s < seen; s += LANES) {
        const Vector values = exponential(load(scores + s) - highest);
        store(scores + s, values);
        sums += values;
    }
    return sum(sums);
}

// In place: scale, add the mask if there is one, and let what is seen add up to 1.
inline void softmax(float* scores, const float* mask, float scale, int64_t seen) {
    const float total = exponentials(scores, mask, scale, seen);
    for (int64_t s = 0; s < seen; ++s) scores[s] /= total;
}

// to[0 .. H * LANES) += the values [first, end), weighted. Sums of every other one are kept apart where registers allow,
// so that no addition waits for the one before.
template <int H, class T>
inline void mix_columns(const float* weights, const T* values, int64_t d, int64_t first, int64_t end, float* to) {
    constexpr int SETS = H <= 4 ? 2 : 1;
    Vector total[SETS][H] = {};
    for (int h = 0; h < H; ++h) total[0][h] = load(to + h * LANES);
    int64_t s = first;
    for (; s + SETS <= end; s += SETS)
        for (int t = 0; t < SETS; ++t)
            for (int h = 0; h < H; ++h)
                total[t][h] = fused(splat(weights[s + t]), load(values + (s + t) * d + h * LANES), total[t][h]);
    for (; s < end; ++s)
        for (int h = 0; h < H; ++h) total[0][h] = fused(splat(weights[s]), load(values + s * d + h * LANES), total[0][h]);
    for (int h = 0; h < H; ++h) store(to + h * LANES, SETS == 1 ? total[0][h] : total[0][h] + total[SETS - 1][h]);
}

// to[0 .. d) += the values [first, end), weighted.
template <class T>
inline void mix(const float* weights, const T* values, int64_t d, int64_t first, int64_t end, float* to) {
    constexpr int HELD = 64 / LANES;
    int64_t i = 0;
    for (; i + HELD * LANES <= d; i += HELD * LANES) mix_columns<HELD>(weights, values + i, d, first, end, to + i);
    for (; i + LANES <= d; i += LANES) mix_columns<1>(weights, values + i, d, first, end, to + i);
    for (; i < d; ++i)
        for (int64_t s = first; s < end; ++s) to[i] += weights[s] * value_of(values[s * d + i]);
}

// Softmax attention of queries [first, end) to out [rows, heads * head_dim]. A few that read the same keys go through
// them together, a piece at a time, so that keys and values are read from memory once.
template <class T>
inline void attend(
    const Pass& p, int64_t number, const float* queries, float* scores, int64_t first, int64_t end, float* out) {
    constexpr int64_t PIECE = 64;  // keys or values: 16 KiB at 64 floats a head
    const int64_t d = p.head_dim, group = p.heads / p.kv_heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    while (first < end) {
        const Text& text = p.text[p.text_of[first / p.heads]];
        const int64_t sharing = text.width * group, begin = text.first * p.heads, kv_head = (first - begin) / sharing;
        const int64_t same = begin + kv_head * sharing;  // the first query that looks at these keys
        const int64_t some = std::min<int64_t>({SHARING, end - first, same + sharing - first});
        const int64_t all = text.start + text.width, stride = p.stride();
        const T *keys = keys_of<T>(p, text, number) + kv_head * p.room * d, *values = keys + p.values;
        struct Query {
            int64_t row, seen;  // row: of the text
            float* out;
        } query[SHARING];
        for (int64_t t = 0; t < some; ++t) {
            const int64_t within = first + t - same, row = within / group, head = kv_head * group + within % group;
            float* to = out + ((text.first + row) * p.heads + head) * d;
            query[t] = {row, text.mask ? all : text.start + row + 1, to};
            std::fill(to, to + d, 0.0f);
        }
        for (int64_t s = 0; s < all; s += PIECE)
            for (int64_t t = 0; t < some; ++t)
                score(queries + (first + t) * d, keys, d, s, std::min(s + PIECE, query[t].seen), all, scores + t * stride);
        for (int64_t t = 0; t < some; ++t)
            softmax(scores + t * stride, text.mask ? text.mask + query[t].row * all : nullptr, scale, query[t].seen);
        for (int64_t s = 0; s < all; s += PIECE)
            for (int64_t t = 0; t < some; ++t)
                mix(scores + t * stride, values, d, s, std::min(s + PIECE, query[t].seen), query[t].out);
        first += some;
    }
}

// Attention of many rows, as many in all texts: with all keys and values of a layer in panels, its products are those of panels.h.
struct Packed {
    static int64_t heads(const Pass& p) { return p.texts * p.kv_heads; }
    static int64_t keys(const Pass& p) { return p.stride() * p.head_dim; }  // floats of a head: [keys / PANEL, head_dim, PANEL]
    static int64_t columns(const Pass& p) { return (p.head_dim + PANEL - 1) / PANEL; }
    static int64_t values(const Pass& p) { return p.stride() * columns(p) * PANEL; }  // [columns, keys, PANEL]
    static int64_t floats(const Pass& p) { return heads(p) * (keys(p) + values(p)); }
    static int64_t items(const Pass& p) { return heads(p) * p.stride() / PANEL; }
    // Blocks of queries that read the same keys; each is an item of work.
    static Blocks blocks(const Pass& p) { return {p.width() * p.heads / p.kv_heads, MOST}; }
};

// Panels [first, end) of keys and their values, counted over all heads; beyond the last key, zeros.
template <class T>
inline void pack(const Pass& p, int64_t number, float* packed, int64_t first, int64_t end) {
    const int64_t d = p.head_dim, stride = p.stride(), columns = Packed::columns(p);
    for (int64_t item = first; item < end; ++item) {
        const int64_t head = item / (stride / PANEL), s = item % (stride / PANEL) * PANEL;
        const Text& text = p.text[head / p.kv_heads];
        const T* keys = keys_of<T>(p, text, number) + head % p.kv_heads * p.room * d;
        float* to = packed + head * Packed::keys(p) + s * d;
        float* values = packed + Packed::heads(p) * Packed::keys(p) + head * Packed::values(p) + s * PANEL;
        for (int64_t r = 0; r < PANEL; ++r) {
            const bool there = s + r < text.start + text.width;
            const T *key = keys + (s + r) * d, *value = key + p.values;
            for (int64_t i = 0; i < d; ++i) to[i * PANEL + r] = there ? value_of(key[i]) : 0.0f;
            for (int64_t c = 0; c < columns; ++c)
                for (int64_t i = 0; i < PANEL; ++i)
                    values[(c * stride + r) * PANEL + i] =
                        there && c * PANEL + i < d ? value_of(value[c * PANEL + i]) : 0.0f;
        }
    }
}

// Softmax attention of blocks of queries [first, end) to out [rows, heads * head_dim].
inline void attend_to_packed(
    const Pass& p, const float* queries, const float* packed, float* scores, int64_t first, int64_t end, float* out) {
    const int64_t d = p.head_dim, group = p.heads / p.kv_heads, stride = p.stride(), sharing = p.width() * group;
    const Blocks blocks = Packed::blocks(p);
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    float sums[TOGETHER][MOST][PANEL];
    // Sums of `some` positions over k inputs with `count` panels, to emit(panel, position, sums).
    auto product = [&](int some, const float* panels, int64_t apart, const float* x, int64_t x_stride, int64_t k, int64_t count, auto emit) {
        for (int64_t panel = 0, together; panel < count; panel += together) {
            together = std::min<int64_t>(TOGETHER, count - panel);
            const float* weight = panels + panel * apart;
            if (together == 1) {
                panel_product<1>(some, weight, apart, x, x_stride, k, sums);
            } else {
                panel_product<TOGETHER>(some, weight, apart, x, x_stride, k, sums);
            }
            for (int64_t q = 0; q < together; ++q)
                for (int t = 0; t < some; ++t) emit(panel + q, t, sums[q][t]);
        }
    };
    for (int64_t item = first; item < end; ++item) {
        const int64_t both = item / blocks.count, from = blocks.first(item % blocks.count);
        const int some = static_cast<int>(blocks.first(item % blocks.count + 1) - from);
        const int64_t text_number = both / p.kv_heads, head = both % p.kv_heads * group;
        const Text& text = p.text[text_number];
        auto seen_by = [&](int64_t row) { return text.start + (text.mask ? text.width : row + 1); };
        const int64_t seen = seen_by((from + some - 1) / group);
        const float *keys = packed + both * Packed::keys(p), *x = queries + (both * sharing + from) * d;
        const float* values = packed + Packed::heads(p) * Packed::keys(p) + both * Packed::values(p);
        product(some, keys, PANEL * d, x, d, d, (seen + PANEL - 1) / PANEL, [&](int64_t panel, int t, const float* sum) {
            std::copy(sum, sum + PANEL, scores + t * stride + panel * PANEL);
        });
        float totals[MOST];
        for (int t = 0; t < some; ++t) {
            const int64_t row = (from + t) / group, own = seen_by(row);
            const float* mask = text.mask ? text.mask + row * (text.start + text.width) : nullptr;
            totals[t] = exponentials(scores + t * stride, mask, scale, own);
            std::fill(scores + t * stride + own, scores + t * stride + std::max(own, seen), 0.0f);
        }
        product(some, values, stride * PANEL, scores, stride, seen, Packed::columns(p), [&](int64_t panel, int t, const float* sum) {
            const int64_t row = text.first + (from + t) / group;
            float* to = out + (row * p.heads + head + (from + t) % group) * d + panel * PANEL;
            for (int64_t i = 0; i < std::min<int64_t>(PANEL, d - panel * PANEL); ++i) to[i] = sum[i] / totals[t];
        });
    }
}

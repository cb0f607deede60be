// One layer of a pass, and the memory that it needs.
#pragma once

#include "attention.h"
#include "panels.h"
#include "pass.h"
#include "work.h"

// Every position divided by its root mean square and times `weight`.
inline void normed(const float* x, const float* weight, int64_t n, int64_t d, float eps, float* out) {
    for (int64_t j = 0; j < n; ++j) {
        const float* from = x + j * d;
        const float scale = 1.0f / std::sqrt(dot(from, from, d) / static_cast<float>(d) + eps);
        for (int64_t i = 0; i < d; ++i) out[j * d + i] = from[i] * scale * weight[i];
    }
}

// The MLP's middle, silu(gate) * up, from a panel of gates and then one of ups.
inline void gated(const float* gate, const float* up, int count, float* to) {
    float values[PANEL];
    for (int r = 0; r < PANEL; r += LANES) {
        const Vector g = load(gate + r);
        store(values + r, g / (exponential(-g) + 1.0f) * load(up + r));
    }
    std::copy(values, values + count, to);
}

// Memory of a pass: first what all threads share, then each thread's own.
struct Scratch {
    float *qkv, *queries, *attended, *inner;  // [rows, ..]
    float* packed;                            // keys and values, if rows are many
    float *normed, *inputs;                   // shared if rows are many, else this thread's
    float *gates, *scores;                    // this thread's

    Scratch(const Pass& p, int64_t thread) {
        const Sizes sizes(p);
        const int64_t n = p.rows;
        float* at = p.scratch;
        auto take = [&](int64_t floats) {
            float* own = at;
            at += (floats + 15) / 16 * 16;
            return own;
        };
        qkv = take(n * sizes.qkv);
        queries = take(n * sizes.queries);
        attended = take(n * sizes.queries);
        inner = take(n * sizes.inner);
        packed = take(sizes.packed(p));
        if (n <= MANY) at += thread * sizes.own(p);
        normed = take(n * p.hidden);
        inputs = take(Inputs::floats(n, sizes.widest));
        if (n > MANY) at += thread * sizes.own(p);
        gates = take(n * PANEL);
        scores = take(std::max(SHARING, MOST) * p.stride());
    }
    static int64_t floats(const Pass& p) {
        const Sizes sizes(p);
        return p.rows * (sizes.qkv + 2 * sizes.queries + sizes.inner) + sizes.packed(p) + 128 +
               (p.rows > MANY ? sizes.inputs(p) : 0) + p.threads * sizes.own(p);
    }

  private:
    struct Sizes {
        int64_t qkv, queries, inner, widest;  // per row; widest: inputs of any product

        explicit Sizes(const Pass& p) : queries(p.heads * p.head_dim), inner(0) {
            qkv = queries + 2 * p.kv_heads * p.head_dim;
            for (int64_t i = 0; i < p.count; ++i) inner = std::max(inner, p.layers[i].gate_up.outputs / 2);
            widest = std::max({p.hidden, queries, inner});
        }
        int64_t packed(const Pass& p) const { return p.width() > MANY ? Packed::floats(p) : 0; }
        int64_t inputs(const Pass& p) const { return p.rows * p.hidden + Inputs::floats(p.rows, widest); }
        int64_t own(const Pass& p) const {
            const int64_t most = p.rows * PANEL + std::max(SHARING, MOST) * p.stride() + (p.rows > MANY ? 0 : inputs(p));
            return most / 16 * 16 + 80;  // each part of it is rounded up
        }
    };
};

// y += attention, then y += MLP, if the layer has one.
template <class T>
inline void run_layer(const Pass& p, int64_t number, const Scratch& s, Worker& worker) {
    const Layer& layer = p.layers[number];
    const int64_t n = p.rows, d = p.hidden, inner = layer.gate_up.outputs / 2;
    const int64_t queries = p.heads * p.head_dim, all = queries + 2 * p.kv_heads * p.head_dim;
    // Shares out the panels of a product of `x`, whose sums go to `emit`. What it reads of few positions each thread makes
    // for itself, which takes less time than to wait for another; of many positions this is shared out, too.
    auto product = [&](const Matrix& m, const float* x, const float* norm, int64_t unit, auto emit) {
        const Inputs in(m, norm ? s.normed : x, n, s.inputs);
        auto prepare = [&](int64_t first, int64_t end) {
            if (norm) normed(x + first * d, norm, end - first, d, p.eps, s.normed + first * d);
            in.fill(first, end);
        };
        if (n > MANY) worker.share(n, prepare);
        auto prepare_all = [&] {
            if (n <= MANY) prepare(0, n);
        };
        worker.share(panels_of(m) / unit, prepare_all, [&](int64_t first, int64_t end) {
            multiply(m, in, n, first * unit, end * unit, emit);
        });
    };
    auto add = [&](int64_t j, int64_t o, int count, const float* sums) {
        float* state = p.y + j * d + o;
        for_some(count, [&](int r) { state[r] = value_of(rounded<T>(state[r] + sums[r])); });
    };
    product(layer.qkv, p.y, layer.input_norm, 1, [&](int64_t j, int64_t o, int count, const float* sums) {
        std::copy(sums, sums + count, s.qkv + j * all + o);
    });
    worker.share(n * (p.heads + 2 * p.kv_heads), [&](int64_t first, int64_t end) {
        place<T>(layer, p, number, s.qkv, s.queries, first, end);
    });
    if (p.width() > MANY) {
        worker.share(Packed::items(p), [&](int64_t first, int64_t end) { pack<T>(p, number, s.packed, first, end); });
        worker.share(Packed::heads(p) * Packed::blocks(p).count, [&](int64_t first, int64_t end) {
            attend_to_packed(p, s.queries, s.packed, s.scores, first, end, s.attended);
        });
    } else {
        worker.share(n * p.heads, [&](int64_t first, int64_t end) {
            attend<T>(p, number, s.queries, s.scores, first, end, s.attended);
        });
    }
    product(layer.out, s.attended, nullptr, 1, add);
    if (!inner) return;  // attention alone
    product(layer.gate_up, p.y, layer.post_norm, 2, [&](int64_t j, int64_t o, int count, const float* sums) {
        if (o < inner) {
            std::copy(sums, sums + PANEL, s.gates + j * PANEL);  // its ups come next
        } else {
            gated(s.gates + j * PANEL, sums, count, s.inner + j * inner + o - inner);
        }
    });
    product(layer.down, s.inner, nullptr, 1, add);
}

constexpr int64_t PHASES = 11;  // of a layer, at most

// This thread's share of a pass, from p.y, which holds its input, to p.y.
template <class T>
inline void run_pass(const Pass& p, Worker& worker, int64_t thread) {
    const Scratch own(p, thread);
    for (int64_t i = 0; i < p.count; ++i) run_layer<T>(p, i, own, worker);
}

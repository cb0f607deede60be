// A level of drafts by a draft model on top of the target's first layers, in one call: these layers over the level's
// rows, the draft model's own over them and over rows that it has not read yet, an LM head, and its most probable tokens.
#pragma once

#include "layer.h"

struct Draft {
    const Pass *shallow, *deep;  // the target's first layers; the draft model's. Their `y` are written
    const Matrix* join;          // [hidden, 2 hidden]: what the draft model reads, of a state and the one before; or null
    const int64_t* source;       // [deep rows]: the level's row that each is, or ~i: it is unread row i
    const int64_t* place;        // [level rows]: the deep row that each is
    const float* unread;         // [deep rows - level rows, hidden]: states of rows before the level's
    const float* before;         // [deep rows, hidden], with `join`
    const float* norm;           // [hidden], before the head
    const Matrix* head;
    int64_t best;                // how many tokens of each row
    float *outputs, *logits;     // of the level's rows: [.., hidden] under the norm, [.., head outputs]
    int64_t* tokens;             // [.., best], the most probable first,
    float* chances;              // and their probabilities
    float* scratch;              // draft_floats(draft) of them

    int64_t rows() const { return shallow->rows; }
    int64_t inputs() const { return (join ? 2 : 1) * deep->hidden; }
    int64_t own() const {  // floats of each thread
        const int64_t n = deep->rows;
        return (n * inputs() + Inputs::floats(n, inputs())) / 16 * 16 + 64;
    }
};

// The `count` largest of n logits, of equal ones the first, and their softmax over all.
inline void most_probable(const float* logits, int64_t n, int64_t count, int64_t* tokens, float* chances) {
    std::fill(chances, chances + count, -INFINITY);
    std::fill(tokens, tokens + count, 0);
    for (int64_t i = 0; i < n; ++i) {
        if (!(logits[i] > chances[count - 1])) continue;
        int64_t at = count - 1;
        for (; at > 0 && logits[i] > chances[at - 1]; --at) {
            chances[at] = chances[at - 1];
            tokens[at] = tokens[at - 1];
        }
        chances[at] = logits[i];
        tokens[at] = i;
    }
    const float highest = chances[0];
    Vector sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += exponential(load(logits + i) - highest);
    float total = sum(sums);
    for (; i < n; ++i) total += std::exp(logits[i] - highest);
    for (int64_t c = 0; c < count; ++c) chances[c] = std::exp(chances[c] - highest) / total;
}

// This thread's share of the phases of a draft: see `Draft`.
template <class T>
inline void run_draft(const Draft& draft, Worker& worker, int64_t thread) {
    const Pass &shallow = *draft.shallow, &deep = *draft.deep;
    const int64_t n = deep.rows, rows = draft.rows(), d = deep.hidden;
    float *const joined = draft.scratch + thread * draft.own(), *const memory = joined + n * draft.inputs();
    run_pass<T>(shallow, worker, thread);
    auto state = [&](int64_t j) {
        const int64_t from = draft.source[j];
        return from < 0 ? draft.unread + ~from * d : shallow.y + from * d;
    };
    if (draft.join) {
        const Inputs in(*draft.join, joined, n, memory);
        auto prepare = [&] {
            for (int64_t j = 0; j < n; ++j) {
                std::copy(state(j), state(j) + d, joined + j * 2 * d);
                std::copy(draft.before + j * d, draft.before + (j + 1) * d, joined + (j * 2 + 1) * d);
            }
            in.fill(0, n);
        };
        worker.share(panels_of(*draft.join), prepare, [&](int64_t first, int64_t end) {
            multiply(*draft.join, in, n, first, end, [&](int64_t j, int64_t o, int count, const float* sums) {
                for (int r = 0; r < count; ++r) deep.y[j * d + o + r] = value_of(rounded<T>(sums[r]));
            });
        });
    } else {
        worker.share(n, [&](int64_t first, int64_t end) {
            for (int64_t j = first; j < end; ++j) std::copy(state(j), state(j) + d, deep.y + j * d);
        });
    }
    run_pass<T>(deep, worker, thread);
    const Inputs in(*draft.head, joined, rows, memory);
    const int64_t all = draft.head->outputs;
    auto prepare = [&] {
        for (int64_t j = 0; j < rows; ++j) normed(deep.y + draft.place[j] * d, draft.norm, 1, d, deep.eps, joined + j * d);
        in.fill(0, rows);
    };
    worker.share(panels_of(*draft.head), prepare, [&](int64_t first, int64_t end) {
        multiply(*draft.head, in, rows, first, end, [&](int64_t j, int64_t o, int count, const float* sums) {
            std::copy(sums, sums + count, draft.logits + j * all + o);
        });
    });
    worker.share(rows, [&](int64_t first, int64_t end) {
        for (int64_t j = first; j < end; ++j) {
            normed(deep.y + draft.place[j] * d, draft.norm, 1, d, deep.eps, draft.outputs + j * d);
            const int64_t at = j * draft.best;
            most_probable(draft.logits + j * all, all, draft.best, draft.tokens + at, draft.chances + at);
        }
    });
}

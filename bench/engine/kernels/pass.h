// What a pass is asked for, as native.py lays it out.
#pragma once

#include "panels.h"

struct Layer {
    const float *input_norm, *q_norm, *k_norm, *post_norm;  // q_norm, k_norm: or null
    Matrix qkv, out, gate_up, down;                         // gate_up: paired
};

struct Text {
    void* cache;           // of the first layer: its keys [kv_heads, room, head_dim], then its values
    int64_t start;         // the cache's row of its first row
    int64_t width, first;  // its rows, which are neighbours, and the number of the first among the pass's
    const float* mask;     // [width, start + width], added to the scores; null: causal
};

struct Pass {
    const Layer* layers;
    const Text* text;
    const int64_t* text_of;  // [rows], by number
    int64_t count, texts, rows, hidden, heads, kv_heads, head_dim;  // of `texts` sequences
    float eps;
    int32_t threads;
    const float* x;                        // [rows, hidden]
    float* y;                              // the same: out; may not be x
    const float *cos, *sin;                // [rows, head_dim], sin's first half negated
    int64_t layer_stride, values, room;    // of all caches; values: from a key to its value; in elements
    int64_t kind;                          // of the caches, and of the states between layers
    float* scratch;                        // scratch_floats(pass) of them

    int64_t width() const {  // of all texts; 0: they differ
        for (int64_t i = 1; i < texts; ++i)
            if (text[i].width != text[0].width) return 0;
        return text[0].width;
    }
    int64_t stride() const {  // of the scores of a query: whole panels of keys, and more
        int64_t most = 0;
        for (int64_t i = 0; i < texts; ++i) most = std::max(most, text[i].start + text[i].width);
        return (most + PANEL - 1) / PANEL * PANEL + PANEL;
    }
};

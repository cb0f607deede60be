// What a pass is asked for, as native.py lays it out.
#pragma once

#include "panels.h"

struct Layer {
    const float *input_norm, *q_norm, *k_norm, *post_norm;  // q_norm, k_norm: or null
    Matrix qkv, out, gate_up, down;                         // gate_up: paired
};

struct Text {
    int64_t slot;       // of its keys in the cache, in elements
    int64_t start;      // the cache's row of its first row
    const float* mask;  // [width, start + width], added to the scores; null: causal
};

struct Pass {
    const Layer* layers;
    const Text* text;
    int64_t count, texts, width, hidden, heads, kv_heads, head_dim;  // of `texts` sequences `width` rows each
    float eps;
    int32_t threads;
    const float* x;                        // [texts, width, hidden]
    float* y;                              // the same: out; may not be x
    const float *cos, *sin;                // [texts, width, head_dim], sin's first half negated
    void* cache;                           // of the first layer: keys [.., kv_heads, room, head_dim], then values
    int64_t layer_stride, values, room;    // values: from a key to its value; in elements
    int64_t kind;                          // of the cache, and of the states between layers
    float* scratch;                        // scratch_floats(pass) of them

    int64_t rows() const { return texts * width; }
    int64_t stride() const {  // of the scores of a query: whole panels of keys, and more
        int64_t most = 0;
        for (int64_t i = 0; i < texts; ++i) most = std::max(most, text[i].start);
        return (most + width + PANEL - 1) / PANEL * PANEL + PANEL;
    }
};

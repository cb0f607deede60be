// The kernels for a processor that an emulator plays. Requests come on stdin: the structs of panels.h and pass.h, each
// array that they point to behind them as its length in bytes (-1: null) and its content. Results go to stdout.
// The processor must lay structs out as Python's does: 64 bits, little-endian.
#include "layers.cpp"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

namespace {

void read(void* to, size_t bytes) {
    if (bytes && std::fread(to, bytes, 1, stdin) != 1) std::exit(0);  // the end
}

template <class T>
T read() {
    T value;
    read(&value, sizeof value);
    return value;
}

void write(const void* from, size_t bytes) {
    std::fwrite(from, 1, bytes, stdout);
    std::fflush(stdout);
}

struct Arrays {
    std::deque<std::vector<char>> kept;

    template <class T>
    void into(T*& pointer) {
        const auto bytes = read<int64_t>();
        pointer = nullptr;
        if (bytes < 0) return;
        auto& array = kept.emplace_back(bytes);
        read(array.data(), array.size());
        pointer = reinterpret_cast<T*>(array.data());
    }
    float* floats(int64_t count) { return reinterpret_cast<float*>(kept.emplace_back(4 * count).data()); }
    void of(Matrix& m) {
        into(m.panels);
        into(m.scales);
        into(m.bias);
    }
};

void product() {
    Arrays arrays;
    auto m = read<Matrix>();
    const auto rows = read<int64_t>(), threads = read<int64_t>();
    const float *x, *added;
    arrays.of(m);
    arrays.into(x);
    arrays.into(added);
    float* y = arrays.floats(rows * m.outputs);
    multiply_add(&m, x, added, y, rows, static_cast<int32_t>(threads), arrays.floats(product_floats(&m, rows, threads)));
    write(y, 4 * rows * m.outputs);
}

void pass() {
    Arrays arrays;
    auto p = read<Pass>();
    std::vector<Layer> layers(p.count);
    for (Layer& layer : layers) {
        layer = read<Layer>();
        for (const float** norm : {&layer.input_norm, &layer.q_norm, &layer.k_norm, &layer.post_norm}) arrays.into(*norm);
        for (Matrix* m : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) arrays.of(*m);
    }
    std::vector<Text> texts(p.texts);
    std::vector<size_t> caches;  // their sizes
    for (Text& text : texts) {
        text = read<Text>();
        arrays.into(text.mask);
        arrays.into(text.cache);
        caches.push_back(arrays.kept.back().size());
    }
    p.layers = layers.data();
    p.text = texts.data();
    arrays.into(p.text_of);
    arrays.into(p.x);
    arrays.into(p.cos);
    arrays.into(p.sin);
    p.y = arrays.floats(p.rows * p.hidden);
    p.scratch = arrays.floats(scratch_floats(&p));
    run_layers(&p);
    write(p.y, 4 * p.rows * p.hidden);
    for (size_t i = 0; i < texts.size(); ++i) write(texts[i].cache, caches[i]);
}

}  // namespace

int main() {
    for (;;) {
        if (read<int64_t>() == 0) {
            product();
        } else {
            pass();
        }
    }
}

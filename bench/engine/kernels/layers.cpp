// Passes of a Llama-family decoder on a CPU: all layers over some positions in one call.
//
// A pass over one position reads every weight once and does two operations with each, so it can be as fast as memory is
// read, if nothing else takes time. Run operation by operation from Python, the small steps between the products take a
// third of it. Here a pass is one parallel region whose threads share the work of every step (work.h).
//
// Weights are float32, bfloat16, or codes of four or eight bits (panels.h, integers.h). States are held in float32; in a
// bfloat16 model the states between layers and the cache are rounded to bfloat16, so that a pass may stop at any layer
// and go on from there.
//
// Built by native.py for the machine that it runs on; plain C interface, no torch headers.

#include <omp.h>

#include "draft.h"

namespace {

// Calls work(worker, thread) on every thread.
template <class Work>
inline void in_parallel(int64_t phases, int threads, Work work) {
    Phases all(phases, threads);
#pragma omp parallel num_threads(threads)
    {
        Worker worker(all);
        work(worker, omp_get_thread_num());
    }
}

// Calls work(T()) with the type of a pass's states.
template <class Work>
inline void by_kind(const Pass& p, Work work) {
    if (p.kind == BFLOAT16) {
        work(Brain());
    } else {
        work(float());
    }
}

inline void begin(const Pass& p) { std::copy(p.x, p.x + p.rows * p.hidden, p.y); }

}  // namespace

extern "C" {

// 1 if products with bfloat16 weights round their inputs to bfloat16.
int32_t rounds_inputs() { return sizeof(Narrow) < sizeof(float); }

// Floats of scratch memory that a pass needs.
int64_t scratch_floats(const Pass* p) { return Scratch::floats(*p); }

void run_layers(const Pass* p) {
    begin(*p);
    by_kind(*p, [&]<class T>(T) {
        in_parallel(p->count * PHASES, p->threads, [&](Worker& worker, int64_t thread) {
            run_pass<T>(*p, worker, thread);
        });
    });
}

// Floats of scratch memory that a draft needs, besides those of its passes.
int64_t draft_floats(const Draft* draft) { return draft->deep->threads * draft->own(); }

void run_draft(const Draft* draft) {
    begin(*draft->shallow);
    const Pass& deep = *draft->deep;
    by_kind(deep, [&]<class T>(T) {
        in_parallel((draft->shallow->count + deep.count) * PHASES + 3, deep.threads, [&](Worker& worker, int64_t thread) {
            run_draft<T>(*draft, worker, thread);
        });
    });
}

// Floats of scratch memory that multiply_add needs.
int64_t product_floats(const Matrix* m, int64_t n, int32_t threads) {
    return (n > MANY ? 1 : threads) * Inputs::floats(n, m->inputs);
}

// y [n, outputs] = x [n, inputs] W^T + b, and + added [n, outputs] where it is given.
void multiply_add(
    const Matrix* m, const float* x, const float* added, float* y, int64_t n, int32_t threads, float* scratch) {
    in_parallel(2, threads, [&](Worker& worker, int64_t thread) {
        const Inputs in(*m, x, n, n > MANY ? scratch : scratch + thread * Inputs::floats(n, m->inputs));
        if (n > MANY) worker.share(n, [&](int64_t first, int64_t end) { in.fill(first, end); });
        auto prepare = [&] {
            if (n <= MANY) in.fill(0, n);
        };
        worker.share(panels_of(*m), prepare, [&](int64_t first, int64_t end) {
            multiply(*m, in, n, first, end, [&](int64_t j, int64_t o, int count, const float* sums) {
                const int64_t at = j * m->outputs + o;
                for_some(count, [&](int r) { y[at + r] = sums[r] + (added ? added[at + r] : 0.0f); });
            });
        });
    });
}

}  // extern "C"

// How threads share the work of a pass: as a row of phases, each cut into pieces that whoever is free claims.
//
// A phase begins when all pieces of the one before are done, whether or not every thread has noticed. So a thread that
// the system took off its core, because another process wanted it, holds up no more than the piece it was at: its
// mates do the rest. Large pieces first and small ones last keep threads from waiting at the end of a phase.
//
// That one piece is waited for until its thread is back, a slice of the scheduler's later (some ms). Pieces take
// microseconds, so their size does not matter to that. What does is that those who wait sleep soon: their core is then
// idle, and the system can move the missing thread there. A piece cannot be done by a second thread instead: sums are
// added to the states, and the first would come back to write into buffers that later phases use.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

struct alignas(64) Phase {
    std::atomic<uint32_t> claimed{0}, done{0};  // items
};

// The phases of a pass, known to all threads.
class Phases {
  public:
    Phases(int64_t count, int threads) : phases(new Phase[count]), threads(threads) {}

    Phase& operator[](int64_t number) { return phases[number]; }

    // The next piece [first, end) of a phase of so many items; false: none is left.
    bool claim(Phase& at, uint32_t items, uint32_t& first, uint32_t& end) const {
        first = at.claimed.load(std::memory_order_relaxed);
        do {
            if (first >= items) return false;
            end = first + std::max<uint32_t>(1, (items - first) / (2 * threads));
        } while (!at.claimed.compare_exchange_weak(first, end, std::memory_order_relaxed));
        return true;
    }

  private:
    std::unique_ptr<Phase[]> phases;
    uint32_t threads;
};

// One thread's way through the phases.
class Worker {
  public:
    explicit Worker(Phases& phases) : phases(phases) {}

    // Does its share of the next phase, and returns when all of the phase is done. `prepare()` is called before the
    // first piece, if there is one for this thread; `work(first, end)` for each piece.
    template <class Prepare, class Work>
    void share(int64_t count, Prepare prepare, Work work) {
        Phase& at = phases[next++];
        const auto items = static_cast<uint32_t>(count);
        uint32_t first, end;
        for (bool ready = false; phases.claim(at, items, first, end); ready = true) {
            if (!ready) prepare();
            work(first, end);
            if (at.done.fetch_add(end - first, std::memory_order_acq_rel) + (end - first) == items) at.done.notify_all();
        }
        wait(at.done, items);
    }
    template <class Work>
    void share(int64_t count, Work work) {
        share(count, [] {}, work);
    }

  private:
    static constexpr int SPINS = 1000;  // some tens of microseconds: longer than a phase's end usually takes

    static void wait(std::atomic<uint32_t>& done, uint32_t items) {
        for (int i = 0; i < SPINS; ++i) {
            if (done.load(std::memory_order_acquire) == items) return;
#if defined(__x86_64__) || defined(__i386__)
            _mm_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
        // Asleep, it leaves its core to the thread that it waits for.
        for (uint32_t now; (now = done.load(std::memory_order_acquire)) != items;) done.wait(now, std::memory_order_acquire);
    }

    Phases& phases;
    int64_t next = 0;
};

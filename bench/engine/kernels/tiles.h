// Products of bfloat16 in the tiles of processors that have them (AMX): 16 positions with 16 rows of a matrix, 32 inputs
// at a time, ten times as fast as vectors.
//
// A tile sums in an order of its own, which is the same for every number of positions.
#pragma once

#include "integers.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

constexpr int TILE = 16;         // positions, or rows of a matrix
constexpr int TILE_INPUTS = 32;  // of a product
constexpr int TILED = 2 * TILE;  // positions of a block: two tiles of them, with two panels of weights

// Whether the system lets this process use tiles: it is asked for each process, as their state is large.
inline bool has_tiles() {
    static const bool allowed = [] {
        constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, ask, tile_data) == 0;
    }();
    return allowed;
}

// While it lives, this thread's tiles are those of a block of n positions: 0..3 sums [position, row], a pair of tiles of
// positions for each panel; 4 and 5 inputs [position, input]; 6 and 7 weights [input / 2, row, 2].
class Tiles {
  public:
    explicit Tiles(int64_t n) {
        const auto first = static_cast<uint8_t>(std::min<int64_t>(n, TILE));
        const auto second = static_cast<uint8_t>(std::min<int64_t>(n, TILED) - first);
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        const uint8_t rows[] = {first, second, first, second, first, second, TILE, TILE};
        for (int i = 0; i < 8; ++i) {
            shape.rows[i] = rows[i];
            shape.bytes[i] = rows[i] ? 64 : 0;
        }
        asm volatile("" : : "r"(&shape) : "memory");  // GCC does not know how much memory tiles are made of
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

// Weights are read as one stream, of which the processor does not foresee enough by itself.
inline void prefetch_tile(const Brain* weight) {
    for (int at = 0; at < TILE_INPUTS * TILE; at += 32)
        __builtin_prefetch(reinterpret_cast<const char*>(weight + at) + AHEAD);
}

// sums[p][j][r] = the product of row r of panel p and position j, for P panels and B tiles of positions.
template <int P, int B>
inline void tile_product(const Brain* weight, const Brain* x, int64_t k, float (*sums)[TILED][TILE]) {
    const int64_t next = k * TILE, row = 2 * k;  // weights from one panel to the next; bytes from a position to the next
    _tile_zero(0);
    if constexpr (B == 2) _tile_zero(1);
    if constexpr (P == 2) _tile_zero(2);
    if constexpr (P == 2 && B == 2) _tile_zero(3);
    for (int64_t i = 0; i < k; i += TILE_INPUTS) {
        _tile_loadd(4, x + i, row);
        prefetch_tile(weight + i * TILE);
        _tile_loadd(6, weight + i * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (B == 2) {
            _tile_loadd(5, x + TILE * k + i, row);
            _tile_dpbf16ps(1, 5, 6);
        }
        if constexpr (P == 2) {
            prefetch_tile(weight + next + i * TILE);
            _tile_loadd(7, weight + next + i * TILE, 64);
            _tile_dpbf16ps(2, 4, 7);
            if constexpr (B == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0], 64);
    if constexpr (B == 2) _tile_stored(1, sums[0][TILE], 64);
    if constexpr (P == 2) _tile_stored(2, sums[1], 64);
    if constexpr (P == 2 && B == 2) _tile_stored(3, sums[1][TILE], 64);
}

inline void tile_product(
    int64_t panels, int64_t n, const Brain* weight, const Brain* x, int64_t k, float (*sums)[TILED][TILE]) {
    if (panels == 1) return n > TILE ? tile_product<1, 2>(weight, x, k, sums) : tile_product<1, 1>(weight, x, k, sums);
    return n > TILE ? tile_product<2, 2>(weight, x, k, sums) : tile_product<2, 1>(weight, x, k, sums);
}

#endif

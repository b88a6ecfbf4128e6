// Matrix product of gathered rows with a packed panel: the one loop in which the time goes.
//
// C[m][n] = sum over runs, over k in a run, of A[m][offset of the run + k] * B[k][n].
// A's rows lie anywhere (an image of padded pixels, a row of Winograd tiles), so a convolution needs no im2col:
// the kept taps of a kernel row are one run. B holds the rows of all runs one after the other, a panel of
// columns wide. The register tile is 6 rows by 4 vectors (AVX-512: 24 accumulators, 4 registers of B and one
// broadcast out of 32) or by 2 vectors (16 registers). A tile reads 4 lines of B and 6 scalars for 24
// multiply-adds, 11 bytes a cycle: B may stream from L2. Narrow panels take 8 rows, or too few sums would take turns to
// hide the latency of one; more rows than that have more addresses than there are registers for them. Rows are dealt to
// tiles evenly (8 = 4 + 4, not 6 + 2).
// Every chunk of some hundred rows of B the registers are added to C: it costs 2% of the time, B is reused from
// L2, and an fp32 sum of thousands of terms rounds like a short one. bf16 multiplies pairs along k: B then interleaves
// two rows, and a run of odd length has a row of zeros behind it.
#pragma once

#include "simd.h"

namespace vidgen::VIDGEN_ISA {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;
constexpr int kTallestTile = 8;

// Rows of the register tile for a panel of so many vectors.
constexpr int tile_rows(int vectors) { return vectors == kTileVectors ? kTileRows : kTallestTile; }

template <class S>
constexpr int kPanel = kTileVectors * kLanes<S>;
template <class S>
constexpr int kDepthStep = sizeof(S) == 2 ? 2 : 1;

struct Run {
  int64_t offset, length;  // in elements of A
};

// Where the rows of A begin: row m is column m % columns of line m / columns.
template <class S>
struct RowMap {
  const S* base;
  int64_t columns, line_pitch, column_pitch;
  bool far = false;  // nobody has read these rows lately: those behind a tile are fetched while it multiplies
};

// Walks a RowMap in order without dividing.
template <class S>
struct RowCursor {
  const RowMap<S>& map;
  const S* line;
  int64_t column = 0;
  explicit RowCursor(const RowMap<S>& m) : map(m), line(m.base) {}
  VIDGEN_INLINE const S* next() {
    const S* row = line + column * map.column_pitch;
    if (++column == map.columns) {
      column = 0;
      line += map.line_pitch;
    }
    return row;
  }
};

// Memory that will be wanted soon: its lines are fetched to L2 a few at a time, between register tiles. A
// product alone leaves the memory idle, and the copies before and after it would wait for memory alone.
struct Prefetch {
  struct Region {
    const char* base;
    int64_t outer, outer_pitch, inner, inner_pitch, bytes;
  };
  Region region[2];
  int64_t per_step = 0;  // lines between two tiles
  int64_t next = 0, o = 0, i = 0, at = 0;

  static int64_t lines(const Region& r) { return r.outer * r.inner * ((r.bytes + 63) / 64); }
  void step() {
    for (int64_t n = 0; n < per_step && next < 2; ++n) {
      const Region& r = region[next];
      if (o < r.outer) __builtin_prefetch(r.base + o * r.outer_pitch + i * r.inner_pitch + at, 0, 2);
      if ((at += 64) < r.bytes) continue;
      at = 0;
      if (++i < r.inner) continue;
      i = 0;
      if (++o < r.outer) continue;
      o = 0;
      ++next;
    }
  }
};

template <class S>
VIDGEN_INLINE Vec<S> load_panel(const S* b) {
  Vec<S> v;
  __builtin_memcpy(&v, b, sizeof v);
  return v;
}

// The broadcast operand: one value, or a pair of bf16, the second of which is zero if it is `alone`.
template <class S, bool alone>
VIDGEN_INLINE Vec<S> add_product(Vec<S> c, const S* a, Vec<S> b) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(S) == 2) {
    int32_t pair = 0;
    __builtin_memcpy(&pair, a, alone ? sizeof *a : sizeof pair);
    return (Vec<S>)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  }
#endif
  if constexpr (sizeof(S) != 2) c = multiply_add<S>(*a, b, c);
  return c;
}

// `next` is memory to be fetched meanwhile, a line per row of B; null: nothing.
template <class S, int rows, int vectors, bool fetches>
void multiply_tile(const S* const* a, const Run* run, int64_t runs, const S* b, Acc<S>* c, int64_t c_pitch,
                   bool accumulate, const char* next) {
  constexpr int lanes = kLanes<S>;
  Vec<S> sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = Vec<S>{};
  }
  for (; runs > 0; --runs, ++run) {
    const S* row[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) row[i] = a[i] + run->offset;
    auto multiply_row = [&](int64_t k, auto alone) __attribute__((always_inline)) {
      Vec<S> panel[vectors];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) panel[j] = load_panel(b + j * lanes * kDepthStep<S>);
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j)
          sum[i][j] = add_product<S, decltype(alone)::value>(sum[i][j], row[i] + k, panel[j]);
      }
      b += vectors * lanes * kDepthStep<S>;
      if constexpr (fetches) {
        __builtin_prefetch(next, 0, 2);
        next += 64;
      }
    };
    int64_t whole = run->length / kDepthStep<S> * kDepthStep<S>;
    for (int64_t k = 0; k < whole; k += kDepthStep<S>) multiply_row(k, std::false_type{});
    if (kDepthStep<S> == 2 && whole < run->length) multiply_row(whole, std::true_type{});
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      Acc<S>* out = c + i * c_pitch + j * lanes;
      store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
  }
}

// The centre tap between channel groups: input channel k of colour g reaches only the output channels whose
// key exceeds g's threshold, and touches no other accumulator. C is read, added to and written back.
struct ColourRule {
  int64_t channels, colors;  // of A, the input
  bool interleaved;
  int64_t sign, bias;  // threshold of colour g: sign * g - bias
};

template <class S, int rows, int vectors>
void multiply_tile_masked(const S* const* a, const ColourRule& rule, const Acc<S>* keys, const Acc<S>* b, Acc<S>* c,
                          int64_t c_pitch) {
  using T = Acc<S>;
  constexpr int lanes = kLanes<S>;
  Vec<S> sum[rows][vectors];
  IntVec<S> key[vectors];
#pragma GCC unroll 4
  for (int j = 0; j < vectors; ++j) {
    key[j] = __builtin_convertvector(load(keys + j * lanes), IntVec<S>);
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) sum[i][j] = load(c + i * c_pitch + j * lanes);
  }
  int64_t group = rule.channels / rule.colors;
  for (int64_t g = 0; g < rule.colors; ++g) {
    int64_t threshold = rule.sign * g - rule.bias;
    for (int64_t i = 0; i < group; ++i) {
      int64_t k = rule.interleaved ? i * rule.colors + g : g * group + i;
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) {
        Vec<S> panel = load(b + (k * vectors + j) * lanes);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
          sum[r][j] = add_product_where<T>(key[j], threshold, to_scalar(a[r][k]), panel, sum[r][j]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c + i * c_pitch + j * lanes, sum[i][j]);
  }
}

// One instantiation per tile height and width, null where a tile would need more registers than there are.
template <class S, int rows, int vectors, bool fetches>
constexpr decltype(&multiply_tile<S, 1, 1, false>) tile_or_null() {
  if constexpr (rows <= tile_rows(vectors)) {
    return &multiply_tile<S, rows, vectors, fetches>;
  } else {
    return nullptr;
  }
}

template <class S, class Index>
struct TileTable;
template <class S, size_t... i>
struct TileTable<S, std::index_sequence<i...>> {
  static constexpr decltype(&multiply_tile<S, 1, 1, false>) dense[] = {
      tile_or_null<S, i / kTileVectors + 1, i % kTileVectors + 1, false>()...};
  static constexpr decltype(&multiply_tile<S, 1, 1, true>) fetching[] = {
      tile_or_null<S, i / kTileVectors + 1, i % kTileVectors + 1, true>()...};
};
template <class S>
using Tiles = TileTable<S, std::make_index_sequence<kTallestTile * kTileVectors>>;

template <class S, class Index>
struct MaskedTileTable;
template <class S, size_t... i>
struct MaskedTileTable<S, std::index_sequence<i...>> {
  static constexpr decltype(&multiply_tile_masked<S, 1, 1>) tile[] = {
      &multiply_tile_masked<S, i / kTileVectors + 1, i % kTileVectors + 1>...};
};
template <class S>
using MaskedTiles = MaskedTileTable<S, std::make_index_sequence<kTileRows * kTileVectors>>;

// Calls f(first row, number of rows) for tiles of nearly equal height, `tallest` at most.
template <class F>
VIDGEN_INLINE void for_each_tile(int64_t rows, int tallest, F f) {
  int64_t tiles = (rows + tallest - 1) / tallest;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    int64_t count = (rows - first + tiles - t - 1) / (tiles - t);
    f(first, count);
    first += count;
  }
}

template <class S>
void multiply(const RowMap<S>& map, int64_t rows, const Run* run, int64_t runs, const S* b, int vectors, Acc<S>* c,
              int64_t c_pitch, int64_t chunk_depth, Prefetch& ahead) {
  constexpr int kMaxRuns = 16;
  Run chunk[kMaxRuns];
  int64_t used = 0;  // elements of run[0] that earlier chunks have taken
  bool accumulate = false;
  const auto* tiles = map.far ? Tiles<S>::fetching : Tiles<S>::dense;
  do {
    int64_t count = 0, depth = 0;
    while (runs > 0 && count < kMaxRuns && depth < chunk_depth) {
      int64_t length = run->length - used;
      if (length > chunk_depth - depth) length = chunk_depth - depth;
      chunk[count++] = {run->offset + used, length};
      depth += (length + kDepthStep<S> - 1) / kDepthStep<S> * kDepthStep<S>;
      used += length;
      if (used == run->length) {
        ++run, --runs;
        used = 0;
      }
    }
    const int64_t behind = map.column_pitch + (count > 0 ? chunk[count - 1].offset : 0);
    RowCursor<S> cursor(map);
    for_each_tile(rows, tile_rows(vectors), [&](int64_t first, int64_t height) {
      const S* a[kTallestTile];
      for (int64_t i = 0; i < height; ++i) a[i] = cursor.next();
      ahead.step();
      tiles[(height - 1) * kTileVectors + vectors - 1](a, chunk, count, b, c + first * c_pitch, c_pitch, accumulate,
                                                       reinterpret_cast<const char*>(a[height - 1] + behind));
    });
    b += depth * vectors * kLanes<S>;
    accumulate = true;
  } while (runs > 0);
}

// One run of A, B streaming from memory: while the rows of A visit a chunk of B, the chunk behind it is fetched to L2,
// a line per row of B. Four visits of a full panel fetch all of it.
template <class S>
void multiply_streaming(const S* a, int64_t pitch, int64_t rows, int64_t depth, const S* b, int vectors, Acc<S>* c,
                        int64_t c_pitch, int64_t chunk_depth) {
  int64_t width = vectors * kLanes<S>;
  for (int64_t k = 0; k < depth; k += chunk_depth) {
    Run run{k, chunk_depth < depth - k ? chunk_depth : depth - k};
    const char* next = reinterpret_cast<const char*>(b + run.length * width);
    for_each_tile(rows, tile_rows(vectors), [&](int64_t first, int64_t height) {
      const S* row[kTallestTile];
      for (int64_t i = 0; i < height; ++i) row[i] = a + (first + i) * pitch;
      Tiles<S>::fetching[(height - 1) * kTileVectors + vectors - 1](row, &run, 1, b, c + first * c_pitch, c_pitch,
                                                                    k > 0, next);
      next += run.length / kDepthStep<S> * 64;
    });
    b += run.length * width;
  }
}

template <class S>
void multiply_masked(const RowMap<S>& map, int64_t rows, const ColourRule& rule, const Acc<S>* keys, const Acc<S>* b,
                     int vectors, Acc<S>* c, int64_t c_pitch) {
  RowCursor<S> cursor(map);
  for_each_tile(rows, kTileRows, [&](int64_t first, int64_t height) {
    const S* a[kTileRows];
    for (int64_t i = 0; i < height; ++i) a[i] = cursor.next();
    MaskedTiles<S>::tile[(height - 1) * kTileVectors + vectors - 1](a, rule, keys, b, c + first * c_pitch, c_pitch);
  });
}

}  // namespace vidgen::VIDGEN_ISA

// Linear instructions: sums over what an instruction reads at some places, for all images.
//
// A row is what the reads find at one place of one image: one pointer per read, wherever it lies, so nothing is copied.
// Each panel of channels (one vector to kTileVectors) takes some rows (whose numbers fill a quarter of L2 or so), 256
// of depth at a time (AVX2: 16 kB of weights, which the tiles after the first find in L1; AVX-512: 64 kB, in L2). While
// a tile multiplies, the numbers of the next tile's rows are fetched, and a line of the next 256 weights for each of
// its own: both come from far (PixelCNN++, 16 images, AVX-512: without it 12% more time). A number of the result is
// bias + initial, plus the sums over depth 0 ... 255, 256 ... 511 and so on, each a chain of its own: the same
// additions in the same order for a lone pixel, a line, a diagonal, and whatever the batch and the team are.
//
// A tile has 12 sums in registers (AVX-512: 24): 6 rows of one panel; 2 rows of three panels; a lone row of six. With
// fewer than 8 sums the processor would wait for its own additions (two a cycle, each done after four).
#pragma once

#include "cpu/sample_causal_places.h"

namespace vidgen::VIDGEN_ISA {

constexpr int64_t kDepthOfChain = 256;
// processors with AVX-512 have 1 to 2 MB of L2
constexpr int64_t kBlockBytes = (kVectorBytes == 64 ? 512 : 128) * 1024;
constexpr int kMostPanels = 6;  // of a tile

template <class T>
VIDGEN_INLINE int64_t rows_of_block(int64_t depth) {
  const int64_t rows = kBlockBytes / int64_t(sizeof(T)) / (depth > 0 ? depth : 1);
  return rows < kTallestTile ? kTallestTile : rows > 512 ? 512 : rows / kTileRows * kTileRows;
}

// Numbers of one instruction in memory: panels of [depth][width] weights, then the bias, in whole vectors.
template <class T, class W>
struct PackedLinear {
  int64_t depth, lanes;
  VIDGEN_INLINE explicit PackedLinear(const SamplingInstruction& i)
      : depth(i.depth), lanes(Panels<T>(i.channels).vectors * kLanes<T>) {}
  VIDGEN_INLINE int64_t weight_bytes() const { return (depth * lanes * int64_t(sizeof(W)) + 63) / 64 * 64; }
  VIDGEN_INLINE int64_t bytes() const { return weight_bytes() + (lanes * int64_t(sizeof(T)) + 63) / 64 * 64; }
};

template <class T, class W>
void pack_linear(const SamplingInstruction& i, const T* numbers, char* packed) {
  const PackedLinear<T, W> layout(i);
  const Panels<T> panels(i.channels);
  W* weight = reinterpret_cast<W*>(packed);
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel) * kLanes<T>, end = panels.begin(panel + 1) * kLanes<T>;
    for (int64_t k = 0; k < i.depth; ++k)
      for (int64_t c = begin; c < end; ++c)
        *weight++ = from_scalar<W>(c < i.channels ? Acc<W>(numbers[k * i.channels + c]) : Acc<W>(0));
  }
  T* bias = reinterpret_cast<T*>(packed + layout.weight_bytes());
  for (int64_t c = 0; c < layout.lanes; ++c)
    bias[c] = i.has_bias && c < i.channels ? numbers[i.depth * i.channels + c] : T(0);
}

// A piece of a chain: `length` channels of what a read finds.
struct Piece {
  int32_t read, offset, length;
};

// What a tile multiplies and adds.
template <class T, class W>
struct TileOperands {
  const T* const* a;  // [read][row]
  int64_t a_pitch;    // rows
  int64_t ahead;      // the next tile's rows follow so far on: their numbers are fetched meanwhile
  const Piece* piece;
  int64_t pieces;
  const W* b;
  const char* b_ahead;      // weights of later tiles: a line of them is fetched per line of b
  int64_t panel_pitch;      // of b
  T* const* c;              // [row]
  const T* bias;            // what sums begin with; null: with c
  const T* const* initial;  // [row], or null; added to the bias
  int64_t first, channels;  // of c and initial; `bias` stands at the first already
};

// The end of a tile whose last channels do not exist.
template <class T, class W, int rows, int wide>
__attribute__((noinline)) void end_narrow_tile(const TileOperands<T, W>& o, const Vec<T> (&sum)[rows][wide]) {
  for (int i = 0; i < rows; ++i) {
    for (int64_t j = 0, c = 0; c < o.channels; ++j, c += kLanes<T>) {
      const int64_t count = o.channels - c < kLanes<T> ? o.channels - c : kLanes<T>;
      T* out = o.c[i] + o.first + c;
      Vec<T> start = load(o.bias == nullptr ? out : o.bias + c, count);
      if (o.bias != nullptr && o.initial != nullptr) start = start + load(o.initial[i] + o.first + c, count);
      store(out, start + sum[i][j], count);
    }
  }
}

template <class T, class W, int rows, int panels, int vectors>
void linear_tile(const TileOperands<T, W>& o) {
  constexpr int lanes = kLanes<T>, wide = panels * vectors;
  constexpr int64_t kLine = 64 / sizeof(T);
  Vec<T> sum[rows][wide];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < wide; ++j) sum[i][j] = Vec<T>{};
  }
  const W* b = o.b;
  const char* b_ahead = o.b_ahead;
  for (int64_t p = 0; p < o.pieces; ++p) {
    const Piece piece = o.piece[p];
    const T* row[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) row[i] = o.a[piece.read * o.a_pitch + i] + piece.offset;
    for (int64_t k = 0; k < piece.length;) {
      const int64_t end = k + kLine < piece.length ? k + kLine : piece.length;
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) __builtin_prefetch(o.a[piece.read * o.a_pitch + i + o.ahead] + piece.offset + k);
      for (; k < end; ++k) {
        Vec<T> panel[wide];
#pragma GCC unroll 24
        for (int j = 0; j < wide; ++j) panel[j] = load(b + j / vectors * o.panel_pitch + j % vectors * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 24
          for (int j = 0; j < wide; ++j) sum[i][j] = multiply_add<T>(row[i][k], panel[j], sum[i][j]);
        }
        b += vectors * lanes;
        __builtin_prefetch(b_ahead, 0, 2);
        b_ahead += 64;
      }
    }
  }
  // written out for each case, and no address of a sum given away, so that sums stay in registers
  if (o.channels < wide * lanes) {
    Vec<T> copy[rows][wide];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 24
      for (int j = 0; j < wide; ++j) copy[i][j] = sum[i][j];
    }
    return end_narrow_tile<T, W, rows, wide>(o, copy);
  }
  auto end = [&](auto start) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      T* out = o.c[i] + o.first;
#pragma GCC unroll 24
      for (int j = 0; j < wide; ++j) store(out + j * lanes, start(i, j, out) + sum[i][j]);
    }
  };
  if (o.bias == nullptr) return end([](int, int j, const T* out) { return load(out + j * lanes); });
  const T* bias = o.bias;
  if (o.initial == nullptr) return end([=](int, int j, const T*) { return load(bias + j * lanes); });
  end([&](int i, int j, const T*) { return load(bias + j * lanes) + load(o.initial[i] + o.first + j * lanes); });
}

// Rows of a tile of so many panels of so many vectors.
constexpr int rows_of_tile(int panels, int vectors) {
  return panels == 1 ? tile_rows(vectors) : panels == 2 ? 3 : panels == 3 ? 2 : 1;
}

// Tiles of panels of so many vectors: [rows - 1][panels - 1], null where one would need more registers than there are.
template <class T, class W, int vectors, class Index>
struct LinearTileTable;
template <class T, class W, int vectors, size_t... i>
struct LinearTileTable<T, W, vectors, std::index_sequence<i...>> {
  using Tile = void (*)(const TileOperands<T, W>&);
  template <int rows, int panels>
  static constexpr Tile tile_or_null() {
    if constexpr (rows <= rows_of_tile(panels, vectors)) {
      return &linear_tile<T, W, rows, panels, vectors>;
    } else {
      return nullptr;
    }
  }
  static constexpr Tile tile[] = {tile_or_null<int(i) / kMostPanels + 1, int(i) % kMostPanels + 1>()...};
};
template <class T, class W, int widest = kTileVectors>
VIDGEN_INLINE auto find_linear_tile(int64_t rows, int64_t panels, int64_t vectors) {
  if constexpr (widest > 1) {
    if (vectors < widest) return find_linear_tile<T, W, widest - 1>(rows, panels, vectors);
  }
  using Table = LinearTileTable<T, W, widest, std::make_index_sequence<kTallestTile * kMostPanels>>;
  return Table::tile[(rows - 1) * kMostPanels + panels - 1];
}

// How many panels a tile of few rows takes at once.
VIDGEN_INLINE int64_t panels_for(int64_t rows) { return rows == 1 ? kMostPanels : rows == 2 ? 3 : rows == 3 ? 2 : 1; }

}  // namespace vidgen::VIDGEN_ISA

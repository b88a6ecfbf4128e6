// The iteration of TV-L1, blocked in time over tiles of rows.
//
// One iteration, for every pixel, with the residual r = rho + gx u + gy v of the linearised data term:
//
//     U:  (u, v) += clamp(-r / |g|^2, -lambda theta, lambda theta) g + theta div p
//     P:  p = (p + c grad u) / (1 + c |grad u|),  c = tau / theta,  for the component u and its p; the same for v
//
// grad is the forward difference and zero beyond the image, div the backward one. A pixel of float costs 40 bytes read
// and 24 written, and some 50 operations, two square roots and a division among them: about 3 cycles of an AVX2 core.
// Straight sweeps would ask memory for 64 bytes in those 3 cycles, more than it gives, so several iterations are done
// while rows are in a cache.
//
// Row y of U needs rows y and y - 1 of p, and row y of P rows y and y + 1 of the new u. So all is done in place: row y
// of U, then row y - 1 of P. Iteration k + 1 may follow iteration k one row behind, and a block of `depth` iterations
// goes down a tile as a wave front of depth + 2 rows: 12 rows of 640 pixels are 310 kB.
//
// For threads the image is cut into bands, and a block is done in two steps, each of which is free of dependences
// between its tiles (split tiling: every number is computed once and no row is stored twice).
//
//     rows   a                b                c      step 1, bands: iteration k (from 1) covers rows a + k - 1 ...
//             \     band     / \     band     /       b - k of U and a + k - 1 ... b - k - 1 of P; nothing is lost at
//  iterations  \            /   \            /        the image's own edges
//  downwards    \__________/     \__________/         step 2, seams: around b, iteration k covers rows b - k + 1 ...
//                            seam                     b + k - 2 of U and b - k ... b + k - 2 of P
//
// A thread has one band, at least 2 depth rows high; of 480 rows, a seam is 2 per cent of the work. Every number comes
// from the same operations in whatever bands, so that the bits do not depend on them; the sum that the stopping rule
// asks for is kept per row and added up in the order of rows.
#pragma once

#include "cpu/optical_flow_tvl1_state.h"

namespace vidgen::VIDGEN_ISA {

template <class T>
struct Step {
  T theta, limit, ratio;  // limit = lambda theta, ratio = tau / theta
};

// U of row y if `flow`, and P of row y - 1 if `dual`. Returns the sum of the squared changes of U if `measure`, else 0.
template <bool flow, bool dual, bool measure, class T>
double update_rows(const State<T>& state, const Step<T>& step, int64_t y) {
  const int64_t pitch = state.pitch, width = state.width;
  T* const above = state.row(y - 1);
  // below the last row is that row again
  T* const row = flow || y < state.height ? state.row(y) : above;
  const Vec<T> theta = splat<T>(step.theta), most = splat<T>(step.limit), least = -most;
  const Vec<T> ratio = splat<T>(step.ratio), one = splat<T>(1);
  Vec<T> squares{};
  for (int64_t x = 0; x < width; x += kLanes<T>) {
    T* const at = row + x;
    T* const over = above + x;
    Vec<T> u = load(at + kU * pitch), v = load(at + kV * pitch);
    const Vec<T> puy = load(over + kPuy * pitch), pvy = load(over + kPvy * pitch);
    if constexpr (flow) {
      const Vec<T> gx = load(at + kGx * pitch), gy = load(at + kGy * pitch);
      const Vec<T> residual = fused<T>(gx, u, fused<T>(gy, v, load(at + kRho * pitch)));
      const Vec<T> along = greater<T>(lesser<T>(-residual * load(at + kInverse * pitch), most), least);
      const Vec<T> div_u = (load(at + kPux * pitch) - load(at + kPux * pitch - 1)) + (load(at + kPuy * pitch) - puy);
      const Vec<T> div_v = (load(at + kPvx * pitch) - load(at + kPvx * pitch - 1)) + (load(at + kPvy * pitch) - pvy);
      const Vec<T> new_u = fused<T>(theta, div_u, fused<T>(along, gx, u));
      const Vec<T> new_v = fused<T>(theta, div_v, fused<T>(along, gy, v));
      if constexpr (measure) {
        const Vec<T> du = new_u - u, dv = new_v - v;
        Vec<T> square = fused<T>(du, du, dv * dv);
        // lanes beyond the row are no pixels
        for (int64_t lane = width - x; lane < kLanes<T>; ++lane) square[lane] = 0;
        squares += square;
      }
      u = new_u;
      v = new_v;
      store(at + kU * pitch, u);
      store(at + kV * pitch, v);
    }
    if constexpr (dual) {
      const Vec<T> here_u = load(over + kU * pitch), here_v = load(over + kV * pitch);
      const Vec<T> ux = load(over + kU * pitch + 1) - here_u, uy = u - here_u;
      const Vec<T> vx = load(over + kV * pitch + 1) - here_v, vy = v - here_v;
      // one division for both components: 1 / a = b / (a b)
      const Vec<T> a = fused<T>(ratio, square_root<T>(fused<T>(ux, ux, uy * uy)), one);
      const Vec<T> b = fused<T>(ratio, square_root<T>(fused<T>(vx, vx, vy * vy)), one);
      const Vec<T> both = one / (a * b), shrink_u = b * both, shrink_v = a * both;
      store(over + kPux * pitch, fused<T>(ratio, ux, load(over + kPux * pitch)) * shrink_u);
      store(over + kPuy * pitch, fused<T>(ratio, uy, puy) * shrink_u);
      store(over + kPvx * pitch, fused<T>(ratio, vx, load(over + kPvx * pitch)) * shrink_v);
      store(over + kPvy * pitch, fused<T>(ratio, vy, pvy) * shrink_v);
    }
  }
  if constexpr (flow) {
    // the difference across the edge is zero
    row[kU * pitch + width] = row[kU * pitch + width - 1];
    row[kV * pitch + width] = row[kV * pitch + width - 1];
  }
  double sum = 0;
  if constexpr (measure)
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += double(squares[lane]);
  return sum;
}

// Rows [begin, end) that iteration k of a tile covers.
struct Rows {
  int64_t begin, end;
};

// `depth` iterations of a tile whose rows `flow_rows(k)` and `dual_rows(k)` give for k = 1 ... depth. row_sums, if not
// null, gets the squared changes of the last iteration.
template <class T, class FlowRows, class DualRows>
void sweep(const State<T>& state, const Step<T>& step, int64_t depth, const FlowRows& flow_rows,
           const DualRows& dual_rows, double* row_sums) {
  int64_t first = state.height, last = -1;
  for (int64_t k = 1; k <= depth; ++k) {
    // row y of P is done with row y + 1 of U
    first = std::min(first, std::min(flow_rows(k).begin, dual_rows(k).begin + 1) + k - 1);
    last = std::max(last, std::max(flow_rows(k).end - 1, dual_rows(k).end) + k - 1);
  }
  for (int64_t front = first; front <= last; ++front) {
    for (int64_t k = 1; k <= depth; ++k) {
      const int64_t y = front - (k - 1);
      const Rows flow = flow_rows(k), dual = dual_rows(k);
      const bool has_flow = y >= flow.begin && y < flow.end, has_dual = y - 1 >= dual.begin && y - 1 < dual.end;
      if (has_flow && k == depth && row_sums != nullptr) {
        row_sums[y] =
            has_dual ? update_rows<true, true, true>(state, step, y) : update_rows<true, false, true>(state, step, y);
      } else if (has_flow) {
        has_dual ? update_rows<true, true, false>(state, step, y) : update_rows<true, false, false>(state, step, y);
      } else if (has_dual) {
        update_rows<false, true, false>(state, step, y);
      }
    }
  }
}

// Iterations of a block. A front that outgrows a core's own cache still meets memory a tenth as often: at 1920 pixels
// its 12 rows are 0.9 MB, and ten were measured faster than the three or four that fit in 512 kB.
constexpr int64_t kDepth = 10;

// `iterations` iterations. Returns the sum over pixels of the squared change in the last one where `measure`, else 0.
template <class T>
double iterate(const State<T>& state, const Step<T>& step, int64_t iterations, bool measure, double* row_sums,
               const Loop& loop) {
  const int64_t height = state.height;
  for (int64_t done = 0; done < iterations;) {
    const int64_t depth = std::min(kDepth, iterations - done);
    done += depth;
    double* const sums = measure && done == iterations ? row_sums : nullptr;
    const int64_t bands = std::clamp<int64_t>(height / (2 * depth), 1, loop.threads);
    const auto seam = [&](int64_t i) { return height * i / bands; };
    each(loop, bands, [&](int64_t band) {
      const int64_t a = seam(band), b = seam(band + 1);
      const bool first = band == 0, last = band == bands - 1;
      sweep(
          state, step, depth, [=](int64_t k) { return Rows{first ? 0 : a + k - 1, last ? b : b - k + 1}; },
          [=](int64_t k) { return Rows{first ? 0 : a + k - 1, last ? b : b - k}; }, sums);
    });
    each(loop, bands - 1, [&](int64_t i) {
      const int64_t c = seam(i + 1);
      sweep(
          state, step, depth, [=](int64_t k) { return Rows{c - k + 1, c + k - 1}; },
          [=](int64_t k) { return Rows{c - k, c + k - 1}; }, sums);
    });
  }
  double sum = 0;
  if (measure)
    for (int64_t y = 0; y < height; ++y) sum += row_sums[y];
  return sum;
}

}  // namespace vidgen::VIDGEN_ISA

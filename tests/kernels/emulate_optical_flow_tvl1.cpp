// Runs csrc/cuda/optical_flow_tvl1.cu on the CPU (see emulation.h).
//
//   emulation N CHANNELS H W PIXELS INIT LEVELS WARPS OUTER INNER MEDIAN TAU LAMBDA THETA SCALE EPSILON < tensors > flow
//
// reads prev and next (N, CHANNELS, H, W) of PIXELS (0: uint8, 1: float, 2: double) and, if INIT, init (N, 2, H, W) of
// float or, for double images, double; writes the flow in the same.
#include <cuda_runtime.h>
#define KERNEL_SOURCE "cuda/optical_flow_tvl1.cu"
#define KERNEL_LAUNCH Launch<float>  // laid out like Launch<double>
#include "emulation.h"

static vidgen::cuda::PixelView view_of(const std::vector<char>& values, int64_t channels, int64_t height,
                                       int64_t width) {
  return {values.data(), channels * height * width, height * width, width, 1};
}

int main(int argc, char** argv) {
  if (argc != 17) return 2;
  int a[11];
  for (int i = 0; i < 11; ++i) a[i] = std::atoi(argv[i + 1]);
  const auto [n, channels, h, w, pixels, init, levels, warps, outer, inner, median] = a;
  const size_t item = pixels == 0 ? 1 : pixels == 1 ? 4 : 8, flow_item = pixels == 2 ? 8 : 4;
  const size_t images = item * n * channels * h * w, flows = flow_item * n * 2 * h * w;
  const std::vector<char> prev = read_values(images), next = read_values(images), start = read_values(init ? flows : 0);
  std::vector<char> flow(flows, '\xff');

  vidgen::cuda::OpticalFlowTvl1 p{};
  p.prev = view_of(prev, channels, h, w);
  p.next = view_of(next, channels, h, w);
  if (init) p.init = view_of(start, 2, h, w);
  p.flow = flow.data();
  p.pairs = n;
  p.height = h;
  p.width = w;
  p.channels = channels;
  p.pixels = static_cast<vidgen::cuda::Pixels>(pixels);
  p.levels = levels;
  p.warps = warps;
  p.outer_iterations = outer;
  p.inner_iterations = inner;
  p.median = median;
  p.tau = std::atof(argv[12]);
  p.lambda = std::atof(argv[13]);
  p.theta = std::atof(argv[14]);
  p.scale_factor = std::atof(argv[15]);
  p.epsilon = std::atof(argv[16]);
  const size_t bytes = vidgen::cuda::optical_flow_tvl1_workspace_bytes(p);
  const auto free_memory = [](char* memory) { std::free(memory); };
  const std::unique_ptr<char, decltype(free_memory)> workspace(
      static_cast<char*>(std::aligned_alloc(256, std::max<size_t>(bytes, 256))), free_memory);
  std::memset(workspace.get(), 0xff, bytes);  // NaN: uninitialised
  if (vidgen::cuda::optical_flow_tvl1(p, workspace.get(), nullptr) != cudaSuccess) return 3;
  return std::fwrite(flow.data(), 1, flow.size(), stdout) == flow.size() ? 0 : 4;
}

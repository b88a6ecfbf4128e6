// Runs csrc/cuda/optical_flow_dis.cu on the CPU (see emulation_warps.h).
//
//   emulation N C H W PIXELS INIT CHANNELS_LAST FINEST PATCH STRIDE DESCENTS REFINEMENTS ALPHA DELTA GAMMA TOGETHER
//             < tensors > flow
//
// reads prev and next (N, C, H, W; in memory N, H, W, C if CHANNELS_LAST) as raw values of PIXELS (0: uint8, 1:
// float32, 2: float64), and, if INIT, init (N, 2, H, W), and writes the flow. ALPHA, DELTA and GAMMA are in
// thousandths. TOGETHER is how many pairs share the workspace.
#define KERNEL_SOURCE "cuda/optical_flow_dis.cu"
#include "emulation_warps.h"

static vidgen::cuda::PixelView view(const std::vector<char>& values, int64_t channels, int64_t height, int64_t width,
                                    bool channels_last) {
  const int64_t pair = channels * height * width;
  if (channels_last) return {values.data(), pair, 1, width * channels, channels};
  return {values.data(), pair, height * width, width, 1};
}

int main(int argc, char** argv) {
  using emulation::read_values;
  if (argc != 17) return 2;
  int a[16];
  for (int i = 0; i < 16; ++i) a[i] = std::atoi(argv[i + 1]);
  const auto [n, c, h, w, pixels, has_init, channels_last, finest, patch, stride, descents, refinements, alpha, delta,
              gamma, together] = a;
  const size_t item = pixels == 0 ? 1 : pixels == 1 ? 4 : 8, exact = pixels == 2 ? 8 : 4;
  const std::vector<char> prev = read_values(item * n * c * h * w), next = read_values(item * n * c * h * w);
  const std::vector<char> init = read_values(has_init ? exact * n * 2 * h * w : 0);
  std::vector<char> flow(exact * n * 2 * h * w, '\xff');

  vidgen::cuda::OpticalFlowDis p{};
  p.prev = view(prev, c, h, w, channels_last);
  p.next = view(next, c, h, w, channels_last);
  if (has_init) p.init = view(init, 2, h, w, false);
  p.flow = flow.data();
  p.pairs = n;
  p.height = h;
  p.width = w;
  p.channels = c;
  p.pixels = static_cast<vidgen::cuda::Pixels>(pixels);
  p.finest_scale = finest;
  p.patch_size = patch;
  p.patch_stride = stride;
  p.descent_iterations = descents;
  p.refinement_iterations = refinements;
  p.alpha = alpha / 1000.0;
  p.delta = delta / 1000.0;
  p.gamma = gamma / 1000.0;
  std::vector<char> workspace(together * vidgen::cuda::optical_flow_dis_workspace(p), '\xff');  // NaN: uninitialised
  if (vidgen::cuda::optical_flow_dis(p, together, workspace.data(), nullptr) != cudaSuccess) return 3;
  return std::fwrite(flow.data(), 1, flow.size(), stdout) == flow.size() ? 0 : 4;
}

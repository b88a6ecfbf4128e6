// Runs csrc/cuda/sample_causal.cu on the CPU (see emulation_warps.h).
//
//   emulation N BLOCKS DOUBLES LEVELS MIXTURES TEMPERATURE QUANTIZE CALLS WORDS NUMBERS STATE RECORDS < ... > ...
//
// reads the program's NUMBERS numbers (float or, if DOUBLES, double), CALLS times (first, last, whole_rows, top), its
// WORDS words (int64 both), STATE numbers of the state, the canvas, the noise (double), and what is known (a byte each);
// writes the canvas and, if RECORDS, the parameters of every draw.
#include <cstring>

#include "bind/sample_causal_program.h"

#define VIDGEN_LOOK_AGAIN() __nanosleep(20)
#define KERNEL_SOURCE "cuda/sample_causal.cu"
#include "emulation_warps.h"

#include "cuda/sample_causal_pack.h"
#include "cuda/sample_causal_writer.h"

static int blocks;

extern "C" cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? blocks : 1;
  return cudaSuccess;
}

extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t,
                                                                              unsigned) {
  *count = 1;
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

// Values that the kernel finds at a multiple of 16 bytes.
static std::vector<double> read_aligned(size_t bytes) {
  std::vector<double> values((bytes + 7) / 8);
  if (std::fread(values.data(), 1, bytes, stdin) != bytes) std::exit(2);
  return values;
}

int main(int argc, char** argv) {
  using namespace vidgen;
  if (argc != 13) return 2;
  int64_t a[12];
  for (int i = 0; i < 12; ++i) a[i] = std::atoll(argv[i + 1]);
  const auto [n, block_count, doubles, levels, mixtures, temperature_, quantize, calls, words, numbers, state, records] =
      a;
  blocks = int(block_count);
  const size_t item = doubles ? 8 : 4;
  const std::vector<double> weights = read_aligned(numbers * item);
  const std::vector<double> moments = read_aligned(calls * 32), program_words = read_aligned(words * 8);
  std::vector<double> state_values = read_aligned(state * item);
  DecodedProgram decoded(reinterpret_cast<const int64_t*>(program_words.data()), words);
  const SamplingProgram& p = decoded.program();
  const size_t values = size_t(n) * p.channels * p.height * p.width;
  std::vector<double> canvas = read_aligned(values * item);
  const std::vector<double> noise = read_aligned(values * 16), known = read_aligned(values);
  const size_t met = records ? size_t(n) * p.parameters * p.steps * p.height * p.width : 0;
  std::vector<double> recorded((met * item + 7) / 8);
  const int64_t packed_count = cuda::place_weights(decoded.instructions());
  std::vector<double> packed((packed_count * item + 7) / 8 + 1);
  if (doubles) {
    cuda::pack_weights<double>(decoded.instructions(), weights.data(), packed.data());
  } else {
    cuda::pack_weights<float>(decoded.instructions(), reinterpret_cast<const float*>(weights.data()),
                              reinterpret_cast<float*>(packed.data()));
  }
  unsigned meetings = 0;
  for (int64_t call = 0; call < calls; ++call) {
    const int64_t* const m = reinterpret_cast<const int64_t*>(moments.data()) + 4 * call;
    cuda::ScriptWriter writer(p);
    writer.write(m[0], m[1], m[2] != 0, m[3]);
    const std::vector<char> bytes = writer.bytes();
    std::vector<double> script((bytes.size() + 7) / 8);
    std::memcpy(script.data(), bytes.data(), bytes.size());
    const cuda::SampleCausal problem{reinterpret_cast<const char*>(script.data()),
                                     packed.data(),
                                     state_values.data(),
                                     canvas.data(),
                                     reinterpret_cast<const bool*>(known.data()),
                                     noise.data(),
                                     records ? recorded.data() : nullptr,
                                     n,
                                     p.channels,
                                     p.height,
                                     p.width,
                                     p.steps,
                                     p.parameters,
                                     {mixtures > 0, mixtures, levels, std::atof(argv[6]), quantize != 0},
                                     doubles != 0};
    if (cuda::sample_causal(problem, &meetings, nullptr) != cudaSuccess) return 3;
  }
  if (std::fwrite(canvas.data(), item, values, stdout) != values) return 4;
  return std::fwrite(recorded.data(), item, met, stdout) == met ? 0 : 4;
}

// vidgen._host: what the machine is and what it can reach. Not an op: nothing here touches a tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "build_info.h"
#include "cpu/isa.h"
#include "cpu/probe.h"
#include "cpu/tables.h"

namespace py = pybind11;

namespace vidgen {
namespace {

using Clock = std::chrono::steady_clock;

// Runs `work` on every thread over and over until `seconds` have passed and returns the units done per second.
// The best of the windows counts: a roof is what the machine can do, not what it does while disturbed.
double best_rate(int threads, double seconds, const std::function<double(int)>& work) {
  constexpr int kWindows = 5;
  double best = 0.0;
  for (int window = 0; window < kWindows; ++window) {
    std::vector<double> done(threads, 0.0);
    std::vector<std::thread> pool;
    const auto start = Clock::now();
    const auto stop = start + std::chrono::duration<double>(seconds / kWindows);
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        while (Clock::now() < stop) done[t] += work(t);
      });
    for (auto& thread : pool) thread.join();
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    double total = 0.0;
    for (double d : done) total += d;
    best = std::max(best, total / elapsed);
  }
  return best;
}

void check(int threads, double seconds) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
  if (!(seconds > 0)) throw std::invalid_argument("seconds must be positive, got " + std::to_string(seconds));
}

double peak_gflops(const std::string& dtype, int threads, double seconds) {
  check(threads, seconds);
  if (dtype != "fp32" && dtype != "bf16")
    throw std::invalid_argument("dtype must be 'fp32' or 'bf16', got '" + dtype + "'");
  const ProbeTable& table = VIDGEN_BF16_TABLE(probe);
  auto* flops = dtype == "fp32" ? table.flops_fp32 : table.flops_bf16;
  if (flops == nullptr) return 0.0;
  std::vector<float> sinks(static_cast<size_t>(threads) * 64, 0.0f);
  py::gil_scoped_release release;
  return best_rate(threads, seconds, [&](int t) { return flops(20000, &sinks[static_cast<size_t>(t) * 64]); }) / 1e9;
}

double bandwidth_gb_per_s(int threads, double seconds) {
  check(threads, seconds);
  constexpr size_t kBytes = size_t{64} << 20;  // a thread's source and target each: well beyond a cache
  std::vector<std::vector<char>> from(threads), to(threads);
  py::gil_scoped_release release;
  for (int t = 0; t < threads; ++t) {
    from[t].assign(kBytes, 1);
    to[t].assign(kBytes, 2);
  }
  return best_rate(threads, seconds,
                   [&](int t) {
                     std::memcpy(to[t].data(), from[t].data(), kBytes);
                     return 2.0 * kBytes;  // read and written
                   }) /
         1e9;
}

}  // namespace
}  // namespace vidgen

PYBIND11_MODULE(_host, m) {
  m.doc() = "Instruction set in use, build flags, and probes of peak arithmetic and memory bandwidth.";
  m.def("isa", [] { return vidgen::isa_name(vidgen::isa_in_use()); }, "Name of the instruction set in use.");
  m.def(
      "isa_compiled",
      [] {
        std::vector<std::string> names;
        for (vidgen::Isa isa : vidgen::isa_compiled()) names.emplace_back(vidgen::isa_name(isa));
        return names;
      },
      "Instruction sets that this build contains, lowest first.");
  m.def("isa_unknown_request", &vidgen::isa_unknown_request, "Value of VIDGEN_CPU_ISA if it names no level, else ''.");
  m.def(
      "build_flags", [] { return std::map<std::string, std::string>(VIDGEN_BUILD_INFO); },
      "Compiler, flags and versions of this build.");
  m.def("peak_gflops", &vidgen::peak_gflops, py::arg("dtype"), py::arg("threads"), py::arg("seconds") = 0.5,
        "Measured GFLOP/s of fused multiply-adds on registers; 0 where the processor has none of that dtype.");
  m.def("bandwidth_gb_per_s", &vidgen::bandwidth_gb_per_s, py::arg("threads"), py::arg("seconds") = 0.5,
        "Measured GB/s of a copy, bytes read and written both counted.");
}

// What every binding needs of tensors: checks in plain sentences, layouts, scratch memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <string>

#include "bind/check.h"

namespace vidgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string sizes_of(const Tensor& t) {
  std::ostringstream text;
  text << '(';
  for (int64_t d = 0; d < t.dim(); ++d) text << (d > 0 ? ", " : "") << t.size(d);
  text << ')';
  return text.str();
}

// A tensor of images (4-d) or clips (5-d) is channels_last when its strides say so and do not also say contiguous,
// torch's own rule for what memory format an operator should keep.
inline bool is_channels_last(const Tensor& t) {
  const int64_t dims = t.dim();
  if ((dims != 4 && dims != 5) || t.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t d = i == 0 ? 1 : i == dims - 1 ? 0 : dims - i;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Tensor empty_image(int64_t n, int64_t c, int64_t h, int64_t w, const Tensor& like, bool channels_last) {
  const int64_t size[] = {n, c, h, w};
  return torch::stable::empty(
      {size, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

inline Tensor empty_clip(int64_t n, int64_t c, const int64_t (&size)[3], const Tensor& like, bool channels_last) {
  const int64_t sizes[] = {n, c, size[0], size[1], size[2]};
  return torch::stable::empty(
      {sizes, 5}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast3d : torch::headeronly::MemoryFormat::Contiguous);
}

inline Tensor empty_bytes(size_t bytes) {
  const int64_t size[] = {static_cast<int64_t>(bytes)};
  return torch::stable::empty({size, 1}, ScalarType::Byte);
}

// This thread's scratch memory, 64-byte aligned; it grows and stays, so that a warm call allocates nothing.
// Null when memory ran out.
inline void* scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    memory.reset();
    memory.reset(::operator new(bytes, std::align_val_t{64}, std::nothrow));
    capacity = memory ? bytes : 0;
  }
  return memory.get();
}

// VIDGEN_POISON_SCRATCH=1 (read once) fills a task's scratch with NaNs before it starts, which is how the tests see
// a kernel that reads what it has not written.
inline bool poison_scratch() {
  static const bool poison = std::getenv("VIDGEN_POISON_SCRATCH") != nullptr;
  return poison;
}

// Runs task(i, scratch) for i in [0, tasks) on torch's threads. Nothing may throw in there, so a failed
// allocation is noted and reported afterwards.
template <typename Task>
void parallel_tasks(int64_t tasks, size_t scratch_bytes, const Task& task) {
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    void* memory = scratch(scratch_bytes);
    if (memory == nullptr && scratch_bytes > 0) {
      out_of_memory = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (poison_scratch() && scratch_bytes > 0) std::memset(memory, 0xff, scratch_bytes);
      task(i, memory);
    }
  });
  check(!out_of_memory, "out of memory: a thread needs ", scratch_bytes, " bytes of scratch");
}

}  // namespace vidgen

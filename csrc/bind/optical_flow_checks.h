// What the bindings of all methods of optical flow ask of their arguments, on any device.
#pragma once

#include "bind/tensors.h"

namespace vidgen {

inline ScalarType flow_dtype(const Tensor& prev) {
  return prev.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline void check_range(const char* name, double value, double above, double most) {
  check(value > above && value <= most, name, " must be above ", above, " and at most ", most, ", got ", value);
}

inline void check_count(const char* name, int64_t value, int64_t most, int64_t least = 1) {
  check(value >= least && value <= most, name, " must be from ", least, " to ", most, ", got ", value);
}

inline void check_images(const Tensor& prev, const Tensor& next, const std::optional<Tensor>& init) {
  check(prev.dim() == 4 && (prev.size(1) == 1 || prev.size(1) == 3) && prev.size(2) > 0 && prev.size(3) > 0,
        "prev must be 4-d (N, 1 or 3, H, W) with H and W at least 1, got shape ", sizes_of(prev));
  check(on_one_device(next, prev), "next must be on the device of prev");
  check(next.scalar_type() == prev.scalar_type(), "next must have the dtype of prev");
  check(sizes_of(next) == sizes_of(prev), "next must have the shape of prev ", sizes_of(prev), ", got ",
        sizes_of(next));
  if (!init.has_value()) return;
  check(on_one_device(*init, prev) && init->scalar_type() == flow_dtype(prev),
        "init must be on the device of prev, float32, or float64 for float64 images");
  check(init->dim() == 4 && init->size(0) == prev.size(0) && init->size(1) == 2 && init->size(2) == prev.size(2) &&
            init->size(3) == prev.size(3),
        "init must have shape (N, 2, H, W) for images ", sizes_of(prev), ", got ", sizes_of(*init));
}

}  // namespace vidgen

// Checks in plain sentences.
#pragma once

#include <sstream>
#include <stdexcept>

namespace vidgen {

template <typename... Parts>
void check(bool holds, const Parts&... sentence) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << sentence);
  throw std::runtime_error(text.str());
}

}  // namespace vidgen

#pragma once

#include <sstream>
#include <stdexcept>

namespace animdetail {

// Throws std::invalid_argument with the parts joined; the message names the op, the value and the remedy.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace animdetail

#pragma once

#include <cmath>
#include <cstdint>

#include "animdetail/host_device.h"

namespace animdetail::feather {

// One tap of the blur. The taps of a pixel are summed row by row, each row left to right, in the order and with the
// roundings of torch's conv2d on a CPU where oneDNN computes it, hence to its very bits. They matter: sampling asks
// whether a blurred mask is >= 1, and pasted pixels are truncated to 8 bits.
ANIMDETAIL_HD float add_tap(float sum, float pixel, float weight) { return std::fma(pixel, weight, sum); }

// Index mirrored about both ends without repeating them; |index| may leave [0, size) by less than size.
ANIMDETAIL_HD int64_t reflect(int64_t index, int64_t size) {
  if (index < 0) return -index;
  return index < size ? index : 2 * (size - 1) - index;
}

}  // namespace animdetail::feather

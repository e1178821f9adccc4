#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace animdetail {

// The taps of one axis, for the outputs [first, first + count): made here for every device, so that they are the same.
struct Taps {
  Taps(int in_size, int out_size, int first, int count);

  struct Span {
    int begin, end;
    ptrdiff_t offset;
  };
  std::vector<Span> spans;
  std::vector<int32_t> values;
  int longest = 0;
};

}  // namespace animdetail

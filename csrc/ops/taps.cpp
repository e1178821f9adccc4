#include "taps.h"

#include <algorithm>

#include "animdetail/math/resample.h"

namespace animdetail {

Taps::Taps(int in_size, int out_size, int first, int count) : spans(count) {
  const double scale = static_cast<double>(in_size) / out_size;
  const double filter_scale = std::max(scale, 1.0);
  const double support = resample::kSupport * filter_scale;
  std::vector<double> weights;
  for (int i = 0; i < count; ++i) {
    const double centre = (first + i + 0.5) * scale;
    const int begin = std::max(0, static_cast<int>(centre - support + 0.5));
    const int end = std::min(in_size, static_cast<int>(centre + support + 0.5));
    spans[i] = {begin, end, static_cast<ptrdiff_t>(values.size())};
    longest = std::max(longest, end - begin);

    double total = 0;
    weights.clear();
    for (int x = 0; x < end - begin; ++x) {
      weights.push_back(resample::lanczos3((x + begin - centre + 0.5) * (1.0 / filter_scale)));
      total += weights.back();
    }
    for (const double weight : weights) values.push_back(resample::fixed_point(total != 0 ? weight / total : weight));
  }
}

}  // namespace animdetail

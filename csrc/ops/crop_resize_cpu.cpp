// Rows are pulled through a chain: Quantised -> one pass -> the other -> written out as floats. A pass along x works on
// transposed blocks, so that both passes are the same weighted sum of contiguous bytes; a pass along y keeps a window
// of the rows above it. Nothing as large as a frame is ever stored.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "animdetail/math/resample.h"
#include "animdetail/ops.h"
#include "animdetail/parallel.h"
#include "row_kernels.h"
#include "taps.h"

namespace animdetail {
namespace {

using resample::Range;
using rows::kLanes;
using rows::padded;

// Rows that are pulled at a time: one lane each in a transposed block.
constexpr int kBlock = static_cast<int>(kLanes);

// How a row of bytes holds its pixels.
struct Layout {
  int width, channels;
  bool planar;

  int bytes() const { return width * channels; }
  int pixel_step() const { return planar ? 1 : channels; }
  ptrdiff_t position(int x, int c) const { return planar ? x + ptrdiff_t{c} * width : c + ptrdiff_t{x} * channels; }
};

class RowSource {
 public:
  explicit RowSource(Layout layout) : layout(layout), stride(padded(layout.bytes())) {}
  virtual ~RowSource() = default;
  // Announces that the rows [first, last) of `frame` will be read, in order.
  virtual void start(int64_t frame, int first, int last) = 0;
  // Writes the rows [first, first + count), `stride` bytes apart; count is at most kBlock.
  virtual void read(int first, int count, uint8_t* to) = 0;

  const Layout layout;
  const ptrdiff_t stride;
};

class Quantised final : public RowSource {
 public:
  Quantised(const Pixels& source, Range range)
      : RowSource({static_cast<int>(source.width), static_cast<int>(source.channels), source.pixel_stride == 1}),
        source_(source),
        quantise_(range == Range::Vae ? rows::quantise_vae : rows::quantise),
        floats_(layout.bytes()) {}

  void start(int64_t frame, int, int) override { frame_ = frame * source_.frame_stride; }

  void read(int first, int count, uint8_t* to) override {
    const int64_t from = frame_ + first * source_.row_stride;
    if (layout.planar) {
      // Plane by plane: memory is then read in the longest runs.
      for (int c = 0; c < layout.channels; ++c) {
        for (int row = 0; row < count; ++row) {
          read_run(from + row * source_.row_stride + c * source_.channel_stride, to + row * stride + c * layout.width,
                   layout.width);
        }
      }
    } else if (source_.channel_stride == 1 && source_.pixel_stride == layout.channels) {
      for (int row = 0; row < count; ++row)
        read_run(from + row * source_.row_stride, to + row * stride, layout.bytes());
    } else {
      for (int row = 0; row < count; ++row) read_strided(from + row * source_.row_stride, to + row * stride);
    }
  }

 private:
  void read_run(int64_t from, uint8_t* to, int count) {
    if (source_.element == Element::Float32) {
      quantise_(reinterpret_cast<const float*>(at(source_, from)), to, count);
    } else {
      rows::widen(at(source_, from), source_.element, floats_.data(), count);
      quantise_(floats_.data(), to, count);
    }
  }

  void read_strided(int64_t from, uint8_t* to) {
    float* value = floats_.data();
    for (int64_t x = 0; x < layout.width; ++x) {
      for (int64_t c = 0; c < layout.channels; ++c) {
        *value++ = animdetail::read(at(source_, from + x * source_.pixel_stride + c * source_.channel_stride),
                                    source_.element);
      }
    }
    quantise_(floats_.data(), to, layout.bytes());
  }

  const Pixels source_;
  void (*const quantise_)(const float*, uint8_t*, ptrdiff_t);
  std::vector<float> floats_;  // of a row
  int64_t frame_ = 0;          // elements to it
};

class Horizontal final : public RowSource {
 public:
  Horizontal(std::unique_ptr<RowSource> above, const Taps& taps, bool planar)
      : RowSource({static_cast<int>(taps.spans.size()), above->layout.channels, planar}),
        above_(std::move(above)),
        taps_(taps),
        rows_(above_->stride * kBlock),
        columns_(static_cast<ptrdiff_t>(above_->layout.bytes()) * kBlock),
        resampled_(static_cast<ptrdiff_t>(layout.bytes()) * kBlock) {}

  void start(int64_t frame, int first, int last) override { above_->start(frame, first, last); }

  void read(int first, int count, uint8_t* to) override {
    const Layout& from = above_->layout;
    above_->read(first, count, rows_.data());
    rows::transpose(rows_.data(), above_->stride, count, from.bytes(), columns_.data(), kBlock);
    for (int x = 0; x < layout.width; ++x) {
      const Taps::Span& span = taps_.spans[x];
      for (int c = 0; c < layout.channels; ++c) {
        rows::weighted_sum(&columns_[from.position(span.begin, c) * kBlock], from.pixel_step() * kBlock,
                           &taps_.values[span.offset], span.end - span.begin,
                           &resampled_[layout.position(x, c) * kBlock], kBlock);
      }
    }
    rows::transpose(resampled_.data(), kBlock, layout.bytes(), count, to, stride);
  }

 private:
  const std::unique_ptr<RowSource> above_;
  const Taps& taps_;
  std::vector<uint8_t> rows_, columns_, resampled_;
};

class Vertical final : public RowSource {
 public:
  Vertical(std::unique_ptr<RowSource> above, const Taps& taps)
      : RowSource(above->layout), above_(std::move(above)), taps_(taps), window_(stride * (taps.longest + kBlock)) {}

  void start(int64_t frame, int first, int last) override {
    begin_ = end_ = taps_.spans[first].begin;
    last_ = taps_.spans[last - 1].end;
    above_->start(frame, begin_, last_);
  }

  void read(int first, int count, uint8_t* to) override {
    for (int row = first; row < first + count; ++row, to += stride) {
      const Taps::Span& span = taps_.spans[row];
      while (end_ < span.end) pull(span.begin);
      rows::weighted_sum(&window_[(span.begin - begin_) * stride], stride, &taps_.values[span.offset],
                         span.end - span.begin, to, layout.bytes());
    }
  }

 private:
  // Reads on, after dropping the rows before `needed` where there is no room for a block.
  void pull(int needed) {
    if (end_ - begin_ > taps_.longest) {
      std::memmove(window_.data(), &window_[(needed - begin_) * stride], (end_ - needed) * stride);
      begin_ = needed;
    }
    const int count = std::min(kBlock, last_ - end_);
    above_->read(end_, count, &window_[(end_ - begin_) * stride]);
    end_ += count;
  }

  const std::unique_ptr<RowSource> above_;
  const Taps& taps_;
  std::vector<uint8_t> window_;
  int begin_ = 0, end_ = 0;  // rows in the window
  int last_ = 0;             // where reading ends
};

// Writes rows of bytes to the target.
class Written {
 public:
  Written(const ResampleJob& job, const Layout& layout)
      : target_(job.target),
        layout_(layout),
        range_(job.target_range),
        contiguous_(layout.planar ? target_.pixel_stride == 1
                                  : target_.channel_stride == 1 && target_.pixel_stride == layout.channels) {
    for (int value = 0; value < 256; ++value) {
      const float meant = range_ == Range::Vae ? resample::dequantise_vae(static_cast<uint8_t>(value))
                                               : resample::dequantise(static_cast<uint8_t>(value));
      elements_[value] = bits_of(meant, target_.element);
    }
  }

  // `count` rows, `stride` bytes apart, from row `first` of `frame` on.
  void write(const uint8_t* from, ptrdiff_t stride, int count, int64_t frame, int first) const {
    const int64_t to = frame * target_.frame_stride + first * target_.row_stride;
    // Plane by plane where there are planes, each row of them in one run.
    const int runs = contiguous_ && layout_.planar ? layout_.channels : 1;
    for (int run = 0; run < runs; ++run) {
      for (int row = 0; row < count; ++row) {
        write_row(from + row * stride + run * layout_.width,
                  to + row * target_.row_stride + run * target_.channel_stride);
      }
    }
  }

 private:
  void write_row(const uint8_t* from, int64_t to) const {
    if (!contiguous_) {
      for (int x = 0; x < layout_.width; ++x) {
        for (int c = 0; c < layout_.channels; ++c) {
          put(from[layout_.position(x, c)], to + x * target_.pixel_stride + c * target_.channel_stride);
        }
      }
      return;
    }
    const int count = layout_.planar ? layout_.width : layout_.bytes();
    if (target_.element == Element::Float32) {
      const auto dequantise = range_ == Range::Vae ? rows::dequantise_vae : rows::dequantise;
      dequantise(from, reinterpret_cast<float*>(at(target_, to)), count);
    } else {
      for (int i = 0; i < count; ++i) put(from[i], to + i);
    }
  }

  void put(uint8_t value, int64_t to) const {
    switch (target_.element) {
      case Element::Float32: return store_as(elements_[value], at(target_, to));
      case Element::UInt8: return store_as(static_cast<uint8_t>(elements_[value]), at(target_, to));
      default: store_as(static_cast<uint16_t>(elements_[value]), at(target_, to));
    }
  }

  const Pixels target_;
  const Layout layout_;
  const Range range_;
  const bool contiguous_;
  uint32_t elements_[256];  // what each byte is written as
};

// Cuts the rows or columns of `source` that a pass skips down to the window of the target.
Pixels without_skipped_border(const ResampleJob& job, bool across, bool down) {
  Pixels source = job.source;
  if (!across) {
    source.data = at(source, job.left * source.pixel_stride);
    source.width = job.target.width;
  }
  if (!down) {
    source.data = at(source, job.top * source.row_stride);
    source.height = job.target.height;
  }
  return source;
}

class Chain {
 public:
  explicit Chain(const ResampleJob& job) : job_(job) {
    const bool across = job.width != job.source.width, down = job.height != job.source.height;
    source_ = without_skipped_border(job, across, down);
    if (across) x_ = taps(job.source.width, job.width, job.left, job.target.width);
    if (down) y_ = taps(job.source.height, job.height, job.top, job.target.height);
  }

  std::unique_ptr<RowSource> rows() const {
    const bool planar = job_.target.pixel_stride == 1;
    std::unique_ptr<RowSource> rows = std::make_unique<Quantised>(source_, job_.source_range);
    if (y_ && job_.vertical_first) rows = std::make_unique<Vertical>(std::move(rows), *y_);
    if (x_) rows = std::make_unique<Horizontal>(std::move(rows), *x_, planar);
    if (y_ && !job_.vertical_first) rows = std::make_unique<Vertical>(std::move(rows), *y_);
    return rows;
  }

 private:
  static std::unique_ptr<Taps> taps(int64_t in_size, int64_t out_size, int64_t first, int64_t count) {
    return std::make_unique<Taps>(static_cast<int>(in_size), static_cast<int>(out_size), static_cast<int>(first),
                                  static_cast<int>(count));
  }

  const ResampleJob& job_;
  Pixels source_;
  std::unique_ptr<Taps> x_, y_;
};

}  // namespace

void resample_cpu(const ResampleJob& job) {
  const Chain chain(job);
  const int height = static_cast<int>(job.target.height);
  // Each band reads the rows that its first taps reach back to once more, so frames are cut only when they are few: two
  // tasks a thread.
  const int64_t frames = job.target.frames, shares = (2 * num_threads() + frames - 1) / frames;
  const int band = std::max<int>(kBlock, (height + shares - 1) / shares);
  const int64_t bands = (height + band - 1) / band;

  parallel_tasks(job.target.frames * bands, [&](const NextTask& next) {
    const std::unique_ptr<RowSource> rows = chain.rows();
    const Written target(job, rows->layout);
    std::vector<uint8_t> block(rows->stride * kBlock);
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t frame = task / bands;
      const int first = static_cast<int>(task % bands) * band, last = std::min(first + band, height);
      rows->start(frame, first, last);
      for (int y = first; y < last; y += kBlock) {
        const int count = std::min(kBlock, last - y);
        rows->read(y, count, block.data());
        target.write(block.data(), rows->stride, count, frame, y);
      }
    }
  });
}

}  // namespace animdetail

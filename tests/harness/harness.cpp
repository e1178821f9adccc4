// Runs what a GPU would run, on a CPU: the steps of the CUDA kernels (csrc/ops/*_tile.h, paste_span.h) for every thread
// of every block in turn, over random jobs, and compares with the ops of the CPU to the bit. Built under sanitizers by
// test_harness.py, which passes the seed and the number of jobs.
//
// Shared memory is filled with garbage and is exactly as large as the kernel asks for. Targets have borders that must
// stay as they were.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "animdetail/ops.h"
#include "contract.h"
#include "feather_tile.h"
#include "paste_span.h"
#include "resample_plan.h"

using namespace animdetail;

namespace {

std::mt19937 random_bits;

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
bool chance(int one_in) { return between(1, one_in) == 1; }

// Often small, often at the edge of a tile, seldom large.
int side() {
  static constexpr int kEdges[] = {1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129};
  if (chance(3)) return kEdges[between(0, 13)];
  return chance(4) ? between(1, 400) : between(1, 60);
}

[[noreturn]] void fail(const char* what) {
  std::printf("%s\n", what);
  std::exit(1);
}

void require(bool ok, const char* what) {
  if (!ok) fail(what);
}

// Memory of a picture, aligned to 16 bytes plus `past` elements, with the strides that a real one could have.
struct Memory {
  enum Kind { Interleaved, Planar, Sliced };

  Memory(Kind kind, int64_t frames, int64_t height, int64_t width, int64_t channels, bool even_rows,
         Element element = Element::Float32) {
    const int64_t step = kind == Sliced ? 2 : 1, past = between(0, 3), margin = between(0, 2);
    int64_t row = (width + 2 * margin) * step * (kind == Interleaved ? channels : 1);
    if (even_rows) row = (row + 3) / 4 * 4;
    pixels = {nullptr, frames, height, width, channels, 0, row, step, 1, element};
    if (kind == Interleaved) {
      pixels.pixel_stride = channels;
      pixels.frame_stride = row * height;
    } else {
      pixels.channel_stride = row * height;
      pixels.frame_stride = pixels.channel_stride * channels;
    }
    bytes.resize((pixels.frame_stride * frames + past + 16) * bytes_of(element));
    size_t room = bytes.size();
    void* start = bytes.data();
    std::align(16, 16, start, room);
    pixels.data = static_cast<char*>(start);
    pixels.data = at(pixels, past + (kind == Interleaved ? margin * channels : margin * step));
    if (kind == Sliced && chance(2)) {  // upside down
      pixels.data = at(pixels, (height - 1) * row);
      pixels.row_stride = -row;
    }
  }

  void fill(float low, float high) {
    std::uniform_real_distribution<float> values(low, high);
    const int step = bytes_of(pixels.element);
    for (size_t i = 0; i + step <= bytes.size(); i += step) {
      const float value = chance(50)  ? std::numeric_limits<float>::quiet_NaN()
                          : chance(3) ? std::min(high, 1.0f)
                                      : values(random_bits);
      write(value, bytes.data() + i, pixels.element);
    }
  }

  Mask mask() const {
    return {reinterpret_cast<const float*>(pixels.data), pixels.frame_stride, pixels.row_stride, pixels.pixel_stride};
  }

  std::vector<char> bytes;
  Pixels pixels;
};

// The same picture in a copy of its memory, which is aligned alike.
Pixels in(const Pixels& pixels, std::vector<char>& bytes, const Memory& memory) {
  require(reinterpret_cast<uintptr_t>(bytes.data()) % 16 == reinterpret_cast<uintptr_t>(memory.bytes.data()) % 16,
          "the harness's own memory is aligned otherwise");
  Pixels moved = pixels;
  moved.data = bytes.data() + (pixels.data - memory.bytes.data());
  return moved;
}

// Floats two times in three.
Element any_element(bool unit) { return chance(3) ? Element(between(0, unit ? 3 : 2)) : Element::Float32; }

// Garbage of a size: a sanitizer sees a step past its end, and a result that depends on it differs.
std::unique_ptr<uint8_t[]> garbage(size_t bytes) {
  std::unique_ptr<uint8_t[]> memory(new uint8_t[bytes]);  // aligned to 16 bytes, as every larger allocation is
  for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<uint8_t>(random_bits());
  return memory;
}

template <int channels, resample::Range range, bool blends, bool any>
void resample_as_a_gpu(const resample::TileJob& job) {
  using namespace resample;
  const int64_t rows = job.target.frames * job.plan.down;
  for (int64_t row = 0; row < rows; ++row) {
    for (int column = 0; column < job.plan.across; ++column) {
      const Tile tile = tile_at(job, row / job.plan.down, static_cast<int>(row % job.plan.down), column);
      const auto shared = garbage(job.plan.shared_bytes);
      uint32_t* words = reinterpret_cast<uint32_t*>(shared.get());
      for (int t = 0; t < kThreads; ++t) load<channels, range, any>(job, tile, words, t, kThreads);
      for (int t = 0; t < kThreads; ++t) first_pass<channels, 0>(job, tile, words, t, kThreads);
      for (int t = 0; t < kThreads; ++t) second_pass<channels, 0, blends, any>(job, tile, words, t, kThreads);
    }
  }
}

template <int channels, bool blends, bool any>
void resample_directly(const resample::TileJob& job) {
  using namespace resample;
  constexpr int kDirectThreads = 128;
  for (int64_t index = 0; index < job.target.frames * job.target.height * job.target.width; ++index) {
    const Output output = output_at(job, index);
    int32_t totals[channels] = {};
    for (int t = 0; t < kDirectThreads; ++t) {
      int32_t sums[channels];
      direct_sums<channels, any>(job, output, sums, t, kDirectThreads);
      for (int c = 0; c < channels; ++c) totals[c] = static_cast<int32_t>(uint32_t(totals[c]) + uint32_t(sums[c]));
    }
    direct_store<channels, blends, any>(job, output, totals);
  }
}

template <int channels, resample::Range range, bool blends, bool any>
void resample_either_way(const resample::TileJob& job, bool tiled) {
  tiled ? resample_as_a_gpu<channels, range, blends, any>(job) : resample_directly<channels, blends, any>(job);
}

template <bool any>
void run_rgb(const resample::TileJob& job, bool tiled) {
  using resample::Range;
  if (job.source_range == Range::Unit) return resample_either_way<3, Range::Unit, false, any>(job, tiled);
  job.mask.data ? resample_either_way<3, Range::Vae, true, any>(job, tiled)
                : resample_either_way<3, Range::Vae, false, any>(job, tiled);
}

void run(const resample::TileJob& job, bool tiled) {
  using resample::Range;
  switch (job.target.channels) {
    case 1: return resample_either_way<1, Range::Unit, false, false>(job, tiled);
    case 2: return resample_either_way<2, Range::Unit, false, false>(job, tiled);
    case 3: return all_floats(job) ? run_rgb<false>(job, tiled) : run_rgb<true>(job, tiled);
    default: return resample_either_way<4, Range::Unit, false, false>(job, tiled);
  }
}

int tiled_jobs = 0, direct_jobs = 0, fast_reads = 0, fast_writes = 0, narrow_jobs = 0;

void check_resample() {
  using resample::Range;
  ResampleJob job{};
  const bool from_vae = chance(2), blends = from_vae && chance(2);
  const int channels = from_vae ? 3 : between(1, 4), frames = between(1, 2);
  Memory source(from_vae && !chance(5) ? Memory::Planar : Memory::Kind(between(0, 2)), frames, side(), side(), channels,
                !chance(4), channels == 3 ? any_element(!from_vae) : Element::Float32);
  source.fill(-1.2f, 1.2f);
  // A window of the whole result, as to_vae cuts it and as an edge of the canvas does.
  job.width = chance(8) ? source.pixels.width : side();
  job.height = chance(8) ? source.pixels.height : side();
  job.left = between(0, int(job.width) - 1);
  job.top = between(0, int(job.height) - 1);
  if (chance(2)) job.left = job.top = 0;
  const int64_t width = job.width - job.left - (chance(3) ? between(0, int(job.width - job.left) - 1) : 0);
  const int64_t height = job.height - job.top - (chance(3) ? between(0, int(job.height - job.top) - 1) : 0);
  job.target_range = from_vae || chance(2) ? Range::Unit : Range::Vae;
  Memory target(Memory::Kind(between(0, 2)), frames, height, width, channels, !chance(4),
                channels == 3 ? any_element(job.target_range == Range::Unit) : Element::Float32);
  target.fill(0, 1);
  Memory mask(Memory::Planar, frames, height, width, 1, chance(2));
  mask.fill(0, 1);

  job.source = source.pixels;
  job.source_range = from_vae ? Range::Vae : Range::Unit;
  job.vertical_first = chance(3);

  // The CPU's answer, blended by the CPU's paste where the GPU does both at once.
  std::vector<char> expected = target.bytes;
  job.target = in(target.pixels, expected, target);
  if (blends) {
    Memory patch(Memory::Interleaved, frames, height, width, channels, false);
    const Pixels canvas = job.target;
    job.target = patch.pixels;
    resample_cpu(job);
    paste_cpu({canvas, patch.pixels, mask.mask()});
  } else {
    resample_cpu(job);
  }

  job.target = target.pixels;
  if (blends) job.mask = mask.mask();
  using namespace resample;
  const Layout read = layout_of(job.source, job.vertical_first), written = layout_of(job.target, job.vertical_first);
  const AxisKey along_x{int(job.source.width), int(job.width), int(job.left), int(width), read.phase, 0};
  AxisKey with_lead = along_x;
  with_lead.lead = written.phase;
  const AxisTable x_of_tiles(with_lead), y({int(job.source.height), int(job.height), int(job.top), int(height), 0, 0});
  // Cards from Turing to Hopper, and one so small that there is room for small tiles, or none.
  constexpr int kKib[][2] = {{13, 12}, {64, 64}, {100, 99}, {164, 163}, {228, 227}};
  const auto& [of_processor, of_block] = kKib[between(0, 4)];
  const Card card{100, of_processor << 10, 1 << 10, of_block << 10};
  auto plan = plan_tiles(job, x_of_tiles, y, read.access, written.access, card);
  if (plan) require(plan->shared_bytes <= card.most_bytes, "resample: a tile is larger than a block may be");
  if (chance(10)) plan.reset();
  const bool tiled = plan.has_value();
  const AxisTable x = tiled ? x_of_tiles : AxisTable(along_x);
  const auto x_blocks = x.blocks(), y_blocks = y.blocks();
  TileJob tile_job{job.source,       job.target,       job.mask,          x.axis(), y.axis(), plan.value_or(Plan{}),
                   job.source_range, job.target_range, job.vertical_first};
  tile_job.x.blocks = x_blocks.data();
  tile_job.y.blocks = y_blocks.data();
  run(tile_job, tiled);
  narrow_jobs += !all_floats(tile_job);
  ++(tiled ? tiled_jobs : direct_jobs);
  fast_reads += tiled && read.access != Access::Strided;
  fast_writes += tiled && written.access != Access::Strided;
  require(target.bytes == expected, "resample: the GPU's steps give other bits than the CPU");
}

void check_feather() {
  const int64_t count = between(1, 2), height = side(), width = side();
  const int64_t room = std::min(height, width) - 1;
  Memory mask(Memory::Kind(between(0, 2)), count, height, width, 1, chance(2)),
      out(Memory::Kind(between(0, 2)), count, height, width, 1, chance(2));
  mask.fill(0, 1);
  FeatherJob job{};
  job.radius = std::min<int64_t>(room, chance(5) ? between(0, 30) : between(0, 6));
  job.mask = mask.mask().data;
  job.count = count;
  job.height = height;
  job.width = width;
  const auto strides = [](const Pixels& pixels, int64_t (&to)[3]) {
    to[0] = pixels.frame_stride;
    to[1] = pixels.row_stride;
    to[2] = pixels.pixel_stride;
  };
  strides(mask.pixels, job.mask_strides);
  strides(out.pixels, job.out_strides);
  job.factor = 0.7f;
  const int64_t size = 2 * job.radius + 1;
  std::vector<float> weights(size);
  for (float& weight : weights) weight = between(1, 1000) / 1000.0f / size;
  job.weights = weights.data();

  std::vector<char> expected = out.bytes;
  const auto floats = [](const Pixels& pixels) { return reinterpret_cast<float*>(pixels.data); };
  job.out = floats(in(out.pixels, expected, out));
  feather_cpu(job);

  job.out = floats(out.pixels);
  const int stride = feather::kernel_stride(job.radius);
  std::vector<float> kernel(size * stride);
  for (int64_t i = 0; i < size * size; ++i)
    kernel[i / size * stride + i % size] = weights[i / size] * weights[i % size];
  const feather::TileJob tiles{job, kernel.data(), stride, (width + feather::kTileWidth - 1) / feather::kTileWidth,
                               (height + feather::kTileHeight - 1) / feather::kTileHeight};
  if (job.radius <= feather::kMaxRadius) {
    for (int64_t index = 0; index < tiles.across * tiles.down * count; ++index) {
      const feather::Tile tile = feather::tile_at(tiles, index);
      const int floats = feather::shared_floats(int(job.radius), stride);
      require(floats * sizeof(float) <= 48 << 10, "feather: a tile does not fit into 48 KiB");
      const auto shared = garbage(floats * sizeof(float));
      float* first = reinterpret_cast<float*>(shared.get());
      for (int t = 0; t < feather::kThreads; ++t) feather::load(tiles, tile, first, t, feather::kThreads);
      for (int t = 0; t < feather::kThreads; ++t) {
        feather::blur(tiles, tile, first, t, feather::kThreads);
      }
    }
  } else {
    for (int64_t i = 0; i < count * height * width; ++i) {
      feather::blur_pixel(tiles, i);
    }
  }
  require(out.bytes == expected, "feather: the GPU's steps give other bits than the CPU");
}

template <bool any>
void paste_as_a_gpu(const blend::SpanJob& spans) {
  constexpr int kAtOnce = 2;
  for (int64_t frame = 0; frame < spans.job.canvas.frames; ++frame) {
    for (int64_t row = 0; row < spans.job.canvas.height; ++row) {
      for (int t = 0; t < 32; ++t) blend::paste_row<kAtOnce>(spans, blend::row_at<any>(spans, frame, row), t, 32);
    }
  }
}

void check_paste() {
  const int channels = chance(3) ? between(1, 4) : 3;
  const int64_t frames = between(1, 3), height = side(), width = side();
  const auto element = [=] { return channels == 3 ? any_element(true) : Element::Float32; };
  Memory canvas(Memory::Kind(between(0, 2)), frames, height, width, channels, !chance(3), element()),
      patch(Memory::Kind(between(0, 2)), frames, height, width, channels, !chance(3), element()),
      mask(Memory::Kind(between(0, 2)), frames, height, width, 1, chance(2));
  canvas.fill(0, 1);
  patch.fill(0, 1);
  mask.fill(0, 1);
  PasteJob job{canvas.pixels, patch.pixels, mask.mask()};
  if (chance(2)) job.mask.frame_stride = 0;
  std::vector<char> expected = canvas.bytes;
  job.canvas = in(canvas.pixels, expected, canvas);
  paste_cpu(job);

  job.canvas = canvas.pixels;
  const blend::SpanJob spans = blend::span_job(job);
  blend::all_floats(job) ? paste_as_a_gpu<false>(spans) : paste_as_a_gpu<true>(spans);
  require(canvas.bytes == expected, "paste: the GPU's steps give other bits than the CPU");
}

// Formulas of the GPU that stand in for slower ones.
void check_formulas() {
  for (int value = 0; value < 256; ++value) {
    require(resample::over_255(float(value)) == float(value) / 255.0f, "over_255 is no division");
  }
  for (int divisor = 1; divisor < 3000; divisor += divisor < 300 ? 1 : 37) {
    const resample::Divisor by(divisor);
    for (int i = 0; i < 200; ++i) {
      const int numerator = chance(2) ? between(0, 300000) : divisor * between(0, 100) - chance(2);
      if (numerator >= 0) require(resample::quotient(numerator, by) == numerator / divisor, "quotient is no division");
    }
  }
}

// A frame that is alone is read and written 16 bytes at a time, whatever stride a library gives it.
void check_strides_that_mean_nothing() {
  alignas(16) static float memory[3 * 8 * 4];
  TensorView frame;
  frame.data = memory;
  frame.rank = 4;
  const int64_t shape[] = {1, 4, 8, 3}, strides[] = {1, 24, 3, 1};
  std::copy_n(shape, 4, frame.shape);
  std::copy_n(strides, 4, frame.strides);
  const Pixels picture = pixels(frame);
  require(resample::layout_of(picture, false).access == resample::Access::Packed, "a single frame is strided");
  require(blend::span_job({picture, picture, {}}).patch_aligned, "a single frame is not aligned");
}

}  // namespace

int main(int, char** arguments) {
  random_bits.seed(std::atoi(arguments[1]));
  const int jobs = std::atoi(arguments[2]);
  check_formulas();
  check_strides_that_mean_nothing();
  for (int i = 0; i < jobs; ++i) {
    check_resample();
    check_feather();
    check_paste();
  }
  std::printf("resampled %d in tiles (%d read fast, %d written fast) and %d directly; %d not of floats alone\n",
              tiled_jobs, fast_reads, fast_writes, direct_jobs, narrow_jobs);
  for (const int count : {tiled_jobs, fast_reads, fast_writes, direct_jobs, narrow_jobs}) {
    require(count > 0, "the jobs left a path out: give more of them, or mend what they are drawn from");
  }
}

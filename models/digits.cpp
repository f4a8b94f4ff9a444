#include "models/digits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/base/check.h"

namespace fm {
namespace {

// ---- Random numbers: splitmix64 (Steele, Lea, Flood 2014) from a hash of where they are used.

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;

constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

enum class Stream : std::uint64_t { image = 1, labels = 2 };

class Draws {
 public:
  Draws(std::uint64_t seed, Stream stream, std::int64_t index)
      : state_(mix(mix(mix(seed + kGolden) + static_cast<std::uint64_t>(stream)) +
                   static_cast<std::uint64_t>(index) * kGolden)) {}

  // Uniform in [low, high].
  int between(int low, int high) {
    const auto range = static_cast<std::uint64_t>(high - low + 1);
    return low + static_cast<int>(((next() >> 32) * range) >> 32);
  }
  // In [low, high], most often in the middle: the mean of three uniform ones.
  int around(int low, int high) {
    return (between(low, high) + between(low, high) + between(low, high)) / 3;
  }

 private:
  std::uint64_t next() { return mix(state_ += kGolden); }
  std::uint64_t state_;
};

// ---- Skeletons, in a box of 100 x 100, y down.

struct Point {
  int x, y;
  bool operator==(const Point&) const = default;
};

constexpr Point kPenUp{-1, -1};  // between two strokes
constexpr int kMostPoints = 16;

// A smooth curve runs through the points of a stroke; a point given twice in a row is a corner.
// Equal points stay equal when jittered, so that loops close and strokes meet.
struct Skeleton {
  int digit;
  int count;
  std::array<Point, kMostPoints> points;
};

template <class... Points>
constexpr Skeleton skeleton(int digit, Points... points) {
  static_assert(sizeof...(Points) <= kMostPoints);
  return {digit, sizeof...(Points), {points...}};
}

using P = Point;
constexpr Skeleton kSkeletons[] = {
    // 0: closed; open at the top with crossing ends
    skeleton(0, P{50, 4}, P{26, 16}, P{16, 50}, P{26, 84}, P{50, 96}, P{74, 84}, P{84, 50},
             P{74, 16}, P{50, 4}),
    skeleton(0, P{64, 10}, P{38, 7}, P{18, 38}, P{20, 76}, P{46, 96}, P{74, 82}, P{84, 46},
             P{70, 14}, P{44, 5}),
    // 1: a line, twice as often; with a flag; with a flag and a foot
    skeleton(1, P{50, 3}, P{50, 50}, P{50, 97}),
    skeleton(1, P{51, 3}, P{49, 50}, P{50, 97}),
    skeleton(1, P{34, 22}, P{52, 4}, P{52, 4}, P{52, 50}, P{52, 96}),
    skeleton(1, P{30, 24}, P{52, 4}, P{52, 4}, P{52, 95}, kPenUp, P{28, 96}, P{78, 95}),
    // 2: with a corner; with a loop
    skeleton(2, P{20, 26}, P{34, 8}, P{58, 5}, P{75, 20}, P{70, 42}, P{46, 68}, P{18, 93},
             P{18, 93}, P{50, 92}, P{84, 92}),
    skeleton(2, P{22, 20}, P{44, 5}, P{70, 13}, P{74, 36}, P{54, 66}, P{30, 90}, P{17, 84},
             P{28, 74}, P{48, 84}, P{66, 94}, P{86, 86}),
    // 3: round; with a flat top
    skeleton(3, P{20, 15}, P{44, 4}, P{70, 14}, P{68, 36}, P{42, 47}, P{42, 47}, P{72, 55},
             P{80, 75}, P{62, 94}, P{36, 96}, P{16, 84}),
    skeleton(3, P{20, 8}, P{74, 7}, P{74, 7}, P{46, 42}, P{46, 42}, P{74, 54}, P{78, 78}, P{54, 96},
             P{20, 88}),
    // 4: open and angular; closed; open and round
    skeleton(4, P{25, 5}, P{21, 32}, P{18, 56}, P{18, 56}, P{50, 56}, P{86, 52}, kPenUp, P{70, 8},
             P{68, 52}, P{64, 97}),
    skeleton(4, P{62, 4}, P{38, 32}, P{14, 64}, P{14, 64}, P{50, 64}, P{88, 62}, kPenUp, P{62, 4},
             P{62, 50}, P{60, 97}),
    skeleton(4, P{22, 8}, P{19, 42}, P{38, 56}, P{73, 44}, kPenUp, P{76, 6}, P{73, 44}, P{67, 97}),
    // 5: in one stroke; with the bar last
    skeleton(5, P{78, 6}, P{32, 8}, P{32, 8}, P{26, 44}, P{26, 44}, P{52, 40}, P{75, 54}, P{75, 80},
             P{52, 96}, P{18, 88}),
    skeleton(5, P{34, 9}, P{28, 46}, P{28, 46}, P{58, 46}, P{75, 66}, P{64, 90}, P{40, 97},
             P{16, 88}, kPenUp, P{34, 9}, P{60, 7}, P{86, 5}),
    // 6: curved; nearly straight
    skeleton(6, P{70, 4}, P{44, 20}, P{24, 52}, P{24, 82}, P{48, 97}, P{72, 86}, P{72, 65},
             P{52, 54}, P{32, 64}, P{24, 82}),
    skeleton(6, P{56, 3}, P{34, 34}, P{21, 70}, P{34, 94}, P{60, 95}, P{73, 76}, P{60, 59},
             P{38, 62}, P{21, 70}),
    // 7: plain; with a serif; with a bar
    skeleton(7, P{16, 10}, P{50, 9}, P{82, 8}, P{82, 8}, P{60, 48}, P{44, 97}),
    skeleton(7, P{16, 24}, P{18, 10}, P{18, 10}, P{80, 8}, P{80, 8}, P{56, 50}, P{48, 97}),
    skeleton(7, P{18, 8}, P{80, 8}, P{80, 8}, P{58, 50}, P{44, 97}, kPenUp, P{34, 52}, P{74, 48}),
    // 8: from an S; from two loops
    skeleton(8, P{72, 17}, P{50, 4}, P{28, 19}, P{38, 40}, P{62, 57}, P{75, 78}, P{52, 96},
             P{28, 80}, P{38, 58}, P{62, 40}, P{72, 17}),
    skeleton(8, P{50, 47}, P{30, 33}, P{33, 11}, P{53, 4}, P{71, 17}, P{67, 37}, P{50, 47},
             P{29, 64}, P{27, 86}, P{50, 97}, P{74, 86}, P{71, 63}, P{50, 47}),
    // 9: with a straight tail; with a curved tail
    skeleton(9, P{73, 26}, P{58, 6}, P{34, 9}, P{23, 30}, P{35, 49}, P{58, 44}, P{73, 26},
             P{73, 26}, P{72, 60}, P{64, 97}),
    skeleton(9, P{75, 22}, P{50, 4}, P{26, 20}, P{28, 45}, P{54, 47}, P{75, 22}, P{75, 22},
             P{77, 56}, P{64, 90}, P{34, 95}),
};

// One of the skeletons of a digit.
const Skeleton& choose(int digit, Draws& draws) {
  const auto of_digit = [digit](const Skeleton& s) { return s.digit == digit; };
  const Skeleton* first = std::find_if(std::begin(kSkeletons), std::end(kSkeletons), of_digit);
  const Skeleton* last = std::find_if_not(first, std::end(kSkeletons), of_digit);
  return first[draws.between(0, static_cast<int>(last - first) - 1)];
}

// ---- Shape: from a skeleton to line segments.

constexpr int kUnit = 64;    // a skeleton unit is 64
constexpr int kOne = 1024;   // the 1 of the affine map
constexpr int kPixel = 256;  // a pixel is 256
constexpr int kPieces = 4;   // segments between two points of a stroke
constexpr int kSide = static_cast<int>(kDigitSide);
constexpr int kMostSegments = kPieces * kMostPoints;

struct Segment {
  Point from, to;
};

struct Drawing {
  int count = 0;
  std::array<Segment, kMostSegments> segments;
};

// The points as this writer sets them: jittered, then scaled across, slanted and turned.
std::array<Point, kMostPoints> place(const Skeleton& skeleton, Draws& draws) {
  constexpr int kJitter = 8 * kUnit;
  const int width = draws.around(kOne * 60 / 100, kOne * 124 / 100);
  const int slant = draws.around(-kOne * 35 / 100, kOne * 75 / 100);
  const int turn = draws.around(-kOne * 28 / 100, kOne * 28 / 100);
  std::array<Point, kMostPoints> placed{};
  for (int i = 0; i < skeleton.count; ++i) {
    const auto at = skeleton.points.begin() + i;
    const auto same = std::find(skeleton.points.begin(), at, *at);
    if (*at == kPenUp || same != at) {
      placed[i] = *at == kPenUp ? kPenUp : placed[same - skeleton.points.begin()];
      continue;
    }
    const int x = at->x * kUnit + draws.around(-kJitter, kJitter);
    const int y = at->y * kUnit + draws.around(-kJitter, kJitter);
    const int across = (x * width - y * slant) / kOne;
    placed[i] = {(across * kOne - y * turn) / kOne, (y * kOne + across * turn) / kOne};
  }
  return placed;
}

// Catmull-Rom between b and c, at `step` of kPieces.
int curve(int a, int b, int c, int d, int step) {
  constexpr int n = kPieces;
  const int t = step;
  return (2 * b * n * n * n + (c - a) * t * n * n + (2 * a - 5 * b + 4 * c - d) * t * t * n +
          (3 * b - a - 3 * c + d) * t * t * t) /
         (2 * n * n * n);
}

Drawing draw_strokes(const Skeleton& skeleton, Draws& draws) {
  const auto points = place(skeleton, draws);
  const auto ends = [&](int i) {  // no curve runs on from point i - 1 to point i
    return i <= 0 || i >= skeleton.count || skeleton.points[i] == kPenUp ||
           skeleton.points[i - 1] == kPenUp || skeleton.points[i] == skeleton.points[i - 1];
  };
  Drawing drawing;
  for (int i = 1; i < skeleton.count; ++i) {
    if (ends(i)) continue;
    const Point b = points[i - 1], c = points[i];
    const Point a = ends(i - 1) ? b : points[i - 2], d = ends(i + 1) ? c : points[i + 1];
    Point from = b;
    for (int step = 1; step <= kPieces; ++step) {
      const Point to{curve(a.x, b.x, c.x, d.x, step), curve(a.y, b.y, c.y, d.y, step)};
      drawing.segments[drawing.count++] = {from, to};
      from = to;
    }
  }
  return drawing;
}

// ---- Ink: from segments to pixels.

// Of an exact integer and correctly rounded before it is cut: the same on every machine.
int root(std::int64_t square) {
  return static_cast<int>(std::sqrt(static_cast<double>(square)));
}

// Scales the drawing so that its longer side is `size`, and moves its mass to `centre`.
void fit(Drawing& drawing, int size, Point centre) {
  Point low = drawing.segments[0].from, high = low;
  for (int i = 0; i < drawing.count; ++i) {
    for (const Point& p : {drawing.segments[i].from, drawing.segments[i].to}) {
      low = {std::min(low.x, p.x), std::min(low.y, p.y)};
      high = {std::max(high.x, p.x), std::max(high.y, p.y)};
    }
  }
  const int extent = std::max(high.x - low.x, high.y - low.y);
  std::int64_t mass = 0, mass_x = 0, mass_y = 0;
  for (int i = 0; i < drawing.count; ++i) {
    Segment& s = drawing.segments[i];
    for (Point* p : {&s.from, &s.to})
      *p = {(p->x - low.x) * size / extent, (p->y - low.y) * size / extent};
    const std::int64_t dx = s.to.x - s.from.x, dy = s.to.y - s.from.y;
    const std::int64_t weight = root(dx * dx + dy * dy);
    mass += 2 * weight;
    mass_x += weight * (s.from.x + s.to.x);
    mass_y += weight * (s.from.y + s.to.y);
  }
  const Point move{centre.x - static_cast<int>(mass_x / mass),
                   centre.y - static_cast<int>(mass_y / mass)};
  for (int i = 0; i < drawing.count; ++i)
    for (Point* p : {&drawing.segments[i].from, &drawing.segments[i].to})
      *p = {p->x + move.x, p->y + move.y};
}

// Squared distance of a point to a segment.
std::int64_t distance2(const Segment& s, int x, int y) {
  const std::int64_t dx = s.to.x - s.from.x, dy = s.to.y - s.from.y;
  const std::int64_t px = x - s.from.x, py = y - s.from.y;
  const std::int64_t along = px * dx + py * dy, whole = dx * dx + dy * dy;
  if (along <= 0) return px * px + py * py;
  if (along >= whole) return (px - dx) * (px - dx) + (py - dy) * (py - dy);
  const std::int64_t across = px * dy - py * dx;
  return across * across / whole;
}

// Inks every segment with a round pen of the given radius; ink fades over `soft` at the edge.
void ink(const Drawing& drawing, int radius, int soft, std::uint8_t* pixels) {
  constexpr std::int64_t kFar = std::int64_t{1} << 40;
  const int reach = radius + soft / 2;
  std::array<std::int64_t, kSide * kSide> nearest;
  nearest.fill(kFar);
  // Pixel n has its centre at n + 1/2.
  const auto first = [](int at) { return std::clamp((at - kPixel / 2) / kPixel, 0, kSide); };
  for (int i = 0; i < drawing.count; ++i) {
    const Segment& s = drawing.segments[i];
    const int left = first(std::min(s.from.x, s.to.x) - reach);
    const int right = first(std::max(s.from.x, s.to.x) + reach + kPixel);
    const int top = first(std::min(s.from.y, s.to.y) - reach);
    const int bottom = first(std::max(s.from.y, s.to.y) + reach + kPixel);
    for (int y = top; y < bottom; ++y) {
      for (int x = left; x < right; ++x) {
        std::int64_t& near = nearest[y * kSide + x];
        near = std::min(near, distance2(s, x * kPixel + kPixel / 2, y * kPixel + kPixel / 2));
      }
    }
  }
  for (int i = 0; i < kSide * kSide; ++i) {
    const bool dry = nearest[i] >= static_cast<std::int64_t>(reach) * reach;
    const int depth = dry ? 0 : reach - root(nearest[i]);
    pixels[i] = static_cast<std::uint8_t>(std::min(depth, soft) * 255 / soft);
  }
}

int label_of(std::uint64_t seed, std::int64_t index) {
  Draws draws(seed, Stream::labels, index / kDigitClasses);
  std::array<int, kDigitClasses> order{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int i = kDigitClasses - 1; i > 0; --i) std::swap(order[i], order[draws.between(0, i)]);
  return order[index % kDigitClasses];
}

void draw_digit(Draws draws, int digit, std::uint8_t* pixels) {
  Drawing drawing = draw_strokes(choose(digit, draws), draws);
  const int radius = draws.around(kPixel * 60 / 100, kPixel * 190 / 100);
  const int box = draws.around(18 * kPixel, 21 * kPixel);
  const int middle = static_cast<int>(kDigitSide) * kPixel / 2;
  const Point centre{middle + draws.around(-kPixel, kPixel),
                     middle + draws.around(-kPixel, kPixel)};
  fit(drawing, box - 2 * radius, centre);
  ink(drawing, radius, kPixel * 5 / 4, pixels);
}

}  // namespace

void draw_digits(std::uint64_t seed, std::int64_t first, std::int64_t count, std::uint8_t* pixels,
                 std::uint8_t* labels) {
  FM_CHECK(first >= 0 && count >= 0, "[digits] indices must be at least 0, got ", count, " from ",
           first);
  for (std::int64_t i = 0; i < count; ++i) {
    const int digit = label_of(seed, first + i);
    draw_digit(Draws(seed, Stream::image, first + i), digit, pixels + i * kDigitSide * kDigitSide);
    labels[i] = static_cast<std::uint8_t>(digit);
  }
}

}  // namespace fm

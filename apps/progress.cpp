#include "apps/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace fm {
namespace {
constexpr int kWidestBar = 24, kNarrowestBar = 4;
constexpr auto kRedraw = std::chrono::milliseconds(100);

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}
}  // namespace

std::string clock_text(double seconds) {
  const auto whole = static_cast<long>(std::max(0.0, seconds) + 0.5);
  char text[32];
  if (whole >= 3600)
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  else std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
  return text;
}

Progress::Progress(std::string what, std::uint64_t total, std::uint64_t done)
    : what_(std::move(what)),
      total_(std::max<std::uint64_t>(total, 1)),
      first_(done),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()),
      last_(start_ - kRedraw) {
  const char* no_colour = std::getenv("NO_COLOR");
  colour_ = terminal_ && !(no_colour && *no_colour);
}

Progress::~Progress() {
  clear();
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string Progress::time_left(std::uint64_t done) const {
  if (done <= first_ || done >= total_) return done >= total_ ? "0:00" : "?";
  return clock_text(seconds() / static_cast<double>(done - first_) *
                    static_cast<double>(total_ - done));
}

void Progress::update(std::uint64_t done, const std::string& note) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (now - last_ < kRedraw && done < total_)) return;
  last_ = now;
  char counts[64];
  std::snprintf(counts, sizeof counts, " %llu/%llu  ", static_cast<unsigned long long>(done),
                static_cast<unsigned long long>(total_));
  const std::string text = counts + note + (note.empty() ? "" : "  ") + "left " + time_left(done);
  // A line that wraps could not be drawn over.
  const int room = terminal_columns() - static_cast<int>(what_.size() + text.size()) - 2;
  const int width = std::clamp(room, kNarrowestBar, kWidestBar);
  const int filled =
      static_cast<int>(std::min(done, total_) * static_cast<std::uint64_t>(width) / total_);
  std::string full, empty;
  for (int i = 0; i < width; ++i) (i < filled ? full : empty) += i < filled || colour_ ? "━" : "─";
  if (colour_) full = "\x1b[32m" + full + "\x1b[90m", empty += "\x1b[0m";
  std::fprintf(stderr, "\r\x1b[K%s %s%s%s", what_.c_str(), full.c_str(), empty.c_str(),
               text.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::line(const std::string& text) {
  clear();
  std::fprintf(stderr, "%s\n", text.c_str());
}

void Progress::clear() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

}  // namespace fm

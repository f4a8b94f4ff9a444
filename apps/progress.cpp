#include "apps/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace fm {
namespace {
constexpr int kBarWidth = 24;
constexpr auto kRedraw = std::chrono::milliseconds(100);
}  // namespace

std::string clock_text(double seconds) {
  const auto whole = static_cast<long>(std::max(0.0, seconds) + 0.5);
  char text[32];
  if (whole >= 3600) std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
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

Progress::~Progress() { clear(); }

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string Progress::time_left(std::uint64_t done) const {
  if (done <= first_ || done >= total_) return done >= total_ ? "0:00" : "?";
  return clock_text(seconds() / static_cast<double>(done - first_) * static_cast<double>(total_ - done));
}

void Progress::update(std::uint64_t done, const std::string& note) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (now - last_ < kRedraw && done < total_)) return;
  last_ = now;
  const int filled = static_cast<int>(std::min(done, total_) * kBarWidth / total_);
  std::string bar;
  for (int i = 0; i < kBarWidth; ++i) bar += i < filled ? "━" : colour_ ? "━" : "─";
  if (colour_) {
    const std::size_t split = static_cast<std::size_t>(filled) * std::string("━").size();
    bar = "\x1b[32m" + bar.substr(0, split) + "\x1b[90m" + bar.substr(split) + "\x1b[0m";
  }
  std::fprintf(stderr, "\r\x1b[K%s %s %llu/%llu  %s  left %s", what_.c_str(), bar.c_str(),
               static_cast<unsigned long long>(done), static_cast<unsigned long long>(total_), note.c_str(),
               time_left(done).c_str());
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

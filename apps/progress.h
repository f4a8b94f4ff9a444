// Progress on stderr: a bar on a terminal, one line an interval elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fm {

// "1:02:03" or "2:03"
std::string clock_text(double seconds);

class Progress {
 public:
  // `total` units of work (steps, images) in all, `done` of them before this run; `what` names the
  // work.
  Progress(std::string what, std::uint64_t total, std::uint64_t done = 0);
  ~Progress();

  // Redraws the bar (at most ten times a second); off a terminal it does nothing.
  void update(std::uint64_t done, const std::string& note);
  // A line that stays: above the bar on a terminal.
  void line(const std::string& text);
  bool terminal() const { return terminal_; }
  double seconds() const;  // since the start
  std::string time_left(std::uint64_t done) const;

 private:
  void clear();

  std::string what_;
  std::uint64_t total_, first_;
  bool terminal_, colour_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace fm

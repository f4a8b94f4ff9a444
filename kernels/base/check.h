// Errors: one exception type, one voice, one check.
//
// Every failure is an fm::Error whose message reads `[op] rule, got value` and says what would
// work. Its Fault is the exit code a command-line tool ends with.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fm {

// The kind of a failure; the value is the process exit code.
enum class Fault {
  runtime = 1,     // anything without a better name
  usage = 2,       // the caller asked for something that is not offered
  data = 3,        // a file (data set, checkpoint, configuration) is not what it should be
  device = 4,      // a device is missing, failed or ran out of memory
  not_finite = 5,  // training left the finite numbers
};

class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault_(fault) {}
  Fault fault() const noexcept { return fault_; }

 private:
  Fault fault_;
};

// The arguments, streamed one after another.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(Fault fault, const Parts&... parts) {
  throw Error(fault, concat(parts...));
}

}  // namespace fm

// FM_CHECK(condition, "[op] rule, got ", value, ...): throws Fault::usage with the streamed message
// when false.
#define FM_CHECK(condition, ...)                                   \
  do {                                                             \
    if (!(condition)) ::fm::fail(::fm::Fault::usage, __VA_ARGS__); \
  } while (false)

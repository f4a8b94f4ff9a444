#include "apps/program.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <new>
#include <vector>

#include "apps/environment.h"
#include "kernels/base/check.h"

namespace fm {
namespace {

std::atomic<int> signal_number{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may set the flag");

void on_signal(int number) {
  int none = 0;
  if (!signal_number.compare_exchange_strong(none, number)) _exit(128 + number);
}

// --d_model=64 is --d-model=64.
std::string kebab(std::string argument) {
  if (argument.starts_with("--")) {
    const auto end = argument.begin() +
                     static_cast<std::ptrdiff_t>(std::min(argument.find('='), argument.size()));
    std::replace(argument.begin() + 2, end, '_', '-');
  }
  return argument;
}

int report(const std::string& program, const std::string& message, int code) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), message.c_str());
  return code;
}

}  // namespace

void describe(CLI::App& app, const std::string& example) {
  app.set_version_flag("--version", app.get_name() + " " + version_text());
  app.option_defaults()->always_capture_default();
  app.footer("Example:\n  " + example +
             "\n\nExit codes: 0 ok, 1 runtime, 2 usage, 3 data or checkpoint invalid, 4 device "
             "missing or out of memory, "
             "5 training left the finite numbers, 130/143 interrupted after saving.");
  app.get_formatter()->column_width(34);
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i)
    arguments.push_back(kebab(argv[i]));  // CLI11 takes them last first
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(app.get_name(), std::string(error.what()) + " (--help lists the flags)", 2);
  }
  try {
    const int code = body();
    std::cout.flush();
    if (!std::cout)
      fail(Fault::runtime, "[stdout] could not be written; is it closed, or the disk full?");
    return code;
  } catch (const Interrupted& interrupted) {
    return report(app.get_name(), "interrupted", signal_exit_code(interrupted.signal));
  } catch (const Error& error) {
    return report(app.get_name(), error.what(), static_cast<int>(error.fault()));
  } catch (const std::bad_alloc&) {
    return report(app.get_name(), "out of host memory; lower --batch",
                  static_cast<int>(Fault::device));
  } catch (const std::exception& error) {
    return report(app.get_name(), error.what(), static_cast<int>(Fault::runtime));
  }
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A closed pipe or a file at its size limit is a write error, not a death.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

int caught_signal() {
  return signal_number.load();
}

void throw_if_interrupted() {
  if (const int number = caught_signal()) throw Interrupted{number};
}

}  // namespace fm

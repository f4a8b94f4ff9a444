// What every tool's main does: parse, run, turn failures into one line on stderr and an exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace fm {

// An App with --version, help that shows defaults, and `example` at the end of --help.
void describe(CLI::App& app, const std::string& example);

// Parses (snake_case flags count as kebab-case), runs `body`, returns the exit code: 0, or a
// Fault's value, or 2 for a usage error of the command line, or 130 / 143 where a signal stopped
// it.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

// SIGINT and SIGTERM set a flag that long work polls; the second one ends the process at once.
void catch_signals();
int caught_signal();  // 0: none
inline int signal_exit_code(int signal) {
  return 128 + signal;
}

// Thrown where work stops for a signal and has nothing to save.
struct Interrupted {
  int signal;
};
void throw_if_interrupted();

}  // namespace fm

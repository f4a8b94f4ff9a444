// Running the real tools: their exit code and what they print, in an environment of their own.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/files.h"

namespace fm::test {

using Arguments = std::vector<std::string>;
using Environment = std::map<std::string, std::string>;

inline Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Outcome {
  int code = -1;         // exit code; 128 + the signal that killed it
  std::string out, err;  // empty where they went elsewhere
};

// A started tool (a name in the build's bin/, or a path). It sees PATH, a HOME without a cache and
// `environment`, nothing else; standard input is empty. Killed where the test ends before it does.
class Program {
 public:
  Program(const std::string& name, const Arguments& arguments, const Environment& environment = {},
          const std::string& out = "", const std::string& err = "") {
    Environment variables = {{"PATH", ::getenv("PATH")}, {"HOME", folder_.path().string()}};
    for (const auto& [key, value] : environment) variables[key] = value;
    std::vector<std::string> settings;
    for (const auto& [key, value] : variables) settings.push_back(key + "=" + value);
    const std::string binary =
        name.find('/') == std::string::npos ? std::string(FM_BINARY_DIR) + "/" + name : name;
    const auto pointers = [](const std::vector<std::string>& texts) {
      std::vector<char*> all;
      for (const std::string& text : texts) all.push_back(const_cast<char*>(text.c_str()));
      all.push_back(nullptr);
      return all;
    };
    const Arguments all = Arguments{binary} + arguments;
    out_ = out.empty() ? (folder_ / "out").string() : out;
    err_ = err.empty() ? (folder_ / "err").string() : err;
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, out_.c_str(), O_WRONLY | O_CREAT | O_NOCTTY, 0600);
    posix_spawn_file_actions_addopen(&files, 2, err_.c_str(), O_WRONLY | O_CREAT | O_NOCTTY, 0600);
    const int error = ::posix_spawn(&process_, binary.c_str(), &files, nullptr,
                                    pointers(all).data(), pointers(settings).data());
    posix_spawn_file_actions_destroy(&files);
    REQUIRE_MESSAGE(error == 0, "could not start ", binary);
  }
  ~Program() {
    if (process_ > 0) signal(SIGKILL), wait();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void signal(int number) const { ::kill(process_, number); }

  bool ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == process_;
  }

  Outcome wait() {
    int status = 0;
    while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
    }
    process_ = 0;
    const auto text = [&](const std::string& path) {
      return path.starts_with(folder_.path().string()) ? get(path) : "";
    };
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text(out_),
            text(err_)};
  }

 private:
  TemporaryFolder folder_;
  std::string out_, err_;
  pid_t process_ = 0;
};

inline Outcome run(const std::string& name, const Arguments& arguments,
                   const Environment& environment = {}) {
  return Program(name, arguments, environment).wait();
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The tool must end with `code` and say `phrase` on stderr; a failure is one line there and
// nothing on stdout.
inline Outcome expect_end(int code, const std::string& phrase, const std::string& name,
                          const Arguments& arguments, const Environment& environment = {}) {
  const Outcome outcome = run(name, arguments, environment);
  std::string line = name;
  for (const std::string& argument : arguments) line += " " + argument;
  INFO(line);
  INFO("stderr: ", outcome.err);
  INFO("expected: ", phrase);
  CHECK(outcome.code == code);
  CHECK(contains(outcome.err, phrase));
  if (code != 0 && code < 128) CHECK(outcome.out.empty());
  return outcome;
}

// Waits (up to a minute) until the condition holds.
template <class Condition>
void wait_until(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    REQUIRE_MESSAGE((std::chrono::steady_clock::now() < end), "it never came to be");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace fm::test

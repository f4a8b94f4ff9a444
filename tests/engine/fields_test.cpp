#include "engine/io/fields.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/files.h"

namespace fm::test {
namespace {

struct Everything {
  int count = -3;
  std::int64_t wide = std::numeric_limits<std::int64_t>::min();
  std::uint64_t seed = std::numeric_limits<std::uint64_t>::max();
  float rate = 0.1f;
  double exact = 0.1;
  bool on = true;
  std::string text = "a \"b\" \xc3\xa9";
  std::vector<std::string> names = {"x", ""};
  std::vector<double> betas = {0.9, 1};

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("count", self.count, "");
    visit("wide", self.wide, "");
    visit("seed", self.seed, "");
    visit("rate", self.rate, "");
    visit("exact", self.exact, "");
    visit("on", self.on, "");
    visit("text", self.text, "");
    visit("names", self.names, "");
    visit("betas", self.betas, "");
  }
  bool operator==(const Everything&) const = default;
};

Everything parsed(const std::string& text) {
  Everything value;
  from_json(value, Json::parse(text), "a.json");
  return value;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("fields: a struct goes to JSON and back without loss, in the order of its fields") {
    Everything value;
    value.rate = 1.0f / 3;
    value.exact = 1.0 / 3;
    value.names = {};
    value.betas = {1e-300, -0.0, 3};
    const std::string text = to_json(value).dump();
    CHECK(text.starts_with(
        "{\"count\":-3,\"wide\":-9223372036854775808,\"seed\":18446744073709551615"));
    CHECK(parsed(text) == value);
    CHECK(parsed(to_json(Everything{}).dump()) == Everything{});
  }

  TEST_CASE("fields: those that are there are read and named, the others stay") {
    Everything value;
    const auto read = from_json(value, Json::parse("{\"on\":false,\"count\":5}"), "a.json");
    CHECK(read == std::set<std::string>{"count", "on"});
    Everything wanted;
    wanted.on = false;
    wanted.count = 5;
    CHECK(value == wanted);
    CHECK(from_json(value, Json::object(), "a.json").empty());
  }

  TEST_CASE("fields: whole numbers may stand for real ones, and reach the limits") {
    CHECK(parsed("{\"exact\":3}").exact == 3);
    CHECK(parsed("{\"betas\":[1,0.5]}").betas == std::vector<double>{1, 0.5});
    CHECK(parsed("{\"count\":2147483647}").count == 2147483647);
    CHECK(parsed("{\"count\":-2147483648}").count == std::numeric_limits<int>::min());
    CHECK(parsed("{\"wide\":9223372036854775807}").wide ==
          std::numeric_limits<std::int64_t>::max());
    CHECK(parsed("{\"seed\":0}").seed == 0);
  }

  TEST_CASE("fields: a value of the wrong type or out of range is refused by name") {
    struct Bad {
      const char *json, *phrase;
    };
    const Bad cases[] = {
        {"{\"count\":\"5\"}", "[config] count must be a whole number in range, got \"5\" (a.json)"},
        {"{\"count\":5.0}", "count must be a whole number in range, got 5.0"},
        {"{\"count\":true}", "count must be a whole number in range, got true"},
        {"{\"count\":null}", "count must be a whole number in range, got null"},
        {"{\"count\":[1]}", "count must be a whole number in range, got [1]"},
        {"{\"count\":2147483648}", "count must be a whole number in range, got 2147483648"},
        {"{\"count\":-2147483649}", "count must be a whole number in range, got -2147483649"},
        {"{\"count\":18446744073709551615}", "count must be a whole number"},
        {"{\"wide\":9223372036854775808}", "wide must be a whole number in range"},
        {"{\"seed\":-1}", "seed must be a whole number in range, got -1"},
        {"{\"seed\":18446744073709551616}", "seed must be a whole number in range"},
        {"{\"rate\":\"fast\"}", "rate must be a number, got \"fast\""},
        {"{\"exact\":false}", "exact must be a number, got false"},
        {"{\"on\":1}", "on must be true or false, got 1"},
        {"{\"on\":\"true\"}", "on must be true or false, got \"true\""},
        {"{\"text\":5}", "text must be a string, got 5"},
        {"{\"names\":\"x\"}", "names must be a list, got \"x\""},
        {"{\"names\":[\"x\",1]}", "names must be a list, got [\"x\",1]"},
        {"{\"betas\":[0.9,\"x\"]}", "betas must be a list, got [0.9,\"x\"]"},
        {"{\"betas\":{}}", "betas must be a list, got {}"},
        {"[]", "[config] a.json must be a JSON object, got array"},
        {"3", "[config] a.json must be a JSON object, got number"},
    };
    for (const Bad& bad : cases) expect_fault(Fault::data, bad.phrase, [&] { parsed(bad.json); });
  }

  TEST_CASE("fields: an unknown name is refused with those there are, or allowed") {
    expect_fault(Fault::data,
                 "[config] cuont is no field; there are betas, count, exact, names, on, rate, "
                 "seed, text, wide (a.json)",
                 [] { parsed("{\"count\":1,\"cuont\":2}"); });
    Everything value;
    const auto read = from_json(value, Json::parse("{\"count\":1,\"cuont\":2}"), "a.json", true);
    CHECK(read == std::set<std::string>{"count"});
    CHECK(value.count == 1);
  }
}

}  // namespace fm::test

// What the C++ tests check with. A failed check is printed and counted; main returns the count.
#ifndef STOF_TESTS_CHECKS_H
#define STOF_TESTS_CHECKS_H

#include <cstdio>
#include <exception>
#include <string>

namespace stof {
namespace tests {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool holds, const std::string& what, const char* file, int line) {
  if (holds) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures();
}

// The message of the Error that `run` throws; a failed check if it throws none.
template <typename Error, typename Run>
std::string message_of(Run run, const std::string& what, const char* file, int line) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    check(false, what + ": another exception: " + error.what(), file, line);
    return std::string();
  }
  check(false, what + ": nothing was thrown", file, line);
  return std::string();
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline void check_contains(const std::string& text, const std::string& part,
                           const std::string& what, const char* file, int line) {
  check(contains(text, part), what + ": \"" + text + "\" lacks \"" + part + "\"", file, line);
}

}  // namespace tests
}  // namespace stof

#define CHECK(condition) ::stof::tests::check((condition), #condition, __FILE__, __LINE__)

#define CHECK_CONTAINS(text, part) \
  ::stof::tests::check_contains((text), (part), #text, __FILE__, __LINE__)

// `run` throws an Error whose message contains `part`; `what` names the case.
#define CHECK_THROWS(Error, run, part, what)                                               \
  ::stof::tests::check_contains(                                                           \
      ::stof::tests::message_of<Error>((run), (what), __FILE__, __LINE__), (part), (what), \
      __FILE__, __LINE__)

#endif  // STOF_TESTS_CHECKS_H

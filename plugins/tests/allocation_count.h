// Counts the heap allocations of the program that is linked with allocation_count.cpp.
#ifndef STOF_TESTS_ALLOCATION_COUNT_H
#define STOF_TESTS_ALLOCATION_COUNT_H

namespace stof {
namespace tests {

// Calls of operator new since the program started, in all threads.
int allocation_count();

}  // namespace tests
}  // namespace stof

#endif  // STOF_TESTS_ALLOCATION_COUNT_H

# Flags every target shares. Release keeps CHECKs: an invariant that is only tested in debug builds
# is not tested where it matters.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
# Sanitizer builds: line numbers are all a report needs, and -O1 halves the time of CI.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")

add_library(moraine_options INTERFACE)
target_compile_options(moraine_options INTERFACE -Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor
                       -fno-math-errno -ffp-contract=off)
target_include_directories(moraine_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
if(MORAINE_SANITIZER)
  # GCC's flow analysis cannot see through the instrumentation and finds false positives in libstdc++;
  # the release build has the warning on.
  target_compile_options(moraine_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
endif()
if(MORAINE_SANITIZER STREQUAL "address")
  # g++ needs a third more time for the three checks that are left out; ASan sees most of what they do,
  # and the fuzz build, by clang, has them.
  target_compile_options(moraine_options INTERFACE -fsanitize=address,undefined
                         -fno-sanitize=null,object-size,vptr
                         -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(moraine_options INTERFACE -fsanitize=address,undefined)
elseif(MORAINE_SANITIZER STREQUAL "thread")
  target_compile_options(moraine_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  target_link_options(moraine_options INTERFACE -fsanitize=thread)
elseif(MORAINE_SANITIZER STREQUAL "fuzzer")
  target_compile_options(moraine_options INTERFACE -fsanitize=fuzzer-no-link,address,undefined
                         -fno-sanitize-recover=all)
  target_link_options(moraine_options INTERFACE -fsanitize=address,undefined)
endif()

# moraine_library(io SOURCES a.cc b.cc DEPS moraine_memory PkgConfig::liburing)
# defines moraine_<name>, one per folder of src/.
function(moraine_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(moraine_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(moraine_${name} PUBLIC moraine_options ${ARG_DEPS}
                        PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()

# Building tests_asan, tests_tsan or tests_gpu builds just the tests of that run.
add_custom_target(tests_asan)
add_custom_target(tests_tsan)
add_custom_target(tests_gpu)

# moraine_test(io_read_scheduler_test SOURCES io/read_scheduler_test.cc DEPS moraine_io
#              LABELS asan tsan)
# Labels name the runs of test.sh, besides release, that the test takes part in.
function(moraine_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE moraine_options ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(MORAINE_SANITIZER)
    target_compile_options(${name} PRIVATE -O0)  # compiles in less than half of the time
  endif()
  target_compile_definitions(${name} PRIVATE MORAINE_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             MORAINE_BINARY_DIR="${CMAKE_BINARY_DIR}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(MORAINE_SANITIZER)
    math(EXPR ARG_TIMEOUT "4 * ${ARG_TIMEOUT}")
  endif()
  foreach(run asan tsan gpu)
    if(run IN_LIST ARG_LABELS)
      add_dependencies(tests_${run} ${name})
    endif()
  endforeach()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# Keeps a budget on the time that HEADER costs a user: the CPU time to compile a file with it, compared in the same run
# with a file that has only the headers from outside cbq that HEADER reaches. Best of a few runs each.
#
#   cmake -D INCLUDE_DIR=<source>/include -D HEADER=gemm.hpp -D BUDGET=170 (percent) -D WORK_DIR=<folder>
#         -D COMPILER=<compiler> -D FLAGS=<response file> -P compile_time.cmake

cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/includes.cmake)

file(MAKE_DIRECTORY ${WORK_DIR})
file(WRITE ${WORK_DIR}/with.cpp "#include <cbq/${HEADER}>\n")
reached_from(${HEADER} names)
file(WRITE ${WORK_DIR}/without.cpp "")
foreach(name IN LISTS names)
  # Headers of another architecture or operating system are behind #if in cbq, too. Clang has those of all.
  set(condition "__has_include(<${name}>)")
  if(name STREQUAL "arm_neon.h")
    set(condition "defined(__aarch64__)")
  elseif(name MATCHES "^(immintrin|cpuid)\\.h$")
    set(condition "defined(__x86_64__)")
  endif()
  file(APPEND ${WORK_DIR}/without.cpp "#if ${condition}\n#include <${name}>\n#endif\n")
endforeach()

# Lowers `result` to the user CPU time in milliseconds, best of three.
function(measure source result)
  set(best ${${result}})
  foreach(run RANGE 2)
    execute_process(
      COMMAND bash -c "TIMEFORMAT=%3U; time \"$@\"" bash ${COMPILER} -std=c++20 -O2 -I${INCLUDE_DIR} @${FLAGS} -c
              ${WORK_DIR}/${source} -o ${WORK_DIR}/${source}.o
      COMMAND_ERROR_IS_FATAL ANY ERROR_VARIABLE time)
    string(REGEX MATCH "([0-9]+)\\.([0-9][0-9][0-9])" matched "${time}")
    math(EXPR milliseconds "${CMAKE_MATCH_1} * 1000 + 1${CMAKE_MATCH_2} - 1000")
    if(milliseconds LESS best)
      set(best ${milliseconds})
    endif()
  endforeach()
  set(${result} ${best} PARENT_SCOPE)
endfunction()

# What exceeds the budget on a busy machine is measured again: both times come down to what the compiler needs.
set(with 1000000)
set(without 1000000)
foreach(attempt RANGE 4)
  measure(with.cpp with)
  measure(without.cpp without)
  math(EXPR percent "100 * ${with} / ${without}")
  set(text "<cbq/${HEADER}>: ${with} ms, the headers it stands on: ${without} ms, ${percent} %, budget ${BUDGET} %")
  message(STATUS "${text}")
  if(percent LESS_EQUAL BUDGET)
    return()
  endif()
endforeach()
message(FATAL_ERROR "${text}")

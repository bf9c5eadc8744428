# Compiles SNIPPET with COMMAND; passes when that fails and an error line has the expected text. With -DCBQ_CORRECT the
# snippet uses the same feature rightly and must compile: else it would fail for a reason of its own.

cmake_minimum_required(VERSION 3.25)

file(STRINGS ${SNIPPET} first_line LIMIT_COUNT 1)
if(NOT first_line MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "${SNIPPET}: the first line must be `// expect: <text>`")
endif()
set(expected "${CMAKE_MATCH_1}")
list(TRANSFORM INCLUDE_DIRS PREPEND "-I")

execute_process(COMMAND ${COMMAND} ${INCLUDE_DIRS} -DCBQ_CORRECT ${SNIPPET} RESULT_VARIABLE failed ERROR_VARIABLE log)
if(failed)
  message(FATAL_ERROR "${SNIPPET}: does not compile with -DCBQ_CORRECT either:\n${log}")
endif()

execute_process(COMMAND ${COMMAND} ${INCLUDE_DIRS} ${SNIPPET} RESULT_VARIABLE failed ERROR_VARIABLE log)
if(NOT failed)
  message(FATAL_ERROR "${SNIPPET}: compiles, but must not")
endif()
string(REGEX MATCHALL "[^\n]*error:[^\n]*" error_lines "${log}")
string(FIND "${error_lines}" "${expected}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "${SNIPPET}: no error line has the text\n  ${expected}\nThe compiler said:\n${log}")
endif()

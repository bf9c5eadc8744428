# Two files exchange an AlignedBuffer, one compiled for the baseline and one for AVX-512. Passes when their link fails and
# the message names both kinds of buffer; and when the same files, compiled with the same flags, do link.

cmake_minimum_required(VERSION 3.25)
list(TRANSFORM INCLUDE_DIRS PREPEND "-I")
file(MAKE_DIRECTORY ${WORK_DIR})

function(compile source flags)
  execute_process(COMMAND ${COMPILER} -std=c++20 ${flags} ${INCLUDE_DIRS} -c ${SOURCE_DIR}/${source} -o ${WORK_DIR}/${source}.o
                  COMMAND_ERROR_IS_FATAL ANY)
endfunction()
set(link ${COMPILER} ${WORK_DIR}/owner_baseline.cpp.o ${WORK_DIR}/owner_v4.cpp.o -o ${WORK_DIR}/owner)

compile(owner_baseline.cpp "")
compile(owner_v4.cpp "")
execute_process(COMMAND ${link} COMMAND_ERROR_IS_FATAL ANY)

compile(owner_v4.cpp -march=x86-64-v4)
execute_process(COMMAND ${link} RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
if(NOT failed)
  message(FATAL_ERROR "exchanging an owner between files with different -march links, but must not")
endif()
foreach(text "_baseline::AlignedBuffer<float>" "_avx512::AlignedBuffer<float>")
  string(FIND "${log}" "${text}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "the link error does not name ${text}:\n${log}")
  endif()
endforeach()

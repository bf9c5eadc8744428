# Fails when an object file holds kernels that <cbq/gemm/extern_kernels.hpp> keeps out, or when a library lacks them.
#
#   cmake -D NM=<nm> -D WITHOUT=<object> -D WITH=<library> -P no_kernels.cmake

foreach(object ${WITHOUT} ${WITH})
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  # Mangled: namespace isa, an instruction set, and the name of a kernel that is a template of bits and zero point.
  string(REGEX MATCHALL "3isa[0-9]+[a-z0-9_]+12(integer_tile|decode_panel|decode_pairs)I" kernels "${symbols}")
  list(LENGTH kernels count)
  message(STATUS "${object}: ${count} kernels")
  if(object STREQUAL WITHOUT AND NOT count EQUAL 0)
    message(FATAL_ERROR "a file that includes <cbq/gemm/extern_kernels.hpp> holds kernels")
  elseif(object STREQUAL WITH AND count LESS 16)
    message(FATAL_ERROR "the library of the kernels does not hold them")
  endif()
endforeach()

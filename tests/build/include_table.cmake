# Compares every #include in include/cbq with the table of allowed edges. Floors run bottom-up without circles, so that
# an engine that only runs models pays for neither calibration nor algebra.
#
#   cmake -D INCLUDE_DIR=<source>/include -P include_table.cmake

cmake_minimum_required(VERSION 3.25)

# Floor: the folders and libraries its headers may include directly. The same folder is always allowed; <cbq/x.hpp>
# counts as floor x. `std` stands for the standard library, the compiler's intrinsics and the operating system.
set(allowed_config std)
set(allowed_core config std)
set(allowed_scheme config core std)
set(allowed_quant config core scheme std xsimd)
set(allowed_transform config core scheme quant std xsimd)
set(allowed_outlier config core scheme quant transform std)
set(allowed_rounding config core scheme quant std Eigen)
set(allowed_loss config core std)
set(allowed_gemm config core scheme std)
set(allowed_kv config core scheme quant transform gemm std)
set(allowed_prune config core kv std)
set(allowed_nn config core scheme quant transform outlier rounding loss gemm kv prune std Eigen)
set(allowed_reconstruct config core scheme quant transform outlier rounding loss gemm kv nn std Eigen)
set(allowed_io config core scheme gemm std nlohmann)
set(allowed_executor config core std omp tbb)
# The umbrella is everything but io, which needs nlohmann_json, and the executor adapters, which need their libraries.
set(allowed_cbq config core scheme quant transform outlier rounding loss gemm kv prune nn reconstruct)

# Single headers that may include more than their folder.
set(extra_gemm/kernels_portable.hpp xsimd)
set(extra_gemm/pack_float.hpp quant)

# What <cbq/gemm.hpp> and <cbq/kv.hpp> must not reach, by any path: these dominate the time to compile a file that
# includes them.
set(light_headers gemm.hpp kv.hpp)
set(heavy xsimd Eigen memory atomic stop_token)

set(problems "")

# The floor of a path below include/cbq: "gemm/tile.hpp" and "gemm.hpp" are gemm.
function(floor_of path result)
  string(REGEX REPLACE "(/.*|\\.hpp)$" "" floor "${path}")
  set(${result} "${floor}" PARENT_SCOPE)
endfunction()

# The included paths of one header, in order, without brackets.
function(includes_of path result)
  file(STRINGS "${INCLUDE_DIR}/cbq/${path}" lines REGEX "^ *# *include *[<\"]")
  set(names "")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^ *# *include *[<\"]([^>\"]*).*$" "\\1" name "${line}")
    list(APPEND names "${name}")
    if(line MATCHES "include *\"")
      list(APPEND names "QUOTED")
    endif()
  endforeach()
  set(${result} "${names}" PARENT_SCOPE)
endfunction()

# Which library a header outside cbq belongs to.
function(library_of name result)
  if(name MATCHES "^(xsimd|Eigen|nlohmann|tbb|oneapi/tbb)/" OR name MATCHES "^(omp)\\.h$")
    string(REGEX REPLACE "^oneapi/" "" library "${name}")
    string(REGEX REPLACE "[/.].*$" "" library "${library}")
    set(${result} ${library} PARENT_SCOPE)
  elseif(name MATCHES "^(unsupported/|benchmark/|catch2/|CLI/)")
    set(${result} "${name}" PARENT_SCOPE)
  else()
    set(${result} std PARENT_SCOPE)
  endif()
endfunction()

file(GLOB_RECURSE headers RELATIVE "${INCLUDE_DIR}/cbq" "${INCLUDE_DIR}/cbq/*.hpp")
list(LENGTH headers count)
foreach(header IN LISTS headers)
  floor_of(${header} floor)
  if(NOT DEFINED allowed_${floor})
    list(APPEND problems "${header}: floor ${floor} is not in the table")
    continue()
  endif()
  set(allowed ${allowed_${floor}} ${floor} ${extra_${header}})
  includes_of(${header} names)
  foreach(name IN LISTS names)
    if(name STREQUAL "QUOTED")
      list(APPEND problems "${header}: includes with quotes; write <cbq/...>")
      continue()
    endif()
    if(name MATCHES "^cbq/(.*)$")
      floor_of(${CMAKE_MATCH_1} to)
      if(NOT EXISTS "${INCLUDE_DIR}/${name}")
        list(APPEND problems "${header}: includes <${name}>, which does not exist")
      endif()
    else()
      library_of(${name} to)
    endif()
    if(NOT to IN_LIST allowed)
      list(APPEND problems "${header}: includes <${name}>, but ${floor} may not include ${to}")
    endif()
  endforeach()
endforeach()

# Follow includes from the light headers.
foreach(light IN LISTS light_headers)
  if(NOT EXISTS "${INCLUDE_DIR}/cbq/${light}")
    continue()
  endif()
  set(queue ${light})
  set(seen ${light})
  while(queue)
    list(POP_FRONT queue header)
    includes_of(${header} names)
    foreach(name IN LISTS names)
      library_of(${name} library)
      if(name IN_LIST heavy OR library IN_LIST heavy)
        list(APPEND problems "${light}: reaches <${name}> through ${header}")
      elseif(name MATCHES "^cbq/(.*)$" AND NOT CMAKE_MATCH_1 IN_LIST seen AND EXISTS "${INCLUDE_DIR}/${name}")
        list(APPEND queue ${CMAKE_MATCH_1})
        list(APPEND seen ${CMAKE_MATCH_1})
      endif()
    endforeach()
  endwhile()
endforeach()

if(problems)
  list(JOIN problems "\n  " text)
  message(FATAL_ERROR "The headers break the include table:\n  ${text}")
endif()
message(STATUS "${count} headers obey the include table")

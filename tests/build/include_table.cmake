# Compares every #include in include/cbq with the table of allowed edges. Floors run bottom-up without circles, so that
# an engine that only runs models pays for neither calibration nor algebra.
#
#   cmake -D INCLUDE_DIR=<source>/include -P include_table.cmake

cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/includes.cmake)

# Floor: the folders and libraries its headers may include directly. The same folder is always allowed; <cbq/x.hpp>
# counts as floor x. `std` stands for the standard library, the compiler's intrinsics and the operating system.
set(allowed_config std)
set(allowed_core config std)
set(allowed_scheme config core std)
set(allowed_quant config core scheme std xsimd)
set(allowed_transform config core scheme quant std xsimd)
set(allowed_outlier config core scheme quant transform std)
set(allowed_loss config core std xsimd)
set(allowed_gemm config core scheme std)
set(allowed_rounding config core scheme quant gemm std Eigen xsimd)
set(allowed_kv config core scheme quant transform gemm std xsimd)
set(allowed_prune config core kv std)
set(allowed_nn config core scheme quant transform outlier rounding loss gemm kv prune std Eigen xsimd)
set(allowed_reconstruct config core scheme quant transform outlier rounding loss gemm kv nn std Eigen xsimd)
set(allowed_io config core scheme gemm std nlohmann)
set(allowed_executor config core std omp tbb)
# The umbrella is everything but io, which needs nlohmann_json, and the executor adapters, which need their libraries.
set(allowed_cbq config core scheme quant transform outlier rounding loss gemm kv prune nn reconstruct)

# Single headers that may include more than their folder.
set(extra_gemm/kernels_portable.hpp xsimd)
set(extra_gemm/pack_float.hpp quant)
set(extra_gemm/float_codes.hpp quant)
set(extra_gemm/float_scales_avx2.hpp quant)
set(extra_gemm/float_scales_avx512.hpp quant)
set(extra_gemm/scale_headers.hpp quant)
set(extra_gemm/int4_tokens.hpp quant)
set(extra_gemm/nibble_weights.hpp quant)
set(extra_io/gguf_encoding.hpp quant)

# What these umbrellas must not reach, by any path. An engine that only runs models includes them: no algebra; and on the
# way to the matmul nothing that dominates the time to compile a file.
set(light_headers gemm.hpp kv.hpp)
set(heavy_gemm.hpp xsimd Eigen memory atomic stop_token)
set(heavy_kv.hpp Eigen)

set(problems "")

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

foreach(light IN LISTS light_headers)
  reached_from(${light} names)
  foreach(name IN LISTS names)
    library_of(${name} library)
    if(name IN_LIST heavy_${light} OR library IN_LIST heavy_${light})
      list(APPEND problems "${light}: reaches <${name}>")
    endif()
  endforeach()
endforeach()

if(problems)
  list(JOIN problems "\n  " text)
  message(FATAL_ERROR "The headers break the include table:\n  ${text}")
endif()
message(STATUS "${count} headers obey the include table")

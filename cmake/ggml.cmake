# The target cbq_ggml where ggml, the library of llama.cpp, is found: installed, or a source tree and the folder that it
# was built in (CBQ_LLAMA_DIR, CBQ_LLAMA_BUILD). Nothing is vendored or fetched. For examples/ggml_op and bench/peers.

if(TARGET cbq_ggml)
  return()
endif()

set(CBQ_LLAMA_DIR "" CACHE PATH "Source tree of llama.cpp, for examples/ggml_op and bench/peers")
set(CBQ_LLAMA_BUILD "${CBQ_LLAMA_DIR}/build" CACHE PATH "Where llama.cpp was built")

# A tree that the user names comes before an installed package.
if(NOT CBQ_LLAMA_DIR)
  find_package(ggml CONFIG QUIET)
endif()
if(TARGET ggml::ggml)
  add_library(cbq_ggml INTERFACE)
  target_link_libraries(cbq_ggml INTERFACE ggml::ggml)
  return()
endif()

find_path(CBQ_GGML_INCLUDE ggml-cpu.h HINTS ${CBQ_LLAMA_DIR}/ggml/include)
set(_cbq_ggml_libraries "")
foreach(part ggml ggml-base ggml-cpu)
  find_library(CBQ_${part}_LIBRARY ${part} HINTS ${CBQ_LLAMA_BUILD}/bin ${CBQ_LLAMA_BUILD}/ggml/src)
  if(CBQ_${part}_LIBRARY)
    list(APPEND _cbq_ggml_libraries ${CBQ_${part}_LIBRARY})
  endif()
endforeach()
list(LENGTH _cbq_ggml_libraries _cbq_found)
if(CBQ_GGML_INCLUDE AND _cbq_found EQUAL 3)
  add_library(cbq_ggml INTERFACE)
  # Headers of other projects are not ours to keep free of warnings.
  target_include_directories(cbq_ggml SYSTEM INTERFACE ${CBQ_GGML_INCLUDE})
  target_link_libraries(cbq_ggml INTERFACE ${_cbq_ggml_libraries})
endif()

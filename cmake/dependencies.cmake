# The libraries that cbq, its tests, benchmarks and examples use.
#
# What find_package finds in a supported version is used. What is missing is brought by this configure step, without
# root, into ${CBQ_DEPENDENCY_DIR} in the build tree: the pinned upstream release, or, where upstream cannot be reached
# on a Debian-family machine, the distribution's packages. Both land in one prefix that find_package then searches, so
# there is one way in for everything that follows, the installed package's tests included.
#
# Versions are compared by hand: no single version request accepts both majors of Eigen or of xsimd.

include(${CMAKE_CURRENT_LIST_DIR}/debian_packages.cmake)
list(PREPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})  # FindPCRE2.cmake

option(CBQ_FETCH_DEPENDENCIES "Bring libraries that find_package does not find into the build tree"
       ${PROJECT_IS_TOP_LEVEL})

# Presets build into build/<preset>: they share what one of them fetched.
cmake_path(GET PROJECT_BINARY_DIR PARENT_PATH _cbq_parent)
if(_cbq_parent STREQUAL "${PROJECT_SOURCE_DIR}/build")
  set(_cbq_dependency_default "${PROJECT_SOURCE_DIR}/build/_deps")
else()
  set(_cbq_dependency_default "${PROJECT_BINARY_DIR}/_deps")
endif()
set(CBQ_DEPENDENCY_DIR "${_cbq_dependency_default}" CACHE PATH "Where libraries that are missing are brought to")
set(_cbq_prefix "${CBQ_DEPENDENCY_DIR}/${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}")

# Targets that find_package makes are seen by the project that adds cbq as a subdirectory, too.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL TRUE)

# ---- the table: package, target, versions (first found wins), Debian packages, upstream archive and its SHA-256 ----

# A request of "14" accepts every 14.x; the upper end of a range is the last major that was tested.
set(_cbq_xsimd_target xsimd)
set(_cbq_xsimd_versions 14 13 12.1)
set(_cbq_xsimd_wanted "12.1 to 14.x")
set(_cbq_xsimd_debian libxsimd-dev xtl-dev)  # Debian's xsimd is configured to need xtl
set(_cbq_xsimd_url https://github.com/xtensor-stack/xsimd/archive/refs/tags/13.2.0.tar.gz)
set(_cbq_xsimd_sha256 edd8cd3d548c185adc70321c53c36df41abe64c1fe2c67bc6d93c3ecda82447a)
set(_cbq_xsimd_options "")

set(_cbq_Eigen3_target Eigen3::Eigen)
set(_cbq_Eigen3_versions 5 3.4)
set(_cbq_Eigen3_wanted "3.4 or 5.x")
set(_cbq_Eigen3_debian libeigen3-dev)
set(_cbq_Eigen3_url https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.bz2)
set(_cbq_Eigen3_sha256 b4c198460eba6f28d34894e3a5710998818515104d6e74e5cc331ce31e46e626)
set(_cbq_Eigen3_options -DBUILD_TESTING=OFF -DEIGEN_BUILD_DOC=OFF -DEIGEN_BUILD_PKGCONFIG=ON
    -DCMAKE_POLICY_VERSION_MINIMUM=3.5)

set(_cbq_nlohmann_json_target nlohmann_json::nlohmann_json)
set(_cbq_nlohmann_json_versions 3.10)
set(_cbq_nlohmann_json_wanted "3.10 or newer")
set(_cbq_nlohmann_json_debian nlohmann-json3-dev)
set(_cbq_nlohmann_json_url https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz)
set(_cbq_nlohmann_json_sha256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
set(_cbq_nlohmann_json_options -DJSON_BuildTests=OFF)

set(_cbq_Catch2_target Catch2::Catch2WithMain)
set(_cbq_Catch2_versions 3.4)
set(_cbq_Catch2_wanted "3.4 or newer")
set(_cbq_Catch2_debian libcatch2-dev)
set(_cbq_Catch2_url https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz)
set(_cbq_Catch2_sha256 c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c)
set(_cbq_Catch2_options -DCATCH_BUILD_TESTING=OFF -DCATCH_INSTALL_DOCS=OFF)

set(_cbq_benchmark_target benchmark::benchmark)
set(_cbq_benchmark_versions 1.7)
set(_cbq_benchmark_wanted "1.7 or newer")
set(_cbq_benchmark_debian libbenchmark-dev)
set(_cbq_benchmark_url https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz)
set(_cbq_benchmark_sha256 32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981)
set(_cbq_benchmark_options -DBENCHMARK_ENABLE_TESTING=OFF -DBENCHMARK_INSTALL_DOCS=OFF)

set(_cbq_CLI11_target CLI11::CLI11)
set(_cbq_CLI11_versions 2.1)
set(_cbq_CLI11_wanted "2.1 or newer")
set(_cbq_CLI11_debian libcli11-dev)
set(_cbq_CLI11_url https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz)
set(_cbq_CLI11_sha256 f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a)
set(_cbq_CLI11_options -DCLI11_BUILD_TESTS=OFF -DCLI11_BUILD_EXAMPLES=OFF -DCLI11_BUILD_DOCS=OFF)

# The example engine's tokenizers. Distributions package it without a CMake configuration: FindPCRE2.cmake finds it.
set(_cbq_PCRE2_target PCRE2::8BIT)
set(_cbq_PCRE2_mode MODULE)
set(_cbq_PCRE2_versions 10.40)
set(_cbq_PCRE2_wanted "10.40 or newer")
set(_cbq_PCRE2_debian libpcre2-dev)
set(_cbq_PCRE2_url https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.42/pcre2-10.42.tar.gz)
set(_cbq_PCRE2_sha256 c33b418e3b936ee3153de2c61cc638e7e4fe3156022a5c77d0711bcbb9d64f1f)
set(_cbq_PCRE2_options -DPCRE2_BUILD_PCRE2GREP=OFF -DPCRE2_BUILD_TESTS=OFF -DPCRE2_SUPPORT_JIT=ON)

# oneTBB is optional (an executor adapter and its test) and takes minutes to build: no upstream archive. It is only
# brought along when the distribution's packages are being fetched anyway.
set(_cbq_TBB_target TBB::tbb)
set(_cbq_TBB_versions 2021)
set(_cbq_TBB_debian libtbb-dev)

# ---- finding ----

# A macro, so that the <package>_* variables of find_package reach the caller.
macro(_cbq_find name)
  if(NOT TARGET ${_cbq_${name}_target})
    set(_cbq_mode CONFIG)
    if(DEFINED _cbq_${name}_mode)
      set(_cbq_mode ${_cbq_${name}_mode})
    endif()
    foreach(_cbq_version IN LISTS _cbq_${name}_versions)
      find_package(${name} ${_cbq_version} ${_cbq_mode} QUIET)
      if(${name}_FOUND)
        break()
      endif()
    endforeach()
  endif()
endmacro()

# Appends to <result> the packages among ARGN that are not there in a version that will do.
macro(_cbq_find_all result)
  set(${result} "")
  foreach(_cbq_name ${ARGN})
    _cbq_find(${_cbq_name})
    if(NOT TARGET ${_cbq_${_cbq_name}_target})
      list(APPEND ${result} ${_cbq_name})
    endif()
  endforeach()
endmacro()

# ---- bringing ----

# Downloads one pinned archive, builds it and installs it into the prefix. Any failure is told in <message> and leaves
# nothing behind; a host that does not answer within seconds counts as unreachable.
function(_cbq_install_upstream name message)
  set(work "${_cbq_prefix}/upstream/${name}")
  file(REMOVE_RECURSE "${work}")
  file(DOWNLOAD "${_cbq_${name}_url}" "${work}/archive" TIMEOUT 20 INACTIVITY_TIMEOUT 4 STATUS status)
  list(GET status 0 code)
  if(NOT code EQUAL 0)
    list(GET status 1 reason)
    set(${message} "upstream could not be reached: ${reason}" PARENT_SCOPE)
    file(REMOVE_RECURSE "${work}")
    return()
  endif()
  file(SHA256 "${work}/archive" sha256)
  if(NOT sha256 STREQUAL _cbq_${name}_sha256)
    set(${message} "upstream's archive of ${name} has SHA-256 ${sha256}, not the pinned one" PARENT_SCOPE)
    file(REMOVE_RECURSE "${work}")
    return()
  endif()
  file(ARCHIVE_EXTRACT INPUT "${work}/archive" DESTINATION "${work}/source")
  file(GLOB source LIST_DIRECTORIES TRUE "${work}/source/*")
  message(STATUS "cbq: building ${name} from its upstream release")
  set(toolchain "")
  if(CMAKE_TOOLCHAIN_FILE)
    set(toolchain "-DCMAKE_TOOLCHAIN_FILE=${CMAKE_TOOLCHAIN_FILE}")
  endif()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${source} -B ${work}/build -DCMAKE_BUILD_TYPE=Release ${toolchain}
            -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_INSTALL_PREFIX=${_cbq_prefix}/usr
            -DCMAKE_INSTALL_LIBDIR=lib ${_cbq_${name}_options}
    RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
  if(NOT failed)
    execute_process(COMMAND ${CMAKE_COMMAND} --build ${work}/build --target install --parallel 2
                    RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)
  endif()
  file(REMOVE_RECURSE "${work}")
  if(failed)
    set(${message} "${name} from upstream did not build" PARENT_SCOPE)
  endif()
endfunction()

# Brings the named packages into the prefix; <notes> tells what did not work, for the error message at the end.
function(_cbq_bring notes)
  file(MAKE_DIRECTORY "${_cbq_prefix}")
  # Two presets may be configured at the same moment.
  file(LOCK "${CBQ_DEPENDENCY_DIR}" DIRECTORY GUARD FUNCTION TIMEOUT 600)
  list(APPEND CMAKE_PREFIX_PATH "${_cbq_prefix}/usr")
  _cbq_find_all(missing ${ARGN})
  if(NOT missing)
    return()  # another configure step brought them while this one waited
  endif()

  list(JOIN missing ", " names)
  message(STATUS "cbq: bringing ${names} into ${_cbq_prefix}")
  set(problems "")
  set(left "")
  foreach(name IN LISTS missing)
    set(problem "")
    if(NOT problems)  # one host that does not answer is enough to know
      _cbq_install_upstream(${name} problem)
    endif()
    if(problem OR problems)
      list(APPEND left ${name})
    endif()
    if(problem)
      list(APPEND problems "${problem}")
    endif()
  endforeach()
  if(left)
    list(GET problems 0 problem)
    message(STATUS "cbq: ${problem}; trying the distribution's packages")
    set(packages "")
    foreach(name IN LISTS left)
      list(APPEND packages ${_cbq_${name}_debian})
    endforeach()
    if(CBQ_BUILD_TESTS)
      list(APPEND packages ${_cbq_TBB_debian})
    endif()
    cbq_unpack_debian_packages("${_cbq_prefix}" problem ${packages})
    if(problem)
      list(APPEND problems "${problem}")
    endif()
  endif()
  set(${notes} "${problems}" PARENT_SCOPE)
endfunction()

# ---- what this configuration needs ----

set(_cbq_needed xsimd Eigen3)
if(CBQ_BUILD_TESTS)
  list(APPEND _cbq_needed Catch2 nlohmann_json)
endif()
if(CBQ_BUILD_BENCH)
  list(APPEND _cbq_needed benchmark)
endif()
if(CBQ_BUILD_EXAMPLES OR CBQ_BUILD_TESTS OR CBQ_BUILD_FUZZ)
  # The tests reach the example engine, too.
  list(APPEND _cbq_needed CLI11 nlohmann_json PCRE2)
endif()
list(REMOVE_DUPLICATES _cbq_needed)

if(EXISTS "${_cbq_prefix}/usr")
  list(APPEND CMAKE_PREFIX_PATH "${_cbq_prefix}/usr")
endif()
_cbq_find_all(_cbq_missing ${_cbq_needed})
set(_cbq_notes "")
if(_cbq_missing AND CBQ_FETCH_DEPENDENCIES)
  _cbq_bring(_cbq_notes ${_cbq_missing})
  list(APPEND CMAKE_PREFIX_PATH "${_cbq_prefix}/usr")
  list(REMOVE_DUPLICATES CMAKE_PREFIX_PATH)
  _cbq_find_all(_cbq_missing ${_cbq_needed})
endif()
if(_cbq_missing)
  set(_cbq_text "cbq: these libraries are missing:\n")
  foreach(_cbq_name IN LISTS _cbq_missing)
    list(JOIN _cbq_${_cbq_name}_debian " " _cbq_packages)
    string(APPEND _cbq_text "  ${_cbq_name} ${_cbq_${_cbq_name}_wanted} (Debian, Ubuntu: ${_cbq_packages})\n")
  endforeach()
  string(APPEND _cbq_text "Install them, or name where they are with -DCMAKE_PREFIX_PATH=<prefix>.\n")
  foreach(_cbq_note IN LISTS _cbq_notes)
    string(APPEND _cbq_text "(${_cbq_note})\n")
  endforeach()
  message(FATAL_ERROR "${_cbq_text}")
endif()

# Optional: where they are absent the adapter's target does not exist, and what would use it says so.
find_package(Threads REQUIRED)
find_package(OpenMP QUIET COMPONENTS CXX)
_cbq_find(TBB)
_cbq_find(nlohmann_json)

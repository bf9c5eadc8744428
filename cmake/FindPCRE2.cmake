# Finds the 8-bit library of PCRE2 and makes the target PCRE2::8BIT, as PCRE2's own CMake package would: distributions build
# PCRE2 with autotools, which installs none.

find_library(PCRE2_LIBRARY NAMES pcre2-8)
if(PCRE2_LIBRARY)
  # The header that belongs to the library found: a cross build must not take this machine's.
  cmake_path(GET PCRE2_LIBRARY PARENT_PATH _pcre2_dir)
  find_path(PCRE2_INCLUDE_DIR NAMES pcre2.h PATHS ${_pcre2_dir}/../include ${_pcre2_dir}/../../include NO_DEFAULT_PATH)
  find_path(PCRE2_INCLUDE_DIR NAMES pcre2.h)
endif()
if(PCRE2_INCLUDE_DIR)
  file(STRINGS "${PCRE2_INCLUDE_DIR}/pcre2.h" _pcre2_version REGEX "^#define PCRE2_(MAJOR|MINOR) +[0-9]+")
  string(REGEX REPLACE "#define PCRE2_M[A-Z]+ +" "" _pcre2_version "${_pcre2_version}")
  list(JOIN _pcre2_version "." PCRE2_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PCRE2 REQUIRED_VARS PCRE2_LIBRARY PCRE2_INCLUDE_DIR VERSION_VAR PCRE2_VERSION)
mark_as_advanced(PCRE2_LIBRARY PCRE2_INCLUDE_DIR)

if(PCRE2_FOUND)
  if(NOT TARGET PCRE2::8BIT)
    add_library(PCRE2::8BIT UNKNOWN IMPORTED GLOBAL)
    set_target_properties(PCRE2::8BIT PROPERTIES IMPORTED_LOCATION "${PCRE2_LIBRARY}"
                                                 INTERFACE_INCLUDE_DIRECTORIES "${PCRE2_INCLUDE_DIR}")
  endif()
else()
  # Look again when the next search has more places.
  unset(PCRE2_LIBRARY CACHE)
  unset(PCRE2_INCLUDE_DIR CACHE)
endif()

# Builds and runs the consumer with what pkg-config says of the installed cbq.pc, without CMake. LIBRARY_FLAGS names where
# Eigen and xsimd are when they are not installed system-wide (their own .pc files, unpacked elsewhere, still say /usr).

cmake_minimum_required(VERSION 3.25)
file(MAKE_DIRECTORY ${WORK_DIR})

set(folders "")
string(REPLACE ":" ";" prefixes "$ENV{CMAKE_PREFIX_PATH}")
foreach(prefix IN LISTS prefixes)
  file(GLOB more ${prefix}/share/pkgconfig ${prefix}/lib/pkgconfig ${prefix}/lib/*/pkgconfig)
  list(APPEND folders ${more})
endforeach()
list(JOIN folders ":" folders)
set(ENV{PKG_CONFIG_PATH} "${folders}")

execute_process(COMMAND ${PKG_CONFIG} --modversion cbq OUTPUT_VARIABLE version COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${PKG_CONFIG} --cflags cbq OUTPUT_VARIABLE flags COMMAND_ERROR_IS_FATAL ANY
                OUTPUT_STRIP_TRAILING_WHITESPACE)
string(STRIP "${version}" version)
separate_arguments(flags)
execute_process(
  COMMAND ${CMAKE_CXX_COMPILER} ${STANDARD_OPTION} ${flags} @${LIBRARY_FLAGS} -DEXPECTED_VERSION="${version}"
          ${CONSUMER_DIR}/main.cpp -o ${WORK_DIR}/consumer
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK_DIR}/consumer COMMAND_ERROR_IS_FATAL ANY)

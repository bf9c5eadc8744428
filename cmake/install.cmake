# Install rules: headers, CMake package, pkg-config file. cbq is headers only, so everything is independent of the
# architecture and goes to share/.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(_cbq_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/cbq")

install(TARGETS cbq EXPORT cbqTargets FILE_SET HEADERS)
install(EXPORT cbqTargets NAMESPACE cbq:: DESTINATION ${_cbq_package_dir})

configure_package_config_file(cmake/cbqConfig.cmake.in "${PROJECT_BINARY_DIR}/cbqConfig.cmake"
                              INSTALL_DESTINATION ${_cbq_package_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 each minor version may break its users.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cbqConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/cbqConfig.cmake" "${PROJECT_BINARY_DIR}/cbqConfigVersion.cmake"
        DESTINATION ${_cbq_package_dir})

configure_file(cmake/cbq.pc.in "${PROJECT_BINARY_DIR}/cbq.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/cbq.pc" DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION ${CMAKE_INSTALL_DOCDIR})

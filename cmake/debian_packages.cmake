# Brings Debian packages into a folder without root and without touching the machine's own apt state.
#
#   cbq_unpack_debian_packages(<prefix> <message-variable> <package>...)
#
# unpacks the packages so that <prefix>/usr/include, <prefix>/usr/lib ... exist. Sets <message-variable> to an empty
# string, or to the reason why nothing was done. Works on Debian and on distributions made from it.
#
# How: apt is run on a private state (lists, cache, sources), so neither root nor an earlier `apt-get update` is needed.
# Mirror and key are those of the machine's own apt configuration: no host is named here. The packages are header-only
# or small libraries that need nothing but libstdc++, so `dpkg -x` is a full installation for the compiler's purposes.

# One line per repository of the machine: "<uri> <release> <component> <file that declares it>".
function(_cbq_apt_repositories result)
  # ReleaseInfo=false: list also what was never updated (a fresh container has no lists).
  execute_process(
    COMMAND apt-get indextargets -o APT::Get::IndexTargets::ReleaseInfo=false
            --format "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SOURCESENTRY)" "Created-By: Packages"
    OUTPUT_VARIABLE lines ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REPLACE "\n" ";" lines "${lines}")
  list(REMOVE_DUPLICATES lines)
  set(${result} "${lines}" PARENT_SCOPE)
endfunction()

# The keyring that the sources file names, or the distribution's usual one, or nothing (apt's default keyrings).
function(_cbq_apt_key sources_file result)
  set(key "")
  if(EXISTS "${sources_file}")
    file(READ "${sources_file}" text)
    if(text MATCHES "[Ss]igned-[Bb]y[:=] *(/[^] \n]+)")
      set(key "${CMAKE_MATCH_1}")
    endif()
  endif()
  if(NOT key AND EXISTS "/usr/share/keyrings/debian-archive-keyring.gpg")
    set(key "/usr/share/keyrings/debian-archive-keyring.gpg")
  endif()
  set(${result} "${key}" PARENT_SCOPE)
endfunction()

# The suite that holds a package in a version new enough. Only Debian 12 needs others than its own: its xsimd (8.1) and
# Catch2 (2.13) are too old; the first is header-only, the second is built for Debian 12 in its backports.
function(_cbq_debian_suite package codename result)
  set(suite ${codename})
  if(codename STREQUAL "bookworm")
    if(package MATCHES "^(libxsimd-dev|xtl-dev)$")
      set(suite trixie)
    elseif(package STREQUAL "libcatch2-dev")
      set(suite bookworm-backports)
    endif()
  endif()
  set(${result} ${suite} PARENT_SCOPE)
endfunction()

function(cbq_unpack_debian_packages prefix message_variable)
  set(${message_variable} "" PARENT_SCOPE)
  find_program(CBQ_APT_GET apt-get)
  find_program(CBQ_DPKG dpkg)
  mark_as_advanced(CBQ_APT_GET CBQ_DPKG)
  if(NOT CBQ_APT_GET OR NOT CBQ_DPKG OR NOT EXISTS /etc/os-release)
    set(${message_variable} "not a Debian-family machine" PARENT_SCOPE)
    return()
  endif()
  file(STRINGS /etc/os-release os_release REGEX "^VERSION_CODENAME=")
  string(REGEX REPLACE "^VERSION_CODENAME=\"?([^\"]*)\"?$" "\\1" codename "${os_release}")
  _cbq_apt_repositories(repositories)
  if(NOT codename OR NOT repositories)
    set(${message_variable} "apt has no package sources on this machine" PARENT_SCOPE)
    return()
  endif()

  # A cross build takes the libraries of the machine it builds for.
  execute_process(COMMAND dpkg --print-architecture OUTPUT_VARIABLE arch OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(CMAKE_CROSSCOMPILING AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    set(arch arm64)
  endif()

  # Mirror, key and components: the machine's own suite tells them, and the other suites live on the same mirror.
  set(components "")
  foreach(line IN LISTS repositories)
    string(REPLACE " " ";" line "${line}")
    list(GET line 0 uri)
    list(GET line 1 release)
    list(GET line 2 component)
    list(GET line 3 declared_in)
    if(release STREQUAL codename OR release MATCHES "^(stable|oldstable|testing)$")
      set(mirror "${uri}")
      list(APPEND components "${component}")
      string(REGEX REPLACE ":[0-9]+$" "" sources_file "${declared_in}")
    endif()
  endforeach()
  if(NOT components)
    set(${message_variable} "apt's sources do not name the suite ${codename}" PARENT_SCOPE)
    return()
  endif()
  list(REMOVE_DUPLICATES components)
  list(JOIN components " " components)
  _cbq_apt_key("${sources_file}" key)
  set(options "arch=${arch}")
  if(key)
    string(APPEND options " signed-by=${key}")
  endif()

  set(requests "")
  set(suites "")
  foreach(package IN LISTS ARGN)
    _cbq_debian_suite(${package} ${codename} suite)
    list(APPEND requests "${package}/${suite}")
    list(APPEND suites ${suite})
  endforeach()
  list(REMOVE_DUPLICATES suites)

  set(state "${prefix}/apt")
  file(MAKE_DIRECTORY "${state}/lists/partial" "${state}/cache/archives/partial" "${state}/sources.d" "${state}/debs")
  file(WRITE "${state}/sources.list" "")
  foreach(suite IN LISTS suites)
    file(APPEND "${state}/sources.list" "deb [${options}] ${mirror} ${suite} ${components}\n")
  endforeach()
  set(apt
      apt-get
      -o Dir::State=${state} -o Dir::State::Lists=${state}/lists -o Dir::Cache=${state}/cache
      -o Dir::Cache::pkgcache=pkgcache.bin  # containers often switch it off, and then each command parses the lists anew
      -o Dir::State::status=/var/lib/dpkg/status
      -o Dir::Etc::SourceList=${state}/sources.list -o Dir::Etc::SourceParts=${state}/sources.d
      -o APT::Architecture=${arch} -o APT::Default-Release=${codename} -o APT::Sandbox::User=
      -o APT::Update::Error-Mode=any -o Acquire::Languages=none
      -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::http::Timeout=10 -o Acquire::Retries=1)
  execute_process(COMMAND ${apt} update RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log TIMEOUT 120)
  if(NOT failed)
    # The shared libraries behind a -dev package have versions in their names (libtbb-dev: libtbb12, libtbbmalloc2):
    # ask apt which ones they are.
    list(TRANSFORM apt REPLACE "^apt-get$" "apt-cache" OUTPUT_VARIABLE apt_cache)
    execute_process(COMMAND ${apt_cache} depends --recurse --important ${ARGN} OUTPUT_VARIABLE depends ERROR_QUIET)
    foreach(package IN LISTS ARGN)
      string(REGEX REPLACE "-dev$" "" stem "${package}")
      string(REGEX MATCHALL "Depends: ${stem}[^ \n:]+" libraries "${depends}")
      foreach(library IN LISTS libraries)
        string(REPLACE "Depends: " "" library "${library}")
        if(NOT library MATCHES "-dev$")
          list(APPEND requests "${library}/${codename}")
        endif()
      endforeach()
    endforeach()
    list(REMOVE_DUPLICATES requests)
    execute_process(COMMAND ${apt} download ${requests} WORKING_DIRECTORY "${state}/debs"
                    RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log TIMEOUT 120)
  endif()
  if(NOT failed)
    file(GLOB debs "${state}/debs/*.deb")
    foreach(deb IN LISTS debs)
      execute_process(COMMAND dpkg -x "${deb}" "${prefix}" RESULT_VARIABLE failed ERROR_VARIABLE log)
      if(failed)
        break()
      endif()
    endforeach()
  endif()
  file(REMOVE_RECURSE "${state}")
  if(failed)
    string(STRIP "${log}" log)
    string(REGEX REPLACE "^.*\n" "" last_line "${log}")
    set(${message_variable} "the distribution's packages could not be had (${last_line})" PARENT_SCOPE)
  endif()
endfunction()

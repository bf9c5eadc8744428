# What tests, benchmarks and examples are compiled with. It lives on a target of its own that is never exported, so a
# user of cbq inherits none of it. There is no -march anywhere: everything is a baseline build, as most users' is.

add_library(cbq_dev INTERFACE)

# cbq's headers are not SYSTEM here: they must be clean at every warning a user may switch on.
target_compile_options(cbq_dev INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow
                                         -Wold-style-cast)
if(CBQ_WERROR)
  target_compile_options(cbq_dev INTERFACE -Werror)
endif()
if(CBQ_SANITIZE)
  set(_cbq_sanitize -fsanitize=${CBQ_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(cbq_dev INTERFACE ${_cbq_sanitize})
  target_link_options(cbq_dev INTERFACE ${_cbq_sanitize})
endif()

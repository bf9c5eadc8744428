# Configures, builds and runs the consumer project in a folder of its own. WAY is how it reaches cbq; see
# consumer/CMakeLists.txt. The ways that must be refused pass when the configure step fails and says why.

cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE ${WORK_DIR})

execute_process(
  COMMAND ${CMAKE_COMMAND} -G ${GENERATOR} -S ${CONSUMER_DIR} -B ${WORK_DIR} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
          "-DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}" -DCBQ_SOURCE_DIR=${CBQ_SOURCE_DIR} -DWAY=${WAY} -DCMAKE_CXX_STANDARD=${STANDARD}
  RESULT_VARIABLE failed OUTPUT_VARIABLE log ERROR_VARIABLE log)

set(refusal_wrong_version "requested version \"99")
set(refusal_unknown_component "cbq_FOUND to FALSE")
if(DEFINED refusal_${WAY})
  if(NOT failed)
    message(FATAL_ERROR "${WAY} was accepted, but must not be")
  endif()
  string(FIND "${log}" "${refusal_${WAY}}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "${WAY} was refused without saying `${refusal_${WAY}}`:\n${log}")
  endif()
  return()
endif()
if(failed)
  message(FATAL_ERROR "the consumer does not configure:\n${log}")
endif()
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK_DIR} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK_DIR}/consumer COMMAND_ERROR_IS_FATAL ANY)
if(EXISTS ${WORK_DIR}/consumer_io)
  execute_process(COMMAND ${WORK_DIR}/consumer_io COMMAND_ERROR_IS_FATAL ANY)
endif()

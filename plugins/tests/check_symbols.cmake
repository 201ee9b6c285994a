cmake_policy(SET CMP0057 NEW) # IN_LIST

# Run by ctest: LIBRARY exports only symbols that match EXPORTED, a regular expression
# (each of REQUIRED, separated by commas, among it), and needs no GPU library to load.
execute_process(COMMAND ${NM} --dynamic --defined-only --format=posix ${LIBRARY}
                OUTPUT_VARIABLE listing RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${NM} cannot read ${LIBRARY}")
endif()
string(REGEX MATCHALL "[^\n]+" lines "${listing}")
set(exported)
foreach(line IN LISTS lines)
  string(REGEX REPLACE " .*" "" symbol "${line}")
  list(APPEND exported "${symbol}")
endforeach()
foreach(symbol IN LISTS exported)
  if(NOT symbol MATCHES "^(${EXPORTED})$")
    message(FATAL_ERROR "${LIBRARY} exports ${symbol}; wanted only ${EXPORTED}")
  endif()
endforeach()
string(REPLACE "," ";" required "${REQUIRED}")
foreach(symbol IN LISTS required)
  if(NOT symbol IN_LIST exported)
    message(FATAL_ERROR "${LIBRARY} doesn't export ${symbol}")
  endif()
endforeach()

execute_process(COMMAND ${READELF} --dynamic --wide ${LIBRARY}
                OUTPUT_VARIABLE dynamic RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${READELF} cannot read ${LIBRARY}")
endif()
if(dynamic MATCHES "NEEDED[^\n]*(cuda|nvinfer|nvrtc)[^\n]*")
  message(FATAL_ERROR "links to a GPU library: ${CMAKE_MATCH_0}")
endif()

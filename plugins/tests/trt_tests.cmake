# Tests of plugins/trt and plugins/abi, included by CMakeLists.txt. Each trt_NAME.cpp is a program
# that exits 0 if all is well.
add_executable(trt_log trt_log.cpp)
target_link_libraries(trt_log PRIVATE stof_plugin_objects)
add_test(NAME trt_log COMMAND trt_log)

add_executable(trt_plugin trt_plugin.cpp plan_writer.cpp)
target_link_libraries(trt_plugin PRIVATE stof_plugin_objects)
add_test(NAME trt_plugin COMMAND trt_plugin)

add_test(
  NAME autoload_symbols
  COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DREADELF=${CMAKE_READELF}
          -DLIBRARY=$<TARGET_FILE:stof_plugins_autoload> -P
          ${CMAKE_CURRENT_SOURCE_DIR}/check_symbols.cmake)

if(STOF_TENSORRT_INCLUDE_DIR)
  add_executable(trt_abi_layout trt_abi_layout.cpp)
  target_link_libraries(trt_abi_layout PRIVATE stof_compile_options stof_tensorrt_interface)
  add_test(NAME trt_abi_layout COMMAND trt_abi_layout)
endif()

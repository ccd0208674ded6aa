# find_package(sigd) gives the target sigd::sigd. The headers are found from where this file lies.
get_filename_component(_sigd_include "${CMAKE_CURRENT_LIST_DIR}/../../../include" ABSOLUTE)
if(NOT TARGET sigd::sigd)
  add_library(sigd::sigd INTERFACE IMPORTED)
  set_target_properties(sigd::sigd PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_sigd_include}"
    INTERFACE_COMPILE_FEATURES cxx_std_20)
endif()
unset(_sigd_include)

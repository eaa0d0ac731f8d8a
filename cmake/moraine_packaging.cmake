# cmake --install, and `cpack -G DEB` in the build directory. Manual pages and completions are made by the
# command itself: build the target `manuals` (part of `all`) before.
include(GNUInstallDirs)

set(manuals ${CMAKE_BINARY_DIR}/manuals)
add_custom_command(
  OUTPUT ${manuals}/stamp
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${manuals}
  COMMAND ${CMAKE_COMMAND} -E make_directory ${manuals}/man1
  COMMAND ${CMAKE_COMMAND} -E env MORAINE_CONFIG=/dev/null $<TARGET_FILE:moraine> man --directory ${manuals}/man1
  COMMAND ${CMAKE_COMMAND} -E env MORAINE_CONFIG=/dev/null $<TARGET_FILE:moraine> completion bash > ${manuals}/moraine.bash
  COMMAND ${CMAKE_COMMAND} -E env MORAINE_CONFIG=/dev/null $<TARGET_FILE:moraine> completion fish > ${manuals}/moraine.fish
  COMMAND ${CMAKE_COMMAND} -E touch ${manuals}/stamp
  DEPENDS moraine
  COMMENT "Manual pages and completions")
add_custom_target(manuals ALL DEPENDS ${manuals}/stamp)

install(TARGETS moraine RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${manuals}/man1 DESTINATION ${CMAKE_INSTALL_MANDIR} FILES_MATCHING PATTERN "*.1")
install(FILES ${manuals}/moraine.bash RENAME moraine
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${manuals}/moraine.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES contrib/systemd/moraine.service contrib/systemd/moraine.socket
        DESTINATION lib/systemd/system)
install(FILES contrib/config.toml RENAME config.toml.example
        DESTINATION ${CMAKE_INSTALL_DATADIR}/moraine)
install(FILES contrib/grafana/moraine.json DESTINATION ${CMAKE_INSTALL_DATADIR}/moraine/grafana)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs FILES_MATCHING PATTERN "*.md")
install(FILES LICENSE RENAME copyright DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME moraine)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "the authors of Moraine <moraine@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "server of mixture-of-experts models larger than memory")
set(CPACK_PACKAGE_DESCRIPTION
    "Dense weights stay in memory, experts move from NVMe into it one at a time under a hard budget.\nServes the APIs of OpenAI and Anthropic.")
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
# Names every shared library with the version it needs; from dpkg-dev.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
include(CPack)

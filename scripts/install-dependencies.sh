#!/usr/bin/env bash
# Installs what building, testing and the demo need, from Debian's packages. Does nothing if all is there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config git
  libjemalloc-dev liburing-dev libnuma-dev librocksdb-dev libspdlog-dev libfmt-dev
  libboost1.81-dev nlohmann-json3-dev libsimdjson-dev libcli11-dev libxxhash-dev libpcre2-dev
  libutf8proc-dev zlib1g-dev
  libgtest-dev libgmock-dev        # tests
  python3 python3-jinja2           # oracle of the chat template tests
  clang libclang-rt-14-dev         # libFuzzer
  dpkg-dev groff                   # .deb packages; a test of the manual pages
  curl
  fio                              # the yardstick of `moraine bench io`, which does without if it is absent
)
# Node.js and npm build the web page and run the official clients in tests; any version from 18 on will do.
command -v node >/dev/null || packages+=(nodejs)
command -v npm >/dev/null || packages+=(npm)

# Only the web page's test needs a browser, so that any that is there will do.
command -v chromium >/dev/null || command -v google-chrome >/dev/null || packages+=(chromium)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}"
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"

# docker build -t moraine . && docker run --rm -p 127.0.0.1:8080:8080 -v /nvme/qwen3:/store \
#   --security-opt seccomp=unconfined --ulimit memlock=-1 -m 12g moraine
#
# Docker's default seccomp profile forbids io_uring; without the option reads fall back to a pread pool. The
# budget follows the container's memory limit.
FROM debian:12 AS build
COPY scripts/install-dependencies.sh /tmp/
RUN /tmp/install-dependencies.sh
COPY . /source
WORKDIR /source
RUN cmake --preset release && cmake --build build/release --target moraine manuals \
 && cd build/release && cpack -G DEB

FROM debian:12-slim
COPY --from=build /source/build/release/moraine_*.deb /tmp/moraine.deb
RUN apt-get update -q && apt-get install -y -q --no-install-recommends /tmp/moraine.deb \
 && rm -rf /tmp/moraine.deb /var/lib/apt/lists/*
VOLUME /store
EXPOSE 8080
# Outside of the container it is reached only by what -p publishes.
ENV MORAINE_HOST=0.0.0.0
STOPSIGNAL SIGTERM
ENTRYPOINT ["moraine"]
CMD ["serve", "/store"]

# The plugin's image: the program, the file systems' tools, the libraries of both, and nothing else, not even a shell.
#
# Both bases are build arguments, so that an image can also be built from local ones. The second must not be of an older
# Debian release than the first: the program is linked against the libraries of the first and runs with those of the second.
ARG BUILD_BASE=docker.io/library/rust:1.95.0-trixie@sha256:0861191076afc8e2dfcf0bec6ad6c2dec8494b3a1e9249729e1989690afed5ec
ARG TOOLS_BASE=docker.io/library/debian:13.6-slim@sha256:d7e12182ce18b85b93007c1dedf31f2d29e01ccf3182cc4017c709b6259bc132
# Where the program comes from: from the stage that compiles it, or from an image that has it already.
ARG PROGRAM=build

FROM ${BUILD_BASE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# What the program depends on is a layer of its own, built around an empty program: gRPC's C++ core takes minutes, and
# must not be built again for each change in src.
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY protos protos
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin do-csi-plugin \
    && rm -r src
COPY src src
# Cargo tells by the time of a file whether it has changed, and the empty program is younger than what has been copied.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin do-csi-plugin \
    && strip target/release/do-csi-plugin

# An argument can name a stage only here, not in COPY.
FROM ${PROGRAM} AS program

FROM ${TOOLS_BASE} AS tools
# A base is as old as its tag; what Debian has corrected since then comes with the upgrade.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get upgrade -y --no-install-recommends \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        btrfs-progs cryptsetup-bin dmsetup e2fsprogs util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=program /build/target/release/do-csi-plugin /usr/bin/do-csi-plugin
COPY tests/image/collect /collect
RUN /collect /image do-csi-plugin \
    blkid blockdev fsfreeze mkfs.xfs xfs_growfs mke2fs e2fsck resize2fs mkfs.btrfs btrfs cryptsetup dmsetup sync
COPY LICENSE /image/usr/share/doc/do-csi-plugin/copyright
# Of everything that is linked into the program.
COPY packaging/third-party.txt /image/usr/share/doc/do-csi-plugin/third-party.txt

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="do-csi-plugin" \
      org.opencontainers.image.description="CSI driver for DigitalOcean block storage volumes, made for Nomad first" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=tools /image /
# Where Nomad looks for the socket, unless the job says otherwise. Nomad 1.3 and later set it themselves.
ENV CSI_ENDPOINT=unix:///csi/csi.sock
# The plugin has many threads that mostly wait. Without this, the C library gives each some memory of its own, and keeps it.
ENV MALLOC_ARENA_MAX=2
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["/usr/bin/do-csi-plugin", "--probe"]
ENTRYPOINT ["/usr/bin/do-csi-plugin"]

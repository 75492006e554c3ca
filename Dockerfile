# The agent's and pilot's image. Bases are given with a digest at release:
#   docker build --build-arg BASE=debian:12-slim@sha256:… --build-arg NODE_BASE=node:20-bookworm-slim@sha256:… .
ARG BASE=debian:12-slim
ARG NODE_BASE=node:20-bookworm-slim

FROM ${NODE_BASE} AS build
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends \
      clang lld bpftool libbpf-dev libelf-dev zlib1g-dev g++ make pkg-config protobuf-compiler libprotobuf-dev \
      python3 python3-pip ca-certificates nginx-light curl wrk iproute2 iptables nftables procps util-linux
COPY package.json package-lock.json .npmrc ./
COPY scripts scripts
COPY . .
RUN ./scripts/setup.sh && make build && npm prune --omit=dev --ignore-scripts

FROM ${NODE_BASE} AS node

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends libbpf1 iptables iproute2 libstdc++6 ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=build /src/package.json /opt/underpass/package.json
COPY --from=build /src/bin /opt/underpass/bin
COPY --from=build /src/node_modules /opt/underpass/node_modules
COPY --from=build /src/dist /opt/underpass/dist
COPY --from=build /src/proto/generated/descriptors.binpb /opt/underpass/proto/generated/descriptors.binpb
COPY --from=build /src/build/underpass.node /src/build/underpass-exec /src/build/underpass-cni /src/build/underpass-launcher /src/build/socket-probe /src/build/socket-ends /opt/underpass/build/
COPY --from=build /src/build/envoy/envoy /opt/underpass/build/envoy/envoy
ENTRYPOINT ["/opt/underpass/bin/underpass"]
CMD ["agent"]

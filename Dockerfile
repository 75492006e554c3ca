# The image of the agent, its Envoy and pilot. A release gives the base with its digest:
#   docker build --build-arg BASE=node:20-bookworm-slim@sha256:… --build-arg REVISION="$(git rev-parse HEAD)" -t underpass .
# docs/image.md says more; test/image/ runs these steps where there is no container engine.
ARG BASE=node:20-bookworm-slim

FROM ${BASE} AS build
WORKDIR /src
# What changes seldom first: packages, npm packages and Envoy stay in a layer of their own.
COPY package.json package-lock.json .npmrc ./
COPY scripts ./scripts
RUN ./scripts/setup.sh image
COPY . ./
RUN make native typescript && node dist/image/main.js /image

# No shell but sh, no package manager: only what image/contents.ts names and what that needs, with licences and SBOM.
FROM scratch
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
COPY --from=build /image/ /
LABEL org.opencontainers.image.title="underpass" \
      org.opencontainers.image.description="A service mesh data plane without sidecars: node agent, its Envoy, control plane" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
# The agent needs root on its node, and its DaemonSet says so; all else runs as nobody in particular.
USER 65532:65532
ENTRYPOINT ["/opt/underpass/bin/underpass"]
CMD ["--help"]

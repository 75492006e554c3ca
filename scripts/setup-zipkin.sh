#!/usr/bin/env bash
# A Zipkin server for `make test-dashboards`: the runnable jar that Zipkin releases to Maven Central, without the storages that take
# drivers ("slim"), and Java for it.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

version=3.6.1
sum=981b1de6139b4f8f787a909c308028732f9713ae5284353d2a5aa404d1094775
copy=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy
out=build/zipkin
jar=$out/zipkin.jar

packages=()
command -v java >/dev/null || packages+=(openjdk-17-jre-headless)
is_there() { [ -f "$jar" ] && [ "$(sha256sum "$jar" | cut -d' ' -f1)" = "$sum" ]; }
is_there || command -v mvn >/dev/null || packages+=(maven)
[ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
is_there && exit 0

say MAVEN "zipkin-server $version into $out"
rm -rf "$out"
mkdir -p "$out"
mvn -q -B "$copy" -Dartifact="io.zipkin:zipkin-server:$version:jar:slim" -DoutputDirectory="$PWD/$out" >"$out/mvn.log" 2>&1 || {
  tail -20 "$out/mvn.log" >&2
  echo "setup: Maven failed, the whole log is in $out/mvn.log" >&2
  exit 1
}
mv "$out/zipkin-server-$version-slim.jar" "$jar"
is_there || { echo "setup: $jar has another SHA-256 than $sum, it is not used" >&2; rm -f "$jar"; exit 1; }

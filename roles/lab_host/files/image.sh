#!/bin/sh
# image.sh TAG SUITE CONTEXT PACKAGES: build the image of a lab host from Debian's own image where a registry of images answers,
# else from Debian's packages.
set -eu
tag=$1 suite=$2 context=$3 packages=$4
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
base=debian:$suite
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
    base=pst-debian:$suite
    if ! docker image inspect "$base" >/dev/null 2>&1; then
        command -v mmdebstrap >/dev/null || {
            $sudo apt-get update -q
            $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends mmdebstrap debian-archive-keyring
        }
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        $sudo mmdebstrap --quiet --variant=minbase "$suite" "$work/base.tar"
        docker import "$work/base.tar" "$base" >/dev/null
    fi
fi
docker build --quiet --build-arg BASE="$base" --build-arg PACKAGES="$packages" --tag "$tag" "$context"

#!/bin/sh
# link.sh up|down SUBNET SUBNET…: the line between the first subnet and each of the others, which the engine keeps apart as it does all
# its networks. `down` is what a cut between two sites is. Both are safe to repeat. Packets keep their sender's address.
set -eu
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
verb=$1 here=$2; shift 2

# rule TABLE CHAIN SOURCE DESTINATION
rule() {
    table=$1 chain=$2; shift 2
    set -- "$chain" -s "$1" -d "$2" -m comment --comment pst-lab -j ACCEPT
    if $sudo iptables -w 10 -t "$table" -C "$@" 2>/dev/null; then there=1; else there=0; fi
    case $verb$there in
        up0) $sudo iptables -w 10 -t "$table" -I "$@"; echo "linked $here" ;;
        down1) $sudo iptables -w 10 -t "$table" -D "$@"; echo "cut $here" ;;
    esac
}

for other in "$@"; do
    for pair in "$here $other" "$other $here"; do
        # shellcheck disable=SC2086
        rule filter DOCKER-USER $pair
        # shellcheck disable=SC2086
        rule nat POSTROUTING $pair
    done
done

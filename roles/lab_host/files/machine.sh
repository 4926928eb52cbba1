#!/bin/sh
# machine.sh raise INSTANCES SHARES | restore: what the lab sets on the machine that it runs on. What was there before is kept in /run
# until the last lab host is gone.
#   inotify instances: about 7 per host.
#   weight of the engine's containers: without it, all hosts together weigh as much as one process of the control node.
set -eu
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"

# raise_to SETTING WANTED BEFORE
raise_to() {
    now=$(cat "$1")
    [ "$now" -lt "$2" ] || return 0
    [ -e "$3" ] || echo "$now" | $sudo tee "$3" >/dev/null
    echo "$2" | $sudo tee "$1" >/dev/null
    echo "raised $1 from $now to $2"
}

# put_back SETTING BEFORE
put_back() {
    [ -e "$2" ] || return 0
    [ ! -e "$1" ] || $sudo tee "$1" < "$2" >/dev/null
    $sudo rm "$2"
    echo "restored $1"
}

inotify=/proc/sys/fs/inotify/max_user_instances
# Where the engine has its containers under one cgroup of its own; with systemd's driver they are beside the other units already.
weight=
if [ -d /sys/fs/cgroup/cpu ] && [ ! -d /run/systemd/system ]; then
    $sudo mkdir -p /sys/fs/cgroup/cpu/docker
    weight=/sys/fs/cgroup/cpu/docker/cpu.shares
elif [ -e /sys/fs/cgroup/docker/cpu.weight ]; then
    weight=/sys/fs/cgroup/docker/cpu.weight
fi

case $1 in
    raise)
        raise_to $inotify "$2" /run/pst-lab-inotify
        [ -z "$weight" ] || raise_to "$weight" "$3" /run/pst-lab-weight ;;
    restore)
        if docker ps -q --filter label=pst.lab 2>/dev/null | grep -q .; then exit 0; fi
        put_back $inotify /run/pst-lab-inotify
        [ -z "$weight" ] || put_back "$weight" /run/pst-lab-weight ;;
esac

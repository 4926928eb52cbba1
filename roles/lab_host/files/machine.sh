#!/bin/sh
# machine.sh raise NETWORK INSTANCES SHARES | restore NETWORK: what the lab sets on the machine that it runs on. What was there before is kept
# in /run until the last of those that raised it, each named by its network of hosts, has let go. Several at a time wait for each other.
#   inotify instances: about 7 per host.
#   weight of the engine's containers: without it, all hosts together weigh as much as one process of the control node.
set -eu
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
holders=/run/pst-lab-holders
$sudo mkdir -p $holders
exec 9< $holders
flock 9

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
        $sudo touch "$holders/$2"
        raise_to $inotify "$3" /run/pst-lab-inotify
        [ -z "$weight" ] || raise_to "$weight" "$4" /run/pst-lab-weight ;;
    restore)
        $sudo rm -f "$holders/$2"
        if [ -n "$(ls $holders)" ] || docker ps -q --filter label=pst.lab 2>/dev/null | grep -q .; then exit 0; fi
        put_back $inotify /run/pst-lab-inotify
        [ -z "$weight" ] || put_back "$weight" /run/pst-lab-weight ;;
esac

#!/bin/sh
# engine.sh start|stop STATE: start a container engine where none runs, and stop only what was started here.
# Says in one line what to do where it may not.
set -eu
verb=$1 state=$2
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
say() { echo "$*" >&2; exit 1; }

start() {
    [ -z "$sudo" ] || sudo -n true 2>/dev/null || say "No container engine answers: install docker.io and join the group docker, or run this as root or with sudo."
    mkdir -p "$state"
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || say "No container engine answers, and this is not Debian or Ubuntu: install Docker and start it."
        $sudo apt-get update -q
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends docker.io iptables
        touch "$state/installed"
    fi
    command -v docker >/dev/null || $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends docker-cli || :
    if [ -d /run/systemd/system ]; then
        $sudo systemctl start docker
        echo systemd > "$state/started"
    else
        # No service manager (a container or a minimal machine): run the daemon ourselves.
        $sudo sh -c "setsid nohup dockerd >'$state/dockerd.log' 2>&1 </dev/null & echo \$! >'$state/dockerd.pid'"
        echo process > "$state/started"
    fi
    for _ in $(seq 60); do
        docker info >/dev/null 2>&1 && exit 0
        # Only where the two differ: for root it would be the same question, asked when the engine has just come up.
        [ -n "$sudo" ] && $sudo docker info >/dev/null 2>&1 && say "The engine runs, but this user may not use it: join the group docker (sudo usermod -aG docker \$USER) and log in again."
        sleep 1
    done
    say "The container engine did not start within 60 s: see ${state}/dockerd.log or 'journalctl -u docker'."
}

stop() {
    [ -e "$state/started" ] || exit 0
    [ -z "$(docker ps -q)" ] || { echo "Other containers run: the engine stays."; exit 0; }
    case $(cat "$state/started") in
        systemd) $sudo systemctl stop docker docker.socket ;;
        process)
            $sudo pkill -x -F "$state/dockerd.pid" dockerd || $sudo pkill -x dockerd || :
            # One that still shuts down would answer the next start, and then be gone.
            for _ in $(seq 60); do pgrep -x dockerd >/dev/null || break; sleep 1; done
            ;;
    esac
    rm -rf "$state"
    echo stopped
}

"$verb"

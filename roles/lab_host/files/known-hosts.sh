#!/bin/sh
# known-hosts.sh FILE CONTAINER_PREFIX HOST=ADDRESS…: wait until each host has booted, then write its ssh key, read through the engine
# (not over the network), so that ssh checks it strictly.
set -eu
file=$1 prefix=$2; shift 2
new=$(mktemp "$file.XXXXXX")
for pair in "$@"; do
    host=${pair%%=*} address=${pair#*=}
    # Condition, bounded: sshd is up (60 s).
    docker exec "$prefix$host" timeout 60 sh -c 'until systemctl is-active --quiet ssh.service; do sleep 0.2; done' || {
        echo "$host did not boot within 60 s: docker logs $prefix$host; docker exec $prefix$host systemctl --failed" >&2; exit 1; }
    echo "$host,$address $(docker exec "$prefix$host" cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" >> "$new"
done
if [ -e "$file" ] && cmp -s "$file" "$new"; then rm "$new"; else mv "$new" "$file"; echo changed; fi

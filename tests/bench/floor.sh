#!/bin/sh
# floor.sh GROUP: what one host needs at the very least, without any care: the same packages, the same services started, no settings,
# no checks, no second run. The floor that site.yml is compared with (bench.py sends and runs it on all hosts at once).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null; }

install ca-certificates chrony logrotate openssl procps rsync tzdata nftables prometheus-node-exporter rsyslog rsyslog-relp
systemctl start chrony prometheus-node-exporter rsyslog
nft add table inet floor

case $1 in
    load_balancers)
        install curl haproxy iproute2 keepalived
        systemctl start haproxy ;;
    mongodb)
        install python3-pymongo libcurl4 libssl3 restic
        cp "$(find "$here/mongodb" -name mongod | head -1)" /usr/local/bin/mongod && chmod 0755 /usr/local/bin/mongod
        mkdir -p /var/lib/floor
        systemd-run --quiet --unit=floor-mongod /usr/local/bin/mongod --dbpath /var/lib/floor --replSet floor --bind_ip_all ;;
    redis)
        install redis-server redis-sentinel
        systemctl start redis-server redis-sentinel ;;
    app_nodes)
        install python3-pymongo python3-pymongo-ext python3-bson-ext restic
        for part in releases agent; do
            folder=/srv/floor/$part
            mkdir -p "$folder"
            tar -x -z -C "$folder" -f "$(find "$here/$part" -name '*.tar.gz' | sort | tail -1)"
            python3 -m venv --without-pip "$folder/venv"
            PYTHONPATH=$(find "$folder/wheels" -name 'pip-*.whl') "$folder/venv/bin/python" -m pip install --quiet --no-index \
                --find-links "$folder/wheels" --requirement "$folder/source/requirements.txt"
        done ;;
    ib_gateways)
        install python3-pymongo python3-pymongo-ext python3-bson-ext ;;
    monitoring)
        install prometheus prometheus-alertmanager prometheus-redis-exporter nginx knot knot-dnsutils rclone restic \
            python3-pymongo python3-pymongo-ext python3-bson-ext python3-dnspython
        systemctl start prometheus prometheus-alertmanager nginx knot ;;
esac

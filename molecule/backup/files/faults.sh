#!/bin/bash
# One thing that can go wrong, as it meets a restore on a member. What was said and with which status goes to /run/ledger/<case>.
set -u
umask 077
key=/etc/pst/backup/secrets/backup-mongodb.key
printf 'root\n%s\n' none > /run/ledger/login # none of these may come as far as to log in
restore() {
    pst-backup restore mongodb --to latest > "/run/ledger/$1" 2>&1
    echo "status $?" >> "/run/ledger/$1"
}
case $1 in
wrong-key)
    cp "$key" "$key.right"
    echo wrong > "$key"
    restore wrong-key
    mv "$key.right" "$key"
    ;;
full-disk)
    mkdir -p /var/lib/pst-backup/restore
    mount -t tmpfs -o size=1m,mode=0777 tmpfs /var/lib/pst-backup/restore
    restore full-disk
    umount /var/lib/pst-backup/restore && rmdir /var/lib/pst-backup/restore
    ;;
damaged)
    rm -rf /var/cache/pst-backup/*
    restore damaged
    ;;
server-gone)
    systemctl start pst-backup@oplog-mongodb.service > /run/ledger/server-gone 2>&1
    echo "status $?" >> /run/ledger/server-gone
    journalctl --unit=pst-backup@oplog-mongodb --output=cat --lines=12 --no-pager >> /run/ledger/server-gone
    cat /var/lib/prometheus/node-exporter/pst_backup_oplog-mongodb.prom >> /run/ledger/server-gone
    ;;
esac

#!/bin/sh
# In the place of IB Gateway's installer, which nobody may redistribute: unattended as the real one is (-q -dir FOLDER), it leaves the
# tree that IBC's start script looks for. Its Java runs the simulator with the settings that IBC was given.
set -eu
[ "$1" = -q ] && [ "$2" = -dir ]
mkdir -p "$3/jars" "$3/.install4j" "$3/jre/bin"
: > "$3/jars/jts4launch.jar"
: > "$3/ibgateway"
echo "-Xmx768m" > "$3/ibgateway.vmoptions"
echo '<variable name="javaOptions" value="-Dfake=yes" />' > "$3/.install4j/i4jparams.conf"
cat > "$3/jre/bin/java" <<'JAVA'
#!/bin/sh
case "$*" in
  *-XshowSettings*) echo "    java.runtime.version = 17.0.0" >&2 ;;
  *-cp\ *IBC.jar*-DjtsConfigDir=/var/lib/ib-gateway/settings*ibcalpha.ibc.IbcGateway*config.ini*paper)
    xauth -n list "$DISPLAY" | grep -q MIT-MAGIC-COOKIE-1 || exit 1
    PYTHONPATH=/opt/simulator exec python3 -m gateway_simulator --settings /etc/pst/ib-gateway/config.ini \
      --order-log /var/lib/ib-gateway/orders.jsonl ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
JAVA
chmod 0755 "$3/jre/bin/java"

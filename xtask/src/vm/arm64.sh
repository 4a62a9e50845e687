# What a machine does to try a program: its NIC is virtio_net, whose driver has native XDP.
set -e
mkdir -p /run /etc
configuration eth0 >/run/config.toml
export PLS_ROUTER_CONFIG=/run/config.toml NO_COLOR=1

pls-router --version
ip address add 10.9.0.1/24 dev eth0
ip link set eth0 up
pls-router check

pls-router run >/run/said 2>&1 &
pid=$!
attached='"attached":true,"mode":"native"'
# The next hop does not answer, so that the router is not healthy, which is an exit code of 1.
look() { { pls-router status -o json || true; } 2>/dev/null | tr -d ' \n' | grep -q "$attached"; }
tries=0
until look; do
    tries=$((tries + 1))
    if [ $tries -gt 60 ] || ! kill -0 $pid 2>/dev/null; then
        cat /run/said
        echo "not attached"
        exit 1
    fi
    sleep 1
done
echo "loaded and attached to eth0 (virtio_net, native XDP)"
kill $pid
wait $pid
pls-router detach
echo "detached"

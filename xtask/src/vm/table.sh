# What a machine does for its row of the table of kernels.
answer() { echo "vm: answer $*"; }

mkdir -p /run /etc
# Not the shell's own `ip`, which knows less.
export PLS_ROUTER_CONFIG=/run/config.toml NO_COLOR=1

/bin/ip link add veth0 type veth peer name veth1
number=9
for nic in veth0 eth0; do
    /bin/ip address add 10.$number.0.1/24 dev $nic
    /bin/ip link set $nic up
    number=$((number + 1))
done
/bin/ip link set veth1 up

configuration veth0 >/run/config.toml
if /tests/pls-router check >/run/said 2>&1; then
    answer check accepted
elif grep -q "too old" /run/said; then
    answer check "refused: $(grep -m 1 'too old' /run/said)"
    # So all the rest would be.
    exit 0
else
    cat /run/said
    answer check "$(grep -m 1 -i error /run/said)"
fi

attaches() {
    configuration "$2" >/run/config.toml
    /tests/pls-router run >/run/said 2>&1 &
    pid=$!
    for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        /bin/ip link show "$2" | grep -q ' xdp ' && break
        kill -0 $pid 2>/dev/null || break
        sleep 1
    done
    if /bin/ip link show "$2" | grep -q ' xdp '; then
        answer "$1" loads, attaches
    else
        cat /run/said
        answer "$1" no
    fi
    kill $pid 2>/dev/null
    wait $pid
    /tests/pls-router detach >/dev/null 2>&1
}
attaches veth veth0
attaches virtio eth0

cd @ROOT@ || exit 1
export FUZZ_PACKETS=@PACKETS@
if /tests/bpf_fuzz; then answer packets pass; else answer packets "do not pass"; fi
exit 0

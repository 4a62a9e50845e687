//! The machine itself: what the other tests rely on.

use std::time::Duration;

use lab::{
    Nics,
    addresses::{ROUTER, ROUTER_SECOND},
    client,
    machine::Seed,
};

use crate::common::{BOOT, Place, check};

/// Both NICs are there with the queues that native XDP needs, the lab is reached through either,
/// and nothing else is.
#[test]
#[ignore = "other tests boot a machine too: --full"]
fn a_machine_boots_and_answers_ssh() {
    let mut place = Place::switch_on(Nics::Two, &Seed::default());
    check(place.machine.wait_for_ssh(BOOT));
    check(place.machine.wait_for_cloud_init());
    let machine = &place.machine;
    let release = check(machine.ssh("cat /proc/sys/kernel/osrelease /etc/debian_version"));
    assert!(release.starts_with("6.1.") && release.contains("\n12."), "{release}");
    for (nic, address) in [("eth0", "10.0.2.68/26"), ("eth1", "10.0.3.4/26")] {
        let shown =
            check(machine.ssh(&format!(
                "ip -4 -o address show {nic}; ethtool -i {nic}; ls /sys/class/net/{nic}/queues"
            )));
        assert!(shown.contains(address) && shown.contains("driver: virtio_net"), "{shown}");
        assert!(shown.contains("rx-1") && shown.contains("tx-1"), "{shown}");
    }
    for (from, address) in [(&place.lab.hosts.pls, ROUTER), (&place.lab.hosts.firewall, ROUTER_SECOND)] {
        assert_eq!(check(client::ping(from, address, 1, &[])), 1, "no answer of {address}");
    }
    let state = check(machine.ssh("systemctl is-system-running --wait; systemctl --failed --no-legend"));
    assert_eq!(state.trim(), "running", "{state}");
    check(place.machine.power_off(Duration::from_secs(60)));
}

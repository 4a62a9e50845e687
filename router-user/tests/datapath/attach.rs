//! The attachment to an interface.

use aya::programs::{
    TcAttachType,
    tc::{NlOptions, TcAttachOptions},
};
use router_user::dataplane::{Hook, Mode, detach};

use crate::{
    pins::OwnPins,
    world::{Setup, World, index, ip},
};

/// An interface takes a program in one mode at a time, and the kernel takes one off some time after
/// its pin has gone.
#[test]
fn the_mode_can_be_changed_at_any_time() {
    const CHANGES: usize = 40;
    let pins = OwnPins::new("attach");
    let mut world = World::with(Setup { pins: Some(pins.0.clone()), ..Setup::default() });
    for mode in [Mode::Generic, Mode::Native].into_iter().cycle().take(CHANGES) {
        let attachment = world.dataplane.attach(0, "eth0", mode).expect("the other mode has gone");
        assert_eq!(attachment.mode, mode);
        assert!(attachment.program_id().is_some());
    }
}

/// Returns the output of `tc` for an interface.
fn tc(arguments: &str) -> String {
    let output = std::process::Command::new("tc").args(arguments.split(' ')).output().expect("tc runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The program that sees this machine's own traffic, as kernels before 6.6 take it.
#[test]
fn the_classifier_is_a_filter_that_is_removed_with_its_qdisc() {
    let filters = || tc("filter show dev eth0 egress").matches("direct-action").count();
    let has_qdisc = || tc("qdisc show dev eth0").contains("clsact");
    for is_used in [false, true] {
        let pins = OwnPins::new("filter");
        let mut world = World::with(Setup { pins: Some(pins.0.clone()), ..Setup::default() });
        assert!(!world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
        // And once more, as the next daemon does.
        for _ in 0..2 {
            world
                .dataplane
                .watch_own_traffic("eth0", index("eth0"), Hook::Filter)
                .expect("the kernel has clsact");
            assert!(world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
            assert_eq!(filters(), 1);
        }
        if is_used {
            let program = world.dataplane.own_traffic_program().expect("a program");
            let options = TcAttachOptions::Netlink(NlOptions::default());
            let id = program.attach_with_options("eth0", TcAttachType::Ingress, options).expect("a filter");
            // It stays without its owner.
            std::mem::forget(program.take_link(id).expect("what was attached"));
        }
        assert_eq!(detach(&pins.0).expect("it goes").interfaces, ["eth0"]);
        assert_eq!((filters(), has_qdisc()), (0, is_used), "another filter uses the qdisc: {is_used}");
        assert!(!pins.0.exists());
    }
    // A qdisc that was there before stays.
    let pins = OwnPins::new("filter");
    let mut world = World::with(Setup { pins: Some(pins.0.clone()), ..Setup::default() });
    tc("qdisc add dev eth0 clsact");
    world.dataplane.watch_own_traffic("eth0", index("eth0"), Hook::Filter).expect("the kernel has clsact");
    detach(&pins.0).expect("it goes");
    assert_eq!((filters(), has_qdisc()), (0, true));
}

#[test]
fn the_classifier_is_a_link_that_the_next_daemon_takes_over() {
    let pins = OwnPins::new("link");
    let mut world = World::with(Setup { pins: Some(pins.0.clone()), ..Setup::default() });
    for _ in 0..2 {
        world
            .dataplane
            .watch_own_traffic("eth0", index("eth0"), Hook::Any)
            .expect("the kernel has tcx or clsact");
        assert!(world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
    }
    // An interface of the same name is another one.
    ip("link del eth0");
    assert!(!world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
    ip("link add eth0 type veth peer name wire0");
    assert!(!world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
    world.dataplane.watch_own_traffic("eth0", index("eth0"), Hook::Any).expect("as before");
    assert!(world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
    detach(&pins.0).expect("it goes");
    assert!(!world.dataplane.is_own_traffic_watched("eth0", index("eth0")));
}

//! The attachment to an interface.

use router_user::dataplane::Mode;

use crate::{
    pins::OwnPins,
    world::{Setup, World},
};

/// An interface takes a program in one mode at a time, and the kernel takes one off some time after its pin has gone.
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

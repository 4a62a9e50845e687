//! Loading the programs.

use std::sync::atomic::AtomicBool;

use router_user::dataplane::{LoadOptions, Prepared};

use crate::{pins::OwnPins, world::enter_new_namespace};

#[test]
fn a_load_that_is_cancelled_leaves_nothing_pinned() {
    enter_new_namespace();
    let pins = OwnPins::new("cancelled");
    let options = LoadOptions {
        pins: Some(pins.0.clone()),
        sessions: 1024,
        half_open_per_source: 1024,
        generic: false,
        log: None,
    };
    let error = Prepared::load(&options, &AtomicBool::new(true)).err().expect("it was cancelled");
    assert_eq!(error.to_string(), "stopped while the programs were loaded");
    let left: Vec<_> = pins.0.read_dir().into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    Prepared::load(&options, &AtomicBool::new(false)).expect("nothing is in the way of the next load");
}

//! The programs' own log.

use router_user::dataplane::{Dataplane, LoadOptions};

/// Without a level the verifier finds the code that the level's constant guards dead, and removes
/// it.
#[test]
fn a_disabled_log_is_not_in_the_program() {
    let size = |log| {
        let options =
            LoadOptions { pins: None, sessions: 1024, half_open_per_source: 1024, generic: false, log };
        let mut dataplane = Dataplane::load(&options).expect("the programs load");
        let slow = dataplane.program("slow").expect("a program");
        slow.info().expect("its description").size_translated().expect("its size")
    };
    let (off, on) = (size(None), size(Some(log::Level::Debug)));
    assert!(off + 1000 < on, "{off} bytes without the log, {on} with it");
}

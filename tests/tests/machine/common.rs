//! Shared by the tests on a machine.

use std::{env, time::Duration};

pub(crate) use harness::check;
use lab::{
    Lab, Nics, Options, Router,
    helper::Helper,
    machine::{Image, Machine, Seed},
};

/// The time in which a machine boots, up to a login or to a probe that answers 200. Half a minute
/// is usual, and many times as long on a machine that has other things to do.
pub(crate) const BOOT: Duration = Duration::from_secs(600);

/// A lab and the machine in it.
pub(crate) struct Place {
    pub(crate) machine: Machine,
    // Dropped last: it removes all.
    pub(crate) lab: Lab,
}

/// The image of a machine; the test is skipped if none was made or asked for.
pub(crate) fn image() -> Image {
    match Image::find() {
        Err(error) if env::var_os(Image::VARIABLE).is_none() => harness::skip(format!("{error:#}")),
        found => check(found),
    }
}

impl Place {
    /// A lab whose router, with this number of NICs and this seed, is being switched on.
    pub(crate) fn switch_on(nics: Nics, seed: &Seed) -> Self {
        let image = image();
        let helper = Helper::new(env!("CARGO_BIN_EXE_lab"));
        let options = Options { start_router: false, ..Options::new(nics, Router::Machine, helper) };
        let lab = check(Lab::up(options));
        let machine = check(Machine::boot(&lab, &image, seed));
        Self { machine, lab }
    }
}

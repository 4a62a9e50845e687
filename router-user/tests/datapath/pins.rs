//! Pins of a test's own.

use std::path::PathBuf;

use aya::maps::{Map, MapData};
use router_common::limits::LAYOUT;
use router_user::dataplane::detach;

/// The directory in which a test pins; dropping this removes all of it.
pub(crate) struct OwnPins(pub(crate) PathBuf);

impl OwnPins {
    pub(crate) fn new(test: &str) -> Self {
        Self(format!("/sys/fs/bpf/pls-router-{test}-{}", std::process::id()).into())
    }

    /// A pinned array, for which there is no other way.
    pub(crate) fn array(&self, name: &str) -> Map {
        let path = self.0.join(format!("v{LAYOUT}")).join(name);
        Map::Array(MapData::from_pin(path).expect("a pinned map"))
    }
}

impl Drop for OwnPins {
    fn drop(&mut self) {
        // A test that fails says why itself.
        let _ = detach(&self.0);
    }
}

//! `net.ipv4.conf.lo.forwarding`, without which the kernel answers no program's route lookups.
//!
//! A write to `net.ipv4.ip_forward` resets it with that of every other interface
//! (`inet_forward_change`, net/ipv4/devinet.c).

use anyhow::Result;

use super::kept::{Kept, Look};
use crate::{
    daemon::state::Attachments,
    dataplane::{Dataplane, ROUTE_LOOKUPS, route_lookups_are_on},
    health::Id,
};

pub(super) struct RouteLookups;

impl Kept for RouteLookups {
    fn what(&self) -> &'static str {
        "sysctl"
    }

    fn trouble(&self) -> Id {
        Id::RouteLookupsOff
    }

    fn name(&self) -> &str {
        ROUTE_LOOKUPS
    }

    fn is_vital(&self) -> bool {
        true
    }

    fn look(&self, _: &Attachments, _: &Dataplane) -> Result<Look> {
        Ok(if route_lookups_are_on()? {
            Look::Good
        } else {
            Look::Changed(format!("{ROUTE_LOOKUPS} was set to 0"))
        })
    }

    fn restore(&mut self, _: &mut Attachments, plane: &mut Dataplane) -> Result<&'static str> {
        plane.switch_route_lookups_on()?;
        Ok("set to 1 again: route lookups need it")
    }

    fn suspects(&self) -> String {
        "each time, new sessions fail until the repair; find what writes it or net.ipv4.ip_forward \
         (grep -rs forward /etc/sysctl.conf /etc/sysctl.d, or whatever manages this machine's configuration)"
            .to_owned()
    }
}

//! The program `ethernet`: frames other than untagged IPv4, see [`router_common::ethernet`].

use router_common::{
    address::AZURE_PLATFORM,
    ethernet::{Content, MAX_TAGS, content},
    maps::stages::Stage,
    policy::{
        lookup::{is_closed_out, is_closed_side},
        martian::is_martian,
    },
    reason::Reason,
};

use crate::{
    maps::{addresses, rules},
    session::lookup::InForce,
    work::{Exit, Outcome, Work},
};

/// Removes priority tags, and classifies the frame.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    // Before a tag is removed: without rules, frames are passed as they are.
    let version = work.settings.version();
    let rule_set = rules::in_force(version).ok_or(Reason::NotConfigured)?;
    for _ in 0..MAX_TAGS {
        let found = content(&work.frame);
        if !matches!(found, Content::PriorityTag) {
            return Err(exit(&InForce::with(work, version, rule_set), found));
        }
        // The only change to a frame that may still be passed to the kernel, which would do the
        // same.
        work.frame.untag().ok_or(Reason::EthernetDenied)?;
    }
    Err(Reason::EthernetDenied.into())
}

#[inline(always)]
fn exit(in_force: &InForce<'_>, content: Content) -> Exit {
    let is_admitted = match content {
        Content::Ipv4 => return Exit::To(Stage::Slow),
        Content::Ipv6 => return Exit::To(Stage::Ipv6),
        Content::Link => true,
        Content::InVlan(source, destination) => {
            if is_martian(source, destination, addresses::is_local) {
                return Reason::Martian.into();
            }
            source == AZURE_PLATFORM || !is_closed_out(in_force, source)
        }
        Content::Ipv6InVlan | Content::Other => !is_closed_side(in_force),
        Content::PriorityTag | Content::Unreadable => false,
    };
    if is_admitted { Reason::NotIpv4.into() } else { Reason::EthernetDenied.into() }
}

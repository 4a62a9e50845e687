//! Frames that are no untagged IPv4, see [`router_common::ethernet`].

use router_common::{
    address::AZURE_PLATFORM,
    ethernet::{Content, MAX_TAGS, content},
    local::{is_martian_destination, is_martian_source},
    maps::{rules::RuleSet, stages::Stage},
    reason::Reason,
};

use crate::{
    maps::{addresses, rules},
    work::{Exit, Outcome, Work},
};

/// Takes priority tags off, and finds out whose the frame is.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Outcome {
    let version = work.settings.version();
    let rule_set = rules::in_force(version).ok_or(Reason::NotConfigured)?;
    for _ in 0..MAX_TAGS {
        let found = content(&work.frame);
        if !matches!(found, Content::PriorityTag) {
            return Err(exit(work, rule_set, found));
        }
        // The one change to a frame that may be passed to the kernel, which would do the same.
        work.frame.untag().ok_or(Reason::EthernetDenied)?;
    }
    Err(Reason::EthernetDenied.into())
}

#[inline(always)]
fn exit(work: &Work, rule_set: &RuleSet, content: Content) -> Exit {
    let is_let_in = match content {
        Content::Ipv4 => return Exit::To(Stage::Slow),
        Content::Ipv6 => return Exit::To(Stage::Ipv6),
        Content::Link => true,
        Content::InVlan(source, destination) => {
            if is_martian_source(source, destination)
                || is_martian_destination(destination)
                || addresses::is_local(source)
            {
                return Reason::Martian.into();
            }
            source == AZURE_PLATFORM || !rules::is_closed_out(work.settings.version(), source)
        }
        Content::Ipv6InVlan | Content::Other => !rules::is_closed(work.side(), rule_set),
        Content::PriorityTag | Content::Unreadable => false,
    };
    if is_let_in { Reason::NotIpv4.into() } else { Reason::EthernetDenied.into() }
}

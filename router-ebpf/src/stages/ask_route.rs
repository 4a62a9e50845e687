//! The program `ask_route`: the daemon's query where a packet would leave, which stands in place of
//! the packet, see [`router_common::maps::route`].

use router_common::{
    maps::route::Query,
    wire::{ETHERNET_LENGTH, Frame as _},
};

use crate::{kernel::next_hop, work::Work};

/// Puts the answer in place of the query. `None` if the frame is too short to be one.
#[inline(always)]
pub(crate) fn run(work: &mut Work) -> Option<()> {
    let query = Query::from_bytes(*work.frame.bytes(ETHERNET_LENGTH)?);
    let answer = next_hop::answer(work, &query)?;
    *work.frame.bytes_mut(ETHERNET_LENGTH)? = answer.to_bytes();
    Some(())
}

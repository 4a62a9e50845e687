//! The two ends of the crowd's and the short sessions' wires: packet sockets, so that no kernel's
//! stack has a say.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    churn::{self, Churn},
    crowd::{self, Echo, Speakers},
    place::{CLIENTS_MAC, Place, ROUTER_MAC, SERVERS_MACS, TARGET},
    plan::{Options, Phases},
    report::Tally,
};
use crate::{
    packet::{ICMP, TCP, UDP, pseudo_header, sum},
    view::{Tuple, View},
    wire::Wire,
};

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];

/// The time that a wire may be silent until the end looks at what is due.
const TURN: Duration = Duration::from_millis(2);

/// One end.
struct End<'a> {
    wire: Wire,
    mac: [u8; 6],
    tally: &'a Tally,
}

impl End<'_> {
    fn send(&self, packets: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
        for packet in packets {
            self.wire.send(&[&ROUTER_MAC, &self.mac, IPV4.as_slice(), &packet].concat())?;
        }
        Ok(())
    }

    /// Returns the next packet, if there is one. A packet that no router may send is a mistake.
    fn take(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(frame) = self.wire.take()? else { return Ok(None) };
        let packet = &frame[ETHERNET..];
        if let Some(wrong) = wrong(packet) {
            self.tally.mistakes.add(|| format!("a packet {wrong}: {packet:02x?}"));
            return Ok(Some(Vec::new()));
        }
        Ok(Some(packet.to_vec()))
    }
}

/// Returns the error of a packet's checksums.
fn wrong(packet: &[u8]) -> Option<&'static str> {
    let Some(view) = View::new(packet).filter(|view| view.is_whole() && !view.is_fragment()) else {
        return Some("that is not whole");
    };
    let payload = view.payload();
    let pseudo = pseudo_header(view.source(), view.destination(), view.protocol(), payload.len());
    let transport = match view.protocol() {
        TCP | UDP => sum(&[&pseudo, payload]),
        ICMP => sum(&[payload]),
        _ => return Some("of an unused protocol"),
    };
    // The sum over correct bytes, checksum included, is -0 (RFC 1071).
    if sum(&[view.header()]) != 0xffff {
        Some("with a wrong header checksum")
    } else if transport != 0xffff {
        Some("with a wrong transport checksum")
    } else {
        None
    }
}

/// The clients of the crowd and of the short sessions, until all is over.
pub(super) fn clients(place: &Place, options: &Options, phases: &Phases, tally: &Tally) -> Result<()> {
    let mut end = End { wire: Wire::open(&place.clients, "eth0")?, mac: CLIENTS_MAC, tally };
    end.wire.keep_only([10, 64, 0, 0].into(), 14)?;
    let mut crowd = Speakers::new(options.sessions, tally);
    let mut churn = Churn::new(options.churn, options.seed, tally);
    while !phases.stopped() {
        let mut answers = Vec::new();
        while let Some(packet) = end.take()? {
            let Some(view) = View::new(&packet) else { continue };
            let tuple = view.tuple();
            if tuple.protocol == UDP && crowd::is_service(tuple.source.port()) {
                crowd.hear(view, &tuple);
            } else {
                answers.extend(churn.hear(view, &tuple));
            }
        }
        end.send(answers)?;
        let now = Instant::now();
        end.send(crowd.speak(now, phases.finishing()))?;
        // The crowd gathers alone: there is enough to do.
        if phases.is_crowded() && !phases.finishing() {
            end.send(churn.begin(now))?;
        }
        end.wire.wait(TURN)?;
    }
    let unheard = crowd.unheard();
    if unheard > 0 {
        tally.mistakes.add(|| format!("{unheard} sessions of the crowd have not heard their last word"));
    }
    Ok(())
}

/// Their targets, until all is over.
pub(super) fn servers(place: &Place, options: &Options, phases: &Phases, tally: &Tally) -> Result<()> {
    let mut end = End { wire: Wire::open(&place.servers, "eth0")?, mac: SERVERS_MACS[0], tally };
    end.wire.keep_only(TARGET, 32)?;
    let mut echo = Echo::new(options.sessions, tally);
    while !phases.stopped() {
        while let Some(packet) = end.take()? {
            let Some(view) = View::new(&packet) else { continue };
            let tuple: Tuple = view.tuple();
            let answer = if tuple.protocol == UDP && crowd::is_service(tuple.destination.port()) {
                echo.answer(view, &tuple, Instant::now())
            } else {
                churn::answer(view, &tuple)
            };
            end.send(answer)?;
        }
        end.wire.wait(TURN)?;
    }
    Ok(())
}

//! Packets as a person reads them.

use std::fmt::Write as _;

use super::observe::Check;
use crate::{
    packet::{ACK, ECHO_REPLY, ECHO_REQUEST, FIN, ICMP, PSH, RST, SYN, TCP, UDP, URG},
    view::View,
};

/// A packet in one line, about as tcpdump has it.
pub(super) fn packet(bytes: &[u8]) -> String {
    let Some(view) = View::new(bytes) else { return format!("no IPv4: {bytes:02x?}") };
    let mut line = format!("{}", view.source());
    let tuple = view.tuple();
    let (source, destination) = view.port_offsets();
    if source.is_some() {
        _ = write!(line, ".{}", tuple.source.port());
    }
    _ = write!(line, " > {}", view.destination());
    if destination.is_some() {
        _ = write!(line, ".{}", tuple.destination.port());
    }
    _ = write!(line, ": {}", body(view));
    _ = write!(line, " [id {} ttl {} tos {:#x}", view.id(), view.ttl(), view.tos());
    if view.dont_fragment() {
        line.push_str(" DF");
    }
    if view.is_fragment() {
        _ = write!(line, " frag {}+{}", view.offset(), view.payload().len());
        line.push_str(if view.more_fragments() { " MF" } else { "" });
    }
    _ = write!(line, " length {}", view.total_length());
    if view.total_length() != bytes.len() {
        _ = write!(line, " of {}", bytes.len());
    }
    if view.header_length() > 20 {
        _ = write!(line, " options {:02x?}", &view.header()[20..]);
    }
    line.push(']');
    if let Some(quoted) = view.quoted() {
        _ = write!(line, " about ({})", packet(quoted));
    }
    line
}

fn body(view: View<'_>) -> String {
    let payload = view.payload();
    if view.offset() > 0 {
        return format!("protocol {}", view.protocol());
    }
    let half = |at: usize| payload.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let word = |at: usize| {
        payload.get(at..at + 4).and_then(|four| four.first_chunk()).copied().map(u32::from_be_bytes)
    };
    match (view.protocol(), payload) {
        (TCP, [.., _]) if payload.len() >= 20 => {
            let flags = payload[13];
            let mut names = String::new();
            for (flag, name) in [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (URG, 'U'), (ACK, '.')] {
                if flags & flag != 0 {
                    names.push(name);
                }
            }
            format!(
                "tcp [{names}] seq {} ack {} win {} payload {}",
                word(4).unwrap_or(0),
                word(8).unwrap_or(0),
                half(14).unwrap_or(0),
                payload.len().saturating_sub(usize::from(payload[12] >> 4) * 4)
            )
        }
        (UDP, [_, _, _, _, a, b, ..]) => format!("udp length {}", u16::from_be_bytes([*a, *b])),
        (ICMP, [kind @ (ECHO_REQUEST | ECHO_REPLY), _, _, _, _, _, a, b, ..]) => {
            let name = if *kind == ECHO_REQUEST { "request" } else { "reply" };
            format!("echo {name} seq {} payload {}", u16::from_be_bytes([*a, *b]), payload.len() - 8)
        }
        (ICMP, [kind, code, _, _, rest @ ..]) => {
            format!(
                "icmp type {kind} code {code} rest {:02x?} payload {}",
                &rest[..rest.len().min(4)],
                payload.len()
            )
        }
        (protocol, _) => format!("protocol {protocol} payload {}", payload.len()),
    }
}

/// Returns the results for checksums, if any is worth mentioning.
pub(super) fn checks(checks: &[Check]) -> String {
    if checks.iter().all(|check| *check == Check::Right) {
        String::new()
    } else {
        format!(" checksums {checks:?}")
    }
}

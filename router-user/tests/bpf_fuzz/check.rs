//! The properties that hold for every packet.

use anyhow::{Context as _, Result, bail, ensure};
use router_common::maps::punt::Kind;

use crate::{
    closed::Closed,
    frames::ROUTER_MAC,
    model::{Model, Route},
    packets::{PLATFORM, ROUTER, ROUTER_SECOND},
    wire::{
        End, Header, ICMP, IP, TCP, Tuple, UDP, address, checksum_offset, frame_header, header,
        header_checksum_is_right, is_host, is_icmp_error, same_sum, sum, transport_sum, tuple, whole_tuple,
    },
    world::Verdict,
};

/// A packet that was given to the router.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// The interface that it came in on.
    pub(crate) slot: usize,
    pub(crate) frame: Vec<u8>,
}

/// The router's output.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
    /// The packets that it punted.
    pub(crate) punts: Vec<(Kind, Vec<u8>)>,
}

/// Checks what became of a packet, and takes note of the session that it has opened.
///
/// `given`: without the priority tags that it began with.
pub(crate) fn check(model: &mut Model, closed: &mut Closed, given: &Given, done: &Done) -> Result<()> {
    for (kind, punt) in &done.punts {
        check_punt(model, given, done.verdict, *kind, punt)
            .with_context(|| format!("given to the daemon to {kind:?}"))?;
    }
    match done.verdict {
        Verdict::Aborted => bail!("aborted"),
        Verdict::Pass => {
            ensure!(done.frame == given.frame, "passed to the kernel, but changed");
            ensure!(!has_to_leave(model, given), "a live session's packet was passed to the kernel");
            closed.check(model, given.slot, &done.frame).context("closed")?;
        }
        Verdict::Drop => {
            ensure!(!is_the_platforms(model, &given.frame), "a packet of Azure's platform was dropped");
            ensure!(!has_to_leave(model, given), "a live session's packet was dropped");
        }
        Verdict::Tx | Verdict::Redirect => {
            let slot = if done.verdict == Verdict::Tx { given.slot } else { 1 - given.slot };
            let before = model.opened;
            ensure!(!is_on_the_wrong_side(model, given), "a client's packet came in by the firewall's side");
            check_sent(model, given, &done.frame, slot)?;
            let is_rules =
                frame_header(&given.frame).is_some_and(|ip| model.own_addresses().contains(&ip.destination));
            let is_wrong = is_rules && given.slot == 1 && model.opened > before;
            ensure!(!is_wrong, "a forward's session was opened on the firewall's side");
        }
    }
    Ok(())
}

/// Returns `true` for a client's frame of a forward's live session that has come in where the
/// firewall is.
fn is_on_the_wrong_side(model: &Model, given: &Given) -> bool {
    given.slot == 1
        && given.frame.get(IP..).and_then(tuple).is_some_and(|from| {
            model.own_addresses().contains(&from.destination.0) && model.sessions().contains(&from)
        })
}

/// Returns `true` if the router has to forward a frame: whole, of a live session, and with a route.
fn has_to_leave(model: &Model, given: &Given) -> bool {
    let frame = &given.frame;
    if is_on_the_wrong_side(model, given) {
        return false;
    }
    let Some(from) = whole_tuple(frame) else { return false };
    let Some(to) = model.translated(&from) else { return false };
    // A packet that may open another connection may be refused.
    if flags(&frame[IP..]).is_some_and(|flags| model.may_open_again(&from, flags)) {
        return false;
    }
    let (Some(ip), Some(route)) = (frame_header(frame), model.route(to.destination.0)) else { return false };
    frame[..6] == ROUTER_MAC && ip.ttl > 1 && ip.total <= route.mtu && header_checksum_is_right(&frame[IP..])
}

/// Returns `true` if a frame is an otherwise valid packet to or from Azure's platform.
fn is_the_platforms(model: &Model, frame: &[u8]) -> bool {
    let Some(ip) = frame_header(frame) else { return false };
    let is_spoofed = model.own_addresses().contains(&ip.source);
    let is_meant = ip.source == PLATFORM && is_host(ip.destination)
        || ip.destination == PLATFORM && is_host(ip.source) && !is_spoofed;
    is_meant && header_checksum_is_right(&frame[IP..])
}

fn check_sent(model: &mut Model, given: &Given, out: &[u8], slot: usize) -> Result<()> {
    let frame = &given.frame;
    let ip = frame_header(frame).context("what is sent is no IPv4 packet")?;
    ensure!(ip.source != PLATFORM && ip.destination != PLATFORM, "a packet of Azure's platform was sent on");
    let to = header(&out[IP.min(out.len())..]).context("what is sent has no IPv4 header")?;
    ensure!(out[12..IP] == [0x08, 0x00], "what is sent is no IPv4 packet");
    let route = model.route(to.destination).with_context(|| format!("no route to {:?}", to.destination))?;
    ensure!(route.slot == slot, "sent out of slot {slot} and not {}", route.slot);
    ensure!(out[..12] == ethernet(&route), "the Ethernet addresses {:02x?}", &out[..12]);
    if is_answer(frame, &ip, &out[IP..]) {
        return check_answer(model, given, &ip, &out[IP..]).context("an answer of the router's own");
    }
    ensure!(to.total <= route.mtu, "larger than the MTU of {}", route.mtu);
    check_translated(model, frame, &out[IP..])
}

/// A packet to be split is translated like a transmitted one. A packet to be held, or that waits
/// for its neighbour, is unchanged.
fn check_punt(model: &mut Model, given: &Given, verdict: Verdict, kind: Kind, punt: &[u8]) -> Result<()> {
    let ip = frame_header(&given.frame).context("no IPv4 packet")?;
    let original = &given.frame[IP..IP + ip.total.min(given.frame.len() - IP)];
    match kind {
        Kind::EarlyFragment => {
            ensure!(matches!(verdict, Verdict::Drop | Verdict::Pass), "held, and {verdict:?}");
            ensure!(ip.fragment_offset > 0 && punt == original, "not a later fragment as it came");
            return Ok(());
        }
        Kind::FirstFragment => {
            let is_first = ip.more_fragments && ip.fragment_offset == 0;
            ensure!(is_first && punt.len() == 20, "no header of a first fragment");
            return Ok(());
        }
        Kind::Wait => {
            ensure!(verdict == Verdict::Drop, "waits, and {verdict:?}");
            ensure!(punt == original, "does not wait as it came");
            return Ok(());
        }
        Kind::Split => ensure!(verdict == Verdict::Drop, "and not dropped"),
    }
    let to = header(punt).context("no IPv4 header")?;
    ensure!(punt.len() == to.total, "{} bytes of a packet of {}", punt.len(), to.total);
    // With the bytes that the frame had after the packet.
    let padding = &given.frame[(IP + to.total).min(given.frame.len())..];
    check_translated(model, &given.frame, &[punt, padding].concat())
}

/// Checks a packet that was translated, from its IP header to the frame's end.
fn check_translated(model: &mut Model, frame: &[u8], out: &[u8]) -> Result<()> {
    let packet = &frame[IP..];
    ensure!(out.len() == packet.len(), "{} bytes came in and {} went out", packet.len(), out.len());
    let ip = header(packet).context("no IPv4 header")?;
    ensure!(ip.ttl > 1, "sent on although its time to live was over");
    ensure!(out[8] == ip.ttl - 1, "the time to live is {} after {}", out[8], ip.ttl);
    let (before, after) = (sum(&[&packet[..ip.length]]), sum(&[&out[..ip.length]]));
    ensure!(same_sum(before, after), "the header checksum is off: {before:04x} became {after:04x}");
    if is_icmp_error(packet) {
        return check_error(model, packet, out, &ip);
    }
    if ip.is_fragment() {
        return check_fragment(model, packet, out, &ip);
    }
    let from = tuple(packet).context("no tuple")?;
    let moves = tuple(out).is_some_and(|to| model.translated(&from) != Some(to));
    if moves && flags(packet).is_some_and(|flags| model.may_open_again(&from, flags)) {
        model.forget_ended(&from);
    }
    let to = match model.translated(&from) {
        Some(to) => to,
        None => {
            let to = tuple(out).context("what is sent has no tuple")?;
            check_opens(packet, frame, &ip)?;
            model.open(from, to).with_context(|| format!("{from:?} became {to:?}"))?;
            to
        }
    };
    check_rewritten(packet, out, &ip, &to)
}

/// Returns `true` if a packet may open a session.
fn check_opens(packet: &[u8], frame: &[u8], ip: &Header) -> Result<()> {
    ensure!(frame[..6] == ROUTER_MAC, "opened by a frame to another machine");
    ensure!(header_checksum_is_right(packet), "opened by a packet with a wrong header checksum");
    ensure!(
        ip.protocol != TCP || packet[ip.length + 13] & 0x17 == 0x02,
        "opened by a segment with flags {:02x}",
        packet[ip.length + 13]
    );
    Ok(())
}

/// The flags of a packet that is TCP and has them.
pub(crate) fn flags(packet: &[u8]) -> Option<u8> {
    let ip = header(packet).filter(|ip| ip.protocol == TCP && ip.fragment_offset == 0)?;
    packet.get(ip.length + 13).copied()
}

/// Checks that a packet has become one with the tuple `to`, and nothing else about it has changed.
fn check_rewritten(packet: &[u8], out: &[u8], ip: &Header, to: &Tuple) -> Result<()> {
    let mut expected = packet.to_vec();
    expected[8] = ip.ttl - 1;
    expected[10..12].copy_from_slice(&out[10..12]);
    expected[12..16].copy_from_slice(&to.source.0);
    expected[16..20].copy_from_slice(&to.destination.0);
    if ip.fragment_offset == 0 {
        let at = ip.length;
        if ip.protocol == ICMP {
            expected[at + 4..at + 6].copy_from_slice(&(to.source.1 | to.destination.1).to_be_bytes());
        } else {
            expected[at..at + 2].copy_from_slice(&to.source.1.to_be_bytes());
            expected[at + 2..at + 4].copy_from_slice(&to.destination.1.to_be_bytes());
        }
        check_transport_checksum(packet, out, ip)?;
        if let Some(offset) = checksum_offset(ip.protocol)
            && at + offset + 2 <= packet.len()
        {
            expected[at + offset..at + offset + 2].copy_from_slice(&out[at + offset..at + offset + 2]);
        }
    }
    if let Some(at) = (0..expected.len()).find(|at| expected[*at] != out[*at]) {
        bail!("byte {at} of the IP packet is {:02x} and should be {:02x}", out[at], expected[at]);
    }
    Ok(())
}

/// A transport checksum stays as right, or as wrong, as it was; one that is "none" stays so.
fn check_transport_checksum(packet: &[u8], out: &[u8], ip: &Header) -> Result<()> {
    let to = header(out).context("no IPv4 header")?;
    if ip.protocol == UDP {
        let at = ip.length + 6;
        let checksums = [&packet[at..at + 2], &out[at..at + 2]];
        if checksums[0] == [0, 0] {
            ensure!(checksums[1] == [0, 0], "a UDP packet without a checksum has got one");
            return Ok(());
        }
        ensure!(checksums[1] != [0, 0], "a UDP packet with a checksum has lost it");
    }
    let (before, after) = (transport_sum(packet, ip), transport_sum(out, &to));
    ensure!(same_sum(before, after), "the transport checksum is off: {before:04x} became {after:04x}");
    Ok(())
}

/// Checks a fragment: it goes where its session's packets go. A later fragment is matched to its
/// session by addresses only.
fn check_fragment(model: &mut Model, packet: &[u8], out: &[u8], ip: &Header) -> Result<()> {
    let sent = header(out).context("no IPv4 header")?;
    if let Some(from) = tuple(packet) {
        let moves = tuple(out).is_some_and(|to| model.translated(&from) != Some(to));
        if moves && flags(packet).is_some_and(|flags| model.may_open_again(&from, flags)) {
            model.forget_ended(&from);
        }
        let to = match model.translated(&from) {
            Some(to) => to,
            None => {
                let to = tuple(out).context("what is sent has no tuple")?;
                model.open(from, to)?;
                to
            }
        };
        return check_rewritten(packet, out, ip, &to);
    }
    let of_session = |(from, to): (&Tuple, &Tuple)| {
        let is_meant = from.protocol == ip.protocol
            && (from.source.0, from.destination.0) == (ip.source, ip.destination)
            && (to.source.0, to.destination.0) == (sent.source, sent.destination);
        is_meant.then_some(*to)
    };
    let to = model.flows().find_map(of_session).context("a fragment of no session was sent on")?;
    check_rewritten(packet, out, ip, &to)
}

/// Checks an ICMP error that was sent on: it is about a live session, quotes what its reader has
/// sent, and comes from where that went.
fn check_error(model: &Model, packet: &[u8], out: &[u8], ip: &Header) -> Result<()> {
    ensure!(!ip.is_fragment(), "a fragment of an ICMP error was sent on");
    let sent = header(out).context("no IPv4 header")?;
    let at = ip.length + 8;
    ensure!(at <= ip.total && ip.total <= packet.len(), "an error that is cut off was sent on");
    ensure!(packet[ip.total..] == out[ip.total..], "what is behind the packet has changed");
    let (quote, out_quote) = (&packet[at..ip.total], &out[at..ip.total]);
    let quoted = tuple(quote).context("an error about nothing that is known")?;
    // The way that answers to the quoted packet take.
    let way = model.translated(&quoted.reversed()).context("an error about no live session")?;
    let expected = way.reversed();
    let out_quoted = tuple(out_quote).context("the quote is broken")?;
    // An identifier of 0 does not tell a request from a reply.
    let is_either = quoted.protocol == ICMP && quoted.source.1 == 0;
    let fits = out_quoted == expected
        || is_either && (out_quoted.source, out_quoted.destination.0) == swapped(&expected);
    ensure!(fits, "the quote is {out_quoted:?} and should be {expected:?}");
    ensure!(sent.destination == way.destination.0, "sent to {:?}", sent.destination);
    // A target is not told of the client.
    let is_kept = sent.source == ip.source && !model.snat.contains(&way.source.0);
    ensure!(is_kept || sent.source == way.source.0, "sent from {:?}", sent.source);
    let whole = |bytes: &[u8], ip: &Header| sum(&[&bytes[ip.length..ip.total.min(bytes.len())]]);
    let (before, after) = (whole(packet, ip), whole(out, &sent));
    ensure!(same_sum(before, after), "the ICMP checksum is off: {before:04x} became {after:04x}");
    check_quote(quote, out_quote)
}

/// The ends of an echo's tuple if it were of the other type.
const fn swapped(tuple: &Tuple) -> (End, [u8; 4]) {
    ((tuple.source.0, tuple.destination.1), tuple.destination.0)
}

/// A quote's checksums stay as right as they were, as far as it has them, and the rest of it as it
/// was.
fn check_quote(quote: &[u8], out: &[u8]) -> Result<()> {
    let ip = header(quote).context("no quote")?;
    let (before, after) = (sum(&[&quote[..ip.length]]), sum(&[&out[..ip.length]]));
    ensure!(same_sum(before, after), "the quote's header checksum is off: {before:04x} became {after:04x}");
    let mut expected = quote.to_vec();
    let mut take =
        |at: usize, length: usize| expected[at..at + length].copy_from_slice(&out[at..at + length]);
    take(10, 10);
    take(ip.length, 8);
    if let Some(offset) = checksum_offset(ip.protocol).map(|offset| ip.length + offset)
        && offset + 2 <= quote.len()
    {
        take(offset, 2);
        let has_none = ip.protocol == UDP && quote[offset..offset + 2] == [0, 0];
        if has_none {
            ensure!(out[offset..offset + 2] == [0, 0], "a quoted UDP packet has got a checksum");
        } else {
            let covered = |bytes: &[u8]| {
                let pseudo = if ip.protocol == ICMP { &[][..] } else { &bytes[12..20] };
                // TCP's checksum is not among the first eight bytes.
                let checksum = if ip.protocol == TCP { &bytes[offset..offset + 2] } else { &[] };
                sum(&[pseudo, &bytes[ip.length..ip.length + 8], checksum])
            };
            ensure!(same_sum(covered(quote), covered(out)), "the quote's transport checksum is off");
        }
    }
    ensure!(expected == out, "more of the quote has changed than its tuple and checksums");
    Ok(())
}

/// Returns `true` if the output is no translation but the router's own answer to the sender.
fn is_answer(frame: &[u8], ip: &Header, packet: &[u8]) -> bool {
    let Some(to) = header(packet) else { return false };
    if to.destination != ip.source {
        return false;
    }
    if to.protocol == ICMP && !is_icmp_error(&frame[IP..]) {
        return is_icmp_error(packet);
    }
    let reset = to.protocol == TCP && packet.get(to.length + 13).is_some_and(|flags| flags & 0x04 != 0);
    reset && tuple(&frame[IP..]).is_some_and(|from| tuple(packet) == Some(from.reversed()))
}

/// Checks an answer of the router's own: well formed, to the one that sent the packet, and never
/// where RFC 1122 3.2.2 forbids one.
fn check_answer(model: &Model, given: &Given, ip: &Header, answer: &[u8]) -> Result<()> {
    let (frame, packet) = (&given.frame, &given.frame[IP..]);
    let to = &header(answer).context("no IPv4 header")?;
    ensure!(frame[..6] == ROUTER_MAC, "about a frame to another machine");
    ensure!(header_checksum_is_right(packet), "about a packet with a wrong header checksum");
    ensure!(ip.fragment_offset == 0, "about a later fragment");
    ensure!(is_host(ip.source), "to an address that is no single host's");
    ensure!(header_checksum_is_right(answer), "its header checksum is wrong");
    ensure!(to.length == 20 && to.total <= answer.len(), "its length");
    ensure!(transport_sum(answer, to) == 0xffff, "its transport checksum is wrong");
    ensure!(to.ttl >= 32, "its time to live is {}", to.ttl);
    if to.protocol == TCP {
        ensure!(packet[ip.length + 13] & 0x04 == 0, "a reset in answer to a reset");
        return Ok(());
    }
    let own = if given.slot == 0 { ROUTER } else { ROUTER_SECOND };
    let is_addressed = to.source == ip.destination && model.own_addresses().contains(&to.source);
    ensure!(is_addressed || to.source == own, "it comes from {:?}", to.source);
    let quote = &answer[28..to.total];
    ensure!(quote.len() >= ip.length + 8, "it quotes {} bytes", quote.len());
    ensure!(packet.starts_with(quote), "it does not quote the packet as it came");
    Ok(())
}

fn ethernet(route: &Route) -> [u8; 12] {
    let mut addresses = [0; 12];
    addresses[..6].copy_from_slice(&route.mac);
    addresses[6..].copy_from_slice(&ROUTER_MAC);
    addresses
}

/// Returns the description of a packet in a report, readable without a dissector.
pub(crate) fn describe(frame: &[u8]) -> String {
    match frame_header(frame) {
        Some(ip) => format!("{ip:?} {:?}", tuple(&frame[IP..])),
        None => format!("{} bytes, to {:02x?}", frame.len(), address(frame, 0)),
    }
}

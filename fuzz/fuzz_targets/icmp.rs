//! Any bytes as an ICMP message: reading what it quotes ends, and translating that keeps the
//! message what it was.
//!
//! After every translation: the quote has the tuple that it was meant to get, only its tuple and
//! checksums have changed, and the message's own sum is what it was. The sum is a plain RFC 1071
//! one, not the code under test.
#![no_main]

use libfuzzer_sys::fuzz_target;
use router_common::{
    address::{Ipv4, Port},
    icmp::{CAPACITY, HEAD, Message},
    rewrite::Rewrite,
    tuple::Protocol,
};

const ECHO_REQUEST: u8 = 8;

fuzz_target!(|data: &[u8]| {
    // The first bytes choose what the answering flow becomes, the rest is the message.
    let Some((tuple, bytes)) = data.split_first_chunk::<12>() else { return };
    let length = bytes.len().min(CAPACITY - 4);
    let mut before = [0; CAPACITY];
    before[..length].copy_from_slice(&bytes[..length]);
    let message = Message::new(length as u32, before);
    let Some(quoted) = message.quoted() else { return };

    // Where the quote's transport header starts.
    let header = 8 + usize::from(before[8] & 0x0f) * 4;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *tuple;
    let (source_port, destination_port) = match quoted.protocol() {
        // The identifier stays where it is: the quote of a request is answered by a reply.
        Some(Protocol::Icmp) if before[header] == ECHO_REQUEST => (Port([0, 0]), Port([k, l | 1])),
        Some(Protocol::Icmp) => (Port([i, j | 1]), Port([0, 0])),
        _ => (Port([i, j]), Port([k, l])),
    };
    let rewrite = Rewrite {
        source: Ipv4([a, b, c, d]),
        destination: Ipv4([e, f, g, h]),
        source_port,
        destination_port,
    };
    message.translate(&rewrite);
    let after = message.to_bytes();

    let expected =
        quoted.between(rewrite.destination, rewrite.destination_port, rewrite.source, rewrite.source_port);
    assert_eq!(message.quoted(), Some(expected));
    assert_eq!(sum(&after[..length]) % 0xffff, sum(&before[..length]) % 0xffff);
    assert_eq!(after[HEAD..], before[HEAD..], "behind what is written back");
    assert_eq!(after[length..], before[length..], "behind the message");
    assert_eq!(sum(&after[8..header]) % 0xffff, sum(&before[8..header]) % 0xffff);
    // Type and code, the rest of the header, and the quote's up to its checksum.
    assert_eq!(after[..2], before[..2]);
    assert_eq!(after[4..18], before[4..18]);
    // IP options.
    assert_eq!(after[28..header], before[28..header]);
});

/// The folded one's-complement sum of big-endian words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

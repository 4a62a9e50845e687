//! Frames other than untagged IPv4: what they carry, and where that could lead.
//!
//! A rule's clients reach nothing else of this machine, and how a packet is wrapped must not change
//! that. Linux removes tags itself (`skb_vlan_untag`, net/core/skbuff.c), hands the packets of a
//! VLAN to the VLAN's device, and has other protocols that carry IP (PPPoE, MPLS, MACsec, BATMAN,
//! LLC). So a frame that could lead to a socket of this machine is judged like the packet inside,
//! or not let in.

use crate::{
    address::Ipv4,
    wire::{ETHERNET_LENGTH, Frame, TAG_LENGTH, ethernet, ipv4},
};

/// The maximum number of tags that are skipped. No sender uses more.
pub const MAX_TAGS: usize = 3;

/// The bits of a tag that name the VLAN (IEEE 802.1Q 9.6).
const VLAN: u16 = 0x0fff;

/// The content of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// A tag that names no VLAN, only a priority: the frame is what it would be without the tag.
    PriorityTag,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// The link's own: ARP and other protocols that run the link, and never lead to a socket of
    /// TCP, UDP or IP.
    Link,
    /// An IPv4 packet in a VLAN, with its source and destination.
    InVlan(Ipv4, Ipv4),
    /// IPv6 in a VLAN.
    Ipv6InVlan,
    /// Another protocol.
    Other,
    /// Cut off, or with too many tags to know what it carries.
    Unreadable,
}

/// Reads what a frame carries. After the tag of a VLAN, further tags are skipped: each may lead to
/// another device of this machine.
#[inline(always)]
pub fn content(frame: &(impl Frame + ?Sized)) -> Content {
    let Some(ethertype) = frame.bytes::<2>(ethernet::TYPE) else { return Content::Unreadable };
    let first = kind(*ethertype, is_to_bridges(frame));
    if !matches!(first, Kind::Tag) {
        return match first {
            Kind::Ipv4 => Content::Ipv4,
            Kind::Ipv6 => Content::Ipv6,
            Kind::Link => Content::Link,
            Kind::Tag | Kind::Llc | Kind::Other => Content::Other,
        };
    }
    let Some([high, low, _, _]) = frame.bytes::<TAG_LENGTH>(ETHERNET_LENGTH) else {
        return Content::Unreadable;
    };
    if u16::from_be_bytes([*high, *low]) & VLAN == 0 {
        return Content::PriorityTag;
    }
    let mut tags = 1;
    while tags <= MAX_TAGS {
        let start = ETHERNET_LENGTH + tags * TAG_LENGTH;
        let Some(ethertype) = frame.bytes::<2>(start - 2) else { return Content::Unreadable };
        match kind(*ethertype, false) {
            Kind::Tag => tags += 1,
            Kind::Ipv4 => {
                // Version and length of the header are not looked at: the kernel discards what has
                // others than it should.
                let Some(addresses) = frame.bytes::<8>(start + ipv4::SOURCE) else {
                    return Content::Unreadable;
                };
                let [a, b, c, d, e, f, g, h] = *addresses;
                return Content::InVlan(Ipv4([a, b, c, d]), Ipv4([e, f, g, h]));
            }
            Kind::Ipv6 => return Content::Ipv6InVlan,
            Kind::Link => return Content::Link,
            Kind::Llc | Kind::Other => return Content::Other,
        }
    }
    Content::Unreadable
}

/// The meaning of an EtherType.
enum Kind {
    Tag,
    Ipv4,
    Ipv6,
    Link,
    Llc,
    Other,
}

/// Returns the meaning of an EtherType, or length. `to_bridges`: in a frame that no bridge passes
/// on.
#[inline(always)]
const fn kind(ethertype: [u8; 2], to_bridges: bool) -> Kind {
    match ethertype {
        ethernet::IPV4 => Kind::Ipv4,
        ethernet::IPV6 => Kind::Ipv6,
        // As in `eth_type_vlan` (include/linux/if_vlan.h). Linux knows no other tags.
        ethernet::VLAN | ethernet::SERVICE_VLAN => Kind::Tag,
        // ARP and RARP, EAPOL, LLDP, "slow protocols" such as LACP, connectivity fault management,
        // PTP.
        ethernet::ARP
        | [0x80, 0x35]
        | [0x88, 0x8e]
        | [0x88, 0xcc]
        | [0x88, 0x09]
        | [0x89, 0x02]
        | [0x88, 0xf7] => Kind::Link,
        _ if u16::from_be_bytes(ethertype) >= ethernet::FIRST_TYPE => Kind::Other,
        // Spanning tree.
        _ if to_bridges => Kind::Link,
        _ => Kind::Llc,
    }
}

/// Returns `true` if a frame is an LLC frame to the addresses that no bridge forwards to
/// (01-80-c2-00-00-00 to -0f, IEEE 802.1D 7.12.6), and not a SNAP frame, which may carry anything.
#[inline(always)]
fn is_to_bridges(frame: &(impl Frame + ?Sized)) -> bool {
    const SNAP: u8 = 0xaa;
    let Some(destination) = frame.bytes::<6>(0) else { return false };
    matches!(destination, [0x01, 0x80, 0xc2, 0, 0, last] if last & 0xf0 == 0)
        && frame.bytes::<1>(ETHERNET_LENGTH).is_some_and(|[service]| *service != SNAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_THIS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const TO_BRIDGES: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 0];

    /// A frame with these 16-bit numbers as EtherTypes and tags, followed by a packet from
    /// 10.0.2.69 to 10.0.2.68.
    fn frame(to: [u8; 6], words: &[u16]) -> Vec<u8> {
        let mut frame = [to, [2, 0, 0, 0, 0, 1]].concat();
        frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        frame.extend([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 69, 10, 0, 2, 68]);
        frame
    }

    const INSIDE: Content = Content::InVlan(Ipv4([10, 0, 2, 69]), Ipv4([10, 0, 2, 68]));

    #[test]
    fn content_after_tags_is_read() {
        for (words, expected) in [
            (&[0x0800][..], Content::Ipv4),
            (&[0x86dd], Content::Ipv6),
            (&[0x0806], Content::Link),
            (&[0x88cc], Content::Link),
            (&[0x8100, 0, 0x0800], Content::PriorityTag),
            (&[0x8100, 0xe000, 0x0800], Content::PriorityTag),
            (&[0x88a8, 0xf000, 0x8100, 5, 0x0800], Content::PriorityTag),
            (&[0x8100, 5, 0x0800], INSIDE),
            (&[0x88a8, 0xe005, 0x0800], INSIDE),
            (&[0x88a8, 5, 0x8100, 0, 0x0800], INSIDE),
            (&[0x88a8, 5, 0x8100, 6, 0x8100, 0, 0x0800], INSIDE),
            (&[0x8100, 5, 0x86dd], Content::Ipv6InVlan),
            (&[0x8100, 5, 0x0806], Content::Link),
            (&[0x8100, 5, 0x8100, 5, 0x8100, 5, 0x8100, 5, 0x0800], Content::Unreadable),
            (&[0x8100, 5, 0x8864], Content::Other),
            (&[0x8100, 5, 36, 0xaaaa, 0x0300, 0, 0x0800], Content::Other),
            (&[0x8847], Content::Other),
            (&[0x8864], Content::Other),
            (&[0x88e5], Content::Other),
            (&[0x9100, 0, 0x0800], Content::Other),
            (&[0x0801], Content::Other),
            (&[28, 0xaaaa, 0x0300, 0, 0x0800], Content::Other),
            (&[38, 0x4242], Content::Other),
        ] {
            assert_eq!(content(&frame(TO_THIS, words)[..]), expected, "{words:04x?}");
        }
    }

    #[test]
    fn spanning_tree_belongs_to_the_link() {
        assert_eq!(content(&frame(TO_BRIDGES, &[38, 0x4242])[..]), Content::Link);
        assert_eq!(content(&frame(TO_BRIDGES, &[38, 0xaaaa, 0x0300, 0, 0x0800])[..]), Content::Other);
        assert_eq!(content(&frame(TO_BRIDGES, &[0x8100, 5, 38, 0x4242])[..]), Content::Other);
        // IP is IP, whatever the destination.
        assert_eq!(content(&frame(TO_BRIDGES, &[0x86dd])[..]), Content::Ipv6);
    }

    #[test]
    fn truncated_frames_are_unreadable() {
        let whole = frame(TO_THIS, &[0x8100, 5, 0x88a8, 6, 0x0800]);
        for length in 14..whole.len() {
            assert_eq!(content(&whole[..length]), Content::Unreadable, "{length}");
        }
        assert_eq!(content(&whole[..]), INSIDE);
        let priority = frame(TO_THIS, &[0x8100, 0, 0x0800]);
        assert_eq!(content(&priority[..17]), Content::Unreadable);
    }
}

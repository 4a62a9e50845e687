//! What kinds of packets the sequences have.

/// Defines [`Category`] from one table, so that [`Category::ALL`] lacks none.
macro_rules! categories {
    ($($name:ident $description:literal;)*) => {
        /// A kind of packets, which can be left out.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub(super) enum Category {
            $(#[doc = $description] $name,)*
        }

        #[cfg(test)]
        impl Category {
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

categories! {
    Tcp "TCP connections as TCPs make them.";
    Udp "UDP both ways.";
    Echo "ICMP echo.";
    ZeroChecksum "UDP without a checksum.";
    Collision "Clients that use the same port towards the same server.";
    Unsolicited "Packets from servers that nobody has asked, and to ports that nobody has got.";
    Padding "Ethernet's padding after the packet.";
    OutOfState "TCP segments that no TCP sends in that state.";
    Outsider "From networks that may use nothing.";
    Local "To ports and protocols of the router's own.";
    IcmpError "ICMP errors about packets of the sequence.";
    Ttl "A time to live that ends at the router, or nearly.";
    Mtu "Packets larger than the way takes.";
    Fragment "Fragments.";
    IpOptions "IP options.";
    Malformed "What is wrong in itself: lengths, checksums.";
    Protocol "Neither TCP, UDP nor ICMP.";
    Martian "Sources and destinations that no packet has.";
}

/// The categories that run. Those that pls-router cannot do yet are below it.
pub(super) const ENABLED: &[Category] = &[
    Category::Tcp,
    Category::Udp,
    Category::Echo,
    Category::ZeroChecksum,
    Category::Collision,
    Category::Unsolicited,
    Category::Padding,
];

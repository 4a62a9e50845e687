//! The categories of packets in sequences.

use anyhow::{Context, Result};

/// Defines [`Category`] from one table, so that [`Category::ALL`] lacks none.
macro_rules! categories {
    ($($name:ident $description:literal;)*) => {
        /// A kind of packets, which can be left out.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub(super) enum Category {
            $(#[doc = $description] $name,)*
        }

        impl Category {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name.
            pub(super) const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

categories! {
    Tcp "TCP connections as TCPs make them.";
    Udp "UDP both ways.";
    Echo "ICMP echo.";
    ZeroChecksum "UDP without a checksum.";
    Collision "Clients that use the same port towards the same server.";
    Unsolicited "Packets from servers without a request, and to unused ports.";
    Padding "Ethernet's padding after the packet.";
    Late "Of a server's whose connection is over, after the next one has begun.";
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

/// The categories that run; `LAB_CATEGORIES` adds others to a run.
pub(super) const ENABLED: &[Category] = &[
    Category::Tcp,
    Category::Udp,
    Category::Echo,
    Category::ZeroChecksum,
    Category::Collision,
    Category::Unsolicited,
    Category::Padding,
    Category::Outsider,
    Category::Local,
    Category::Late,
    Category::OutOfState,
    Category::Protocol,
    Category::IcmpError,
    Category::Malformed,
    Category::Martian,
    Category::Ttl,
    Category::Mtu,
    Category::Fragment,
    Category::IpOptions,
];

/// The categories that run, and these: names with commas between them, or `all`.
pub(super) fn enabled_and(more: &str) -> Result<Vec<Category>> {
    if more == "all" {
        return Ok(Category::ALL.to_vec());
    }
    let mut categories = ENABLED.to_vec();
    for name in more.split(',').filter(|name| !name.is_empty()) {
        let found = Category::ALL.iter().find(|category| category.name() == name).copied();
        let found = found.with_context(|| {
            let known: Vec<_> = Category::ALL.iter().map(|category| category.name()).collect();
            format!("no category {name}; there are {}", known.join(", "))
        })?;
        if !categories.contains(&found) {
            categories.push(found);
        }
    }
    Ok(categories)
}

//! Puts names in the place of addresses: the same name for the same address, in all of the bundle,
//! so that it can still be followed where a packet goes.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use router_common::address::AZURE_PLATFORM;

/// The MAC address that Azure's network gives to everything: nobody's in particular.
const AZURE_MAC: &str = "12:34:56:78:9a:bc";
/// A shorter name of a machine is a word as any other.
const SHORTEST_NAME: usize = 3;

/// The names given so far.
#[derive(Debug, Default)]
pub(super) struct Pseudonyms {
    given: HashMap<String, String>,
    /// Counts for each kind.
    counts: HashMap<&'static str, u32>,
    /// Names of machines in lower case, the longest first.
    names: Vec<String>,
}

impl Pseudonyms {
    /// With names of machines that are replaced as well.
    pub(super) fn new(names: &[String]) -> Self {
        let is_meant = |name: &String| name.len() >= SHORTEST_NAME && name != "localhost";
        let names: BTreeSet<String> = names
            .iter()
            .map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase())
            .filter(is_meant)
            .collect();
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        Self { names, ..Self::default() }
    }

    /// Returns the text with every address replaced.
    pub(super) fn replace(&mut self, text: &str) -> String {
        let text = self.without_names(text);
        let mut clean = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(start) = rest.find(is_part) {
            let (before, from) = rest.split_at(start);
            let length = from.find(|c: char| !is_part(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(length);
            clean.push_str(before);
            clean.push_str(&self.word(word));
            rest = after;
        }
        clean.push_str(rest);
        clean
    }

    /// Replaces the names of machines.
    fn without_names(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in self.names.clone() {
            let lower = text.to_ascii_lowercase();
            let mut clean = String::new();
            let mut at = 0;
            for (place, _) in lower.match_indices(&name) {
                let is_in_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
                let (before, after) =
                    (text[..place].chars().next_back(), text[place + name.len()..].chars().next());
                if place < at || is_in_word(before) || is_in_word(after) {
                    continue;
                }
                clean.push_str(&text[at..place]);
                clean.push_str(&self.name("name", &name));
                at = place + name.len();
            }
            clean.push_str(&text[at..]);
            text = clean;
        }
        text
    }

    fn name(&mut self, kind: &'static str, of: &str) -> String {
        if let Some(known) = self.given.get(of) {
            return known.clone();
        }
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        let name = format!("{kind}-{count}");
        self.given.insert(of.to_owned(), name.clone());
        name
    }

    /// Replaces the addresses in a word: a run of letters, digits, dots and colons.
    fn word(&mut self, word: &str) -> String {
        // Dots and colons at its ends belong to the sentence ("::" does not).
        let inner = word.trim_end_matches('.');
        let inner = inner.strip_suffix(':').filter(|inner| !inner.ends_with(':')).unwrap_or(inner);
        let end = &word[inner.len()..];
        let clean = if let Some(mac) = mac(inner) {
            if mac == AZURE_MAC { inner.to_owned() } else { self.name("mac", &mac) }
        } else if let Ok(address) = inner.parse::<Ipv6Addr>() {
            self.ipv6(address, inner)
        } else if inner.contains(':') {
            inner.split(':').map(|piece| self.piece(piece)).collect::<Vec<_>>().join(":")
        } else {
            self.piece(inner)
        };
        clean + end
    }

    /// Replaces an IPv4 address in what stands between colons: four numbers, perhaps among others.
    fn piece(&mut self, piece: &str) -> String {
        let parts: Vec<&str> = piece.split('.').collect();
        let place = parts.windows(4).position(|four| four.join(".").parse::<Ipv4Addr>().is_ok());
        let Some((place, four)) = place.and_then(|place| Some((place, parts.get(place..place + 4)?))) else {
            return piece.to_owned();
        };
        let text = four.join(".");
        let name = match text.parse::<Ipv4Addr>() {
            Ok(address) if !is_public(address) => self.name("ipv4", &text),
            Ok(_) | Err(_) => text,
        };
        let before = parts.iter().take(place).map(|part| format!("{part}."));
        let rest = parts.get(place + 4..).unwrap_or_default().join(".");
        let after = if rest.is_empty() { rest } else { format!(".{}", self.piece(&rest)) };
        before.chain([name, after]).collect()
    }

    fn ipv6(&mut self, address: Ipv6Addr, text: &str) -> String {
        if let Some(inner) = address.to_ipv4_mapped() {
            return if is_public(inner) { text.to_owned() } else { self.name("ipv4", &inner.to_string()) };
        }
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return text.to_owned();
        }
        self.name("ipv6", &IpAddr::V6(address).to_string())
    }
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '.' || c == ':' || c == '_'
}

/// Returns `true` for addresses that tell nothing of a machine: they are the same on all, and how
/// the router treats them matters.
fn is_public(address: Ipv4Addr) -> bool {
    address.is_unspecified()
        || address.is_loopback()
        || address.is_broadcast()
        || address.is_multicast()
        || address == Ipv4Addr::from(AZURE_PLATFORM.0)
        // A mask.
        || u32::from(address).leading_ones() + u32::from(address).trailing_zeros() == 32
            && u32::from(address).leading_ones() >= 8
}

/// Returns a MAC address in its usual form: six pairs of digits, or the name that systemd makes of
/// one (`enx0a1b2c3d4e5f`).
fn mac(word: &str) -> Option<String> {
    let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    let pairs: Vec<&str> = word.split(':').collect();
    if pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2 && is_hex(pair)) {
        return Some(word.to_ascii_lowercase());
    }
    let digits = word.strip_prefix("enx").filter(|digits| digits.len() == 12 && is_hex(digits))?;
    let pairs = digits.as_bytes().chunks(2).map(String::from_utf8_lossy);
    Some(pairs.collect::<Vec<_>>().join(":").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replaced(text: &str) -> String {
        Pseudonyms::new(&["Router-1.example.com".to_owned(), "router-1".to_owned(), "db".to_owned()])
            .replace(text)
    }

    #[test]
    fn addresses_and_names_are_replaced_the_same_everywhere() {
        for (text, clean) in [
            ("10.0.2.68 to 10.0.2.69, and 10.0.2.68.", "ipv4-1 to ipv4-2, and ipv4-1."),
            ("tcp:10.0.2.68:443 10.0.2.64/26", "tcp:ipv4-1:443 ipv4-2/26"),
            ("68.2.0.10.in-addr.arpa", "ipv4-1.in-addr.arpa"),
            ("fe80::1%eth0, [fd00::5]:53 FD00::5", "ipv6-1%eth0, [ipv6-2]:53 ipv6-2"),
            ("::ffff:10.0.2.68 10.0.2.68", "ipv4-1 ipv4-1"),
            ("link/ether 00:0d:3a:01:02:03 altname enx000d3a010203", "link/ether mac-1 altname mac-1"),
            ("ROUTER-1 router-1.example.com router-12 db", "name-2 name-1 router-12 db"),
            ("from 10.0.2.70:", "from ipv4-1:"),
        ] {
            assert_eq!(replaced(text), clean);
        }
    }

    #[test]
    fn what_is_the_same_everywhere_stays() {
        for text in [
            "0.0.0.0:8082 127.0.0.1 168.63.129.16 255.255.255.0 224.0.0.1 ::1 :: ff02::1",
            "12:34:56:78:9a:bc",
            "at 12:34:56, router_user::daemon::serve, 6.1.0-57, v1.15.5, crate::face, fn::bad",
            "2026-11-30T14:00:05Z id=5 0x1f",
        ] {
            assert_eq!(replaced(text), text);
        }
    }

    proptest! {
        /// For any address between any words: it is gone, and any text is read.
        #[test]
        fn no_address_is_left(before in "[ -~]{0,20}[ =\\[(,/\"]", v4 in any::<u32>(), v6 in any::<u128>(), after in "[ \\])\",/%][ -~]{0,20}") {
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
            if !is_public(v4) {
                let clean = replaced(&format!("{before}{v4}{after}"));
                prop_assert!(!clean.contains(&v4.to_string()) || before.contains(&v4.to_string()), "{clean}");
                let clean = replaced(&format!("{before}{v4}:443{after}"));
                prop_assert!(!clean.contains(&v4.to_string()), "{clean}");
            }
            if v6.to_ipv4_mapped().is_none() {
                let clean = replaced(&format!("{before}{v6}{after}"));
                prop_assert!(v6.is_multicast() || !clean.contains(&v6.to_string()), "{clean}");
            }
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,200}") {
            replaced(&text);
        }
    }
}

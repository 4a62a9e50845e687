//! Sets of IPv4 addresses, as lists of networks, and of ports, as lists of ranges.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::{Ipv4Net, Ipv4Subnets};

/// Ports; in order, and none twice.
pub(super) type Ports = Vec<RangeInclusive<u16>>;

/// Every IPv4 address.
pub(super) const EVERYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// Reads `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or `10.0.0.1`, or several with commas between.
pub(super) fn parse(text: &str) -> Option<Vec<Ipv4Net>> {
    text.split(',').map(one).collect()
}

fn one(text: &str) -> Option<Ipv4Net> {
    let (address, mask) = text.split_once('/').unwrap_or((text, "32"));
    let address: Ipv4Addr = address.parse().ok()?;
    let network = match mask.parse::<u8>() {
        Ok(length) => Ipv4Net::new(address, length).ok()?,
        Err(_) => Ipv4Net::with_netmask(address, mask.parse().ok()?).ok()?,
    };
    Some(network.trunc())
}

/// Reads `10.0.0.1-10.0.0.9`, or one address.
pub(super) fn range(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// The networks that a range consists of.
pub(super) fn of_range((first, last): (Ipv4Addr, Ipv4Addr)) -> Vec<Ipv4Net> {
    Ipv4Subnets::new(first, last, 0).collect()
}

/// The addresses that both have.
pub(super) fn common(one: &[Ipv4Net], other: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let smaller = pairs.filter_map(|(one, other)| {
        if one.contains(other) { Some(*other) } else { other.contains(one).then_some(*one) }
    });
    Ipv4Net::aggregate(&smaller.collect())
}

/// The addresses of `all` that are not in `taken`.
pub(super) fn without(all: &[Ipv4Net], taken: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let mut rest = all.to_vec();
    for taken in taken {
        rest = rest.into_iter().flat_map(|network| less(network, *taken)).collect();
    }
    Ipv4Net::aggregate(&rest)
}

fn less(network: Ipv4Net, taken: Ipv4Net) -> Vec<Ipv4Net> {
    if taken.contains(&network) {
        return Vec::new();
    }
    if !network.contains(&taken) {
        return vec![network];
    }
    // Halve it, keep the half that is apart, and go on with the other.
    let (mut rest, mut left) = (Vec::new(), network);
    while left.prefix_len() < taken.prefix_len() {
        let Ok(halves) = left.subnets(left.prefix_len() + 1) else { break };
        for half in halves {
            if half.contains(&taken) {
                left = half;
            } else {
                rest.push(half);
            }
        }
    }
    rest
}

/// Returns `true` if `whole` has every address of `part`.
pub(super) fn covers(whole: &[Ipv4Net], part: &[Ipv4Net]) -> bool {
    without(part, whole).is_empty()
}

/// The single addresses of networks, if they are not more than `most`.
pub(super) fn addresses(networks: &[Ipv4Net], most: usize) -> Option<Vec<Ipv4Addr>> {
    let mut all = Vec::new();
    for network in networks {
        let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
        if usize::try_from(last - first).ok()?.checked_add(all.len())? >= most {
            return None;
        }
        all.extend((first..=last).map(Ipv4Addr::from));
    }
    Some(all)
}

/// Reads `443` or `8000:8010` (or with a dash, as targets of rules have it).
pub(super) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once([':', '-']).unwrap_or((text, text));
    let first = if first.is_empty() { 0 } else { first.parse().ok()? };
    let last = if last.is_empty() { u16::MAX } else { last.parse().ok()? };
    (first <= last).then_some(first.max(1)..=last)
}

/// The ports that both have.
pub(super) fn common_ports(one: &[RangeInclusive<u16>], other: &[RangeInclusive<u16>]) -> Ports {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let common = pairs.map(|(one, other)| *one.start().max(other.start())..=*one.end().min(other.end()));
    common.filter(|ports| !ports.is_empty()).collect()
}

/// The ports of `all` that are not in `taken`.
pub(super) fn ports_without(all: &[RangeInclusive<u16>], taken: &[RangeInclusive<u16>]) -> Ports {
    let mut rest = all.to_vec();
    for taken in taken {
        let parts = |ports: RangeInclusive<u16>| {
            let (first, last) = (*ports.start(), *ports.end());
            if taken.start() > &last || taken.end() < &first {
                return vec![ports];
            }
            let before = taken.start().checked_sub(1).map(|end| first..=end);
            let after = taken.end().checked_add(1).map(|start| start..=last);
            before.into_iter().chain(after).filter(|part| !part.is_empty()).collect()
        };
        rest = rest.into_iter().flat_map(parts).collect();
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(networks: &[Ipv4Net]) -> Vec<String> {
        networks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn networks_are_read_in_both_forms() {
        assert_eq!(texts(&parse("10.1.2.3/255.255.0.0,10.0.0.1").unwrap()), ["10.1.0.0/16", "10.0.0.1/32"]);
        assert_eq!((parse("10.0.0.0/33"), parse("x"), parse("fd00::/8")), (None, None, None));
        assert_eq!(
            texts(&of_range(range("10.0.0.1-10.0.0.4").unwrap())),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]
        );
    }

    #[test]
    fn what_is_left_has_everything_else() {
        let rest = without(&[EVERYWHERE], &parse("10.0.0.0/8").unwrap());
        assert_eq!(rest.len(), 8);
        assert!(covers(&rest, &parse("11.0.0.0/8,192.168.0.0/16").unwrap()));
        assert!(common(&rest, &parse("10.0.0.0/8").unwrap()).is_empty());
    }

    #[test]
    fn ports_are_ranges() {
        assert_eq!(
            (ports("80"), ports("8000:8010"), ports(":9")),
            (Some(80..=80), Some(8000..=8010), Some(1..=9))
        );
        assert_eq!((ports("9:8"), ports("x"), ports("70000")), (None, None, None));
        assert_eq!(ports_without(&[1..=10], &[3..=4, 10..=20]), [1..=2, 5..=9]);
    }

    fn network() -> impl Strategy<Value = Ipv4Net> {
        (any::<u32>(), 0..=32_u8)
            .prop_map(|(address, length)| Ipv4Net::new(address.into(), length).unwrap().trunc())
    }

    proptest! {
        /// For any networks and any address: it is in the rest if it is in the whole and not in
        /// what is taken, and in what is common if it is in both.
        #[test]
        fn sets_are_sets(all in proptest::collection::vec(network(), 1..4), taken in proptest::collection::vec(network(), 0..4), address in any::<u32>()) {
            let address = Ipv4Addr::from(address);
            let has = |networks: &[Ipv4Net]| networks.iter().any(|network| network.contains(&address));
            prop_assert_eq!(has(&without(&all, &taken)), has(&all) && !has(&taken));
            prop_assert_eq!(has(&common(&all, &taken)), has(&all) && has(&taken));
        }
    }
}

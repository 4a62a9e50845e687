//! The addresses of an answer that count. A name server is not trusted: nothing that it says may
//! lead a rule to where no rule may lead.

use std::net::Ipv4Addr;

use router_common::limits::MAX_TARGETS;

use super::resolver::NO_ADDRESS;
use crate::{config::no_target, daemon::kernel::netlink::OwnAddresses};

/// The part of an answer that counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    /// The addresses, in order: resolvers rotate, and the same answer is to be the same. 32 at
    /// most, as many as a rule has room for, the lowest.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// The addresses that are not used, and why, in words for the operator; `None` if all are.
    pub(super) left_out: Option<String>,
}

/// Chooses from the addresses of an answer those that packets can be sent to. What the
/// configuration may not name, an answer may not either: above all Azure's platform address, which
/// a rule must never lead to. Nor may it name this machine itself, or all machines of one of its
/// networks.
///
/// # Errors
/// When there is none; in words for the operator.
pub(super) fn choose(answer: Vec<Ipv4Addr>, own: &OwnAddresses) -> Result<Choice, String> {
    let mut addresses = answer;
    addresses.sort_unstable();
    addresses.dedup();
    let (mut refused, mut first) = (0, None);
    addresses.retain(|address| match no_target(*address).or_else(|| own.no_target(*address)) {
        None => true,
        Some(why) => {
            refused += 1;
            first.get_or_insert_with(|| format!("its address {address} is {why}"));
            false
        }
    });
    let mut left_out = match (first, refused) {
        (first, ..=1) => first,
        (first, _) => first.map(|first| format!("{first}, and {} more cannot be used either", refused - 1)),
    };
    if addresses.is_empty() {
        return Err(left_out.unwrap_or_else(|| NO_ADDRESS.to_owned()));
    }
    if addresses.len() > MAX_TARGETS {
        let beyond = format!("it has {} addresses: the lowest {MAX_TARGETS} are used", addresses.len());
        left_out = Some(match left_out {
            Some(refused) => format!("{refused}; {beyond}"),
            None => beyond,
        });
        addresses.truncate(MAX_TARGETS);
    }
    Ok(Choice { addresses, left_out })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine in two networks.
    fn own() -> OwnAddresses {
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        OwnAddresses {
            own: set(&["10.0.2.68", "10.0.3.4", "127.0.0.1"]),
            broadcast: set(&["10.0.2.127", "10.0.3.255"]),
        }
    }

    fn chosen(texts: &[&str]) -> Result<Choice, String> {
        choose(texts.iter().map(|text| text.parse().expect("an address")).collect(), &own())
    }

    #[test]
    fn answers_are_held_to_what_the_configuration_may_say() {
        let good = Ipv4Addr::new(203, 0, 113, 10);
        let all_good = Choice { addresses: vec![good], left_out: None };
        assert_eq!(chosen(&["203.0.113.10", "203.0.113.10"]), Ok(all_good));
        for (bad, why) in [
            ("168.63.129.16", "Azure's platform address"),
            ("169.254.169.254", "metadata"),
            ("169.254.0.1", "link-local"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("0.0.0.0", "not an address"),
            ("0.1.2.3", "not an address"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("10.0.2.68", "this machine's own"),
            ("10.0.3.4", "this machine's own"),
            ("10.0.2.127", "broadcast"),
            ("10.0.3.255", "broadcast"),
        ] {
            let problem = chosen(&[bad]).expect_err(bad);
            assert!(
                problem.starts_with(&format!("its address {bad} is ")) && problem.contains(why),
                "{problem}"
            );
            let beside = chosen(&[bad, "203.0.113.10"]).expect("one is good");
            assert_eq!((beside.addresses, beside.left_out), (vec![good], Some(problem)));
        }
        assert_eq!(chosen(&[]), Err("it has no IPv4 address".to_owned()));
        let two = chosen(&["127.0.0.1", "10.0.2.68"]);
        assert_eq!(
            two,
            Err("its address 10.0.2.68 is this machine's own, and 1 more cannot be used either".to_owned())
        );
    }

    #[test]
    fn others_of_a_network_are_addresses_like_any() {
        for good in ["10.0.2.1", "10.0.2.126", "10.0.2.255", "240.0.0.1", "203.0.113.255"] {
            assert!(chosen(&[good]).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_thousand_addresses_are_thirty_two() {
        let many: Vec<Ipv4Addr> = (0..1000_u32).map(|n| Ipv4Addr::from(0x0a09_0000 + n)).collect();
        let Choice { addresses, left_out } = choose(many.clone(), &own()).expect("they are good");
        assert_eq!(
            (addresses.as_slice(), left_out.as_deref()),
            (&many[..32], Some("it has 1000 addresses: the lowest 32 are used"))
        );
    }

    proptest! {
        /// For any answer in any order, the choice has only usable targets.
        #[test]
        fn nothing_that_is_said_leads_where_no_rule_may(
            answer in proptest::collection::vec(prop_oneof![
                any::<u32>().prop_map(Ipv4Addr::from),
                (0..=255_u8).prop_map(|last| Ipv4Addr::new(10, 0, 2, last)),
                (0..=255_u8).prop_map(|first| Ipv4Addr::new(first, 0, 0, 1)),
            ], 0..200),
            turn in any::<prop::sample::Index>(),
        ) {
            let mut turned = answer.clone();
            turned.rotate_left(turn.index(answer.len() + 1).min(answer.len()));
            let chosen = choose(answer.clone(), &own());
            prop_assert_eq!(&choose(turned, &own()), &chosen);
            let (addresses, said) = match chosen {
                Ok(Choice { addresses, left_out }) => (addresses, left_out),
                Err(problem) => (Vec::new(), Some(problem)),
            };
            prop_assert!(addresses.len() <= MAX_TARGETS && addresses.is_sorted());
            for address in &addresses {
                prop_assert!(answer.contains(address));
                prop_assert!(no_target(*address).is_none() && own().no_target(*address).is_none());
            }
            let bad = answer.iter().any(|address| no_target(*address).or(own().no_target(*address)).is_some());
            let different: std::collections::HashSet<_> = answer.iter().collect();
            prop_assert_eq!(said.is_none(), !bad && (1..=MAX_TARGETS).contains(&different.len()));
            prop_assert!(said.as_ref().is_none_or(|said| said.len() <= 200), "{:?}", said);
        }
    }
}

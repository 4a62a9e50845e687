//! Processing that the kernel applies to packets it forwards, and XDP bypasses: IPsec, and the
//! host's firewall.

use std::{fs::read_to_string, io, net::Ipv4Addr, os::fd::AsRawFd as _};

use ipnet::Ipv4Net;

use super::dump::{attributes, dump};
use crate::preflight::facts::{FirewallChain, Hook, IpsecPolicy};

/// The IPsec policies for IPv4 that are not a single socket's.
pub(super) fn ipsec_policies() -> Option<Vec<IpsecPolicy>> {
    /// `XFRM_MSG_GETPOLICY`, include/uapi/linux/xfrm.h.
    const GET_POLICY: u16 = 0x15;
    match dump(libc::NETLINK_XFRM, GET_POLICY, &[]) {
        Ok(policies) => Some(policies.iter().filter_map(|policy| ipsec_policy(policy)).collect()),
        // A kernel without IPsec.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Some(Vec::new()),
        Err(_) => None,
    }
}

/// Reads `struct xfrm_userpolicy_info`, include/uapi/linux/xfrm.h.
fn ipsec_policy(policy: &[u8]) -> Option<IpsecPolicy> {
    const DESTINATION: usize = 0;
    const SOURCE: usize = 16;
    const FAMILY: usize = 40;
    const PREFIXES: usize = 42;
    const DIRECTION: usize = 160;
    let address = |at: usize| policy.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
    let family = u16::from_ne_bytes(*policy.get(FAMILY..)?.first_chunk()?);
    let [to, from] = *policy.get(PREFIXES..)?.first_chunk()?;
    if i32::from(family) != libc::AF_INET {
        return None;
    }
    let direction = match policy.get(DIRECTION)? {
        0 => "in",
        1 => "out",
        2 => "fwd",
        // A socket's own.
        _ => return None,
    };
    Some(IpsecPolicy {
        direction,
        source: Ipv4Net::new(address(SOURCE)?, from).ok()?,
        destination: Ipv4Net::new(address(DESTINATION)?, to).ok()?,
    })
}

/// The chains of the host's firewall that packets pass which the kernel forwards, or sends, and
/// that do something.
pub(super) fn firewall_chains() -> Vec<FirewallChain> {
    let mut chains = nftables_chains().unwrap_or_default();
    chains.extend(iptables_chains());
    chains
}

/// By nf_tables, which is also what `iptables` writes on today's distributions.
fn nftables_chains() -> io::Result<Vec<FirewallChain>> {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`, include/uapi/linux/netfilter/.
    const GET_CHAIN: u16 = 10 << 8 | 4;
    // `struct nfgenmsg`: any family, version 0.
    let chains = dump(libc::NETLINK_NETFILTER, GET_CHAIN, &[0; 4])?;
    Ok(chains.iter().filter_map(|chain| nftables_chain(chain)).collect())
}

fn nftables_chain(chain: &[u8]) -> Option<FirewallChain> {
    // NFTA_CHAIN_*, NFTA_HOOK_HOOKNUM, NFPROTO_* and NF_INET_*, include/uapi/linux/netfilter*.
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const USE: u16 = 6;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    let (header, rest) = chain.split_first_chunk::<4>()?;
    let family = match header[0] {
        1 => "inet",
        2 => "ip",
        _ => return None,
    };
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let text = |value: &[u8]| {
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        String::from_utf8_lossy(&value[..end]).into_owned()
    };
    let (mut table, mut name, mut kind) = (String::new(), String::new(), String::new());
    let (mut hook, mut rules, mut drops) = (None, 0, false);
    for (attribute, value) in attributes(rest) {
        match attribute {
            TABLE => table = text(value),
            NAME => name = text(value),
            TYPE => kind = text(value),
            USE => rules = number(value)?,
            POLICY => drops = number(value)? == 0,
            HOOK => {
                hook = attributes(value)
                    .find(|(attribute, _)| *attribute == HOOK_NUMBER)
                    .and_then(|(_, n)| number(n));
            }
            _ => {}
        }
    }
    let hook = match hook? {
        2 => Hook::Forward,
        3 => Hook::Output,
        _ => return None,
    };
    // Azure's agent keeps other users than root from the platform by a table of this name.
    let is_about_users = table == "security";
    (kind == "filter" && !is_about_users && (rules > 0 || drops)).then(|| FirewallChain {
        name: format!("{family} {table} {name}"),
        hook,
        rules: Some(rules),
        drops,
    })
}

/// By the old iptables, `iptables-legacy`.
fn iptables_chains() -> Vec<FirewallChain> {
    let tables = read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    // Asking for a table that is not in use would create it.
    if !tables.lines().any(|table| table == "filter") {
        return Vec::new();
    }
    let Some(info) = iptables_info("filter") else { return Vec::new() };
    // NF_INET_FORWARD and NF_INET_LOCAL_OUT. A chain without a rule starts with the entry that
    // follows its last rule.
    let chains = [("FORWARD", Hook::Forward, 2), ("OUTPUT", Hook::Output, 3)];
    chains
        .into_iter()
        .filter(|(_, _, hook)| info.starts[*hook] != info.ends[*hook])
        .map(|(name, hook, _)| FirewallChain {
            name: format!("ip filter {name} (iptables-legacy)"),
            hook,
            rules: None,
            drops: false,
        })
        .collect()
}

/// `struct ipt_getinfo`, include/uapi/linux/netfilter_ipv4/ip_tables.h.
#[derive(Default)]
#[repr(C)]
struct IptablesInfo {
    name: [u8; 32],
    valid_hooks: u32,
    starts: [u32; 5],
    ends: [u32; 5],
    entries: u32,
    size: u32,
}

fn iptables_info(table: &str) -> Option<IptablesInfo> {
    /// `IPT_SO_GET_INFO`.
    const GET_INFO: libc::c_int = 64;
    let mut info = IptablesInfo::default();
    for (to, from) in info.name.iter_mut().zip(table.bytes()) {
        *to = from;
    }
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: takes numbers only.
    let socket =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if socket < 0 {
        return None;
    }
    // SAFETY: just opened, and not owned elsewhere.
    let socket = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(socket) };
    // SAFETY: the structure is what the option takes and writes, and has the length that is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            GET_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_match_the_kernel() {
        assert_eq!(size_of::<IptablesInfo>(), 84);
    }

    #[test]
    fn ipsec_policies_are_read() {
        let mut policy = vec![0; 168];
        policy[..4].copy_from_slice(&[11, 0, 0, 0]);
        policy[16..20].copy_from_slice(&[10, 0, 0, 0]);
        policy[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        policy[42..44].copy_from_slice(&[16, 8]);
        policy[160] = 1;
        let read = ipsec_policy(&policy).unwrap();
        assert_eq!(read.to_string(), "out 10.0.0.0/8 to 11.0.0.0/16");
        policy[160] = 4;
        assert_eq!(ipsec_policy(&policy), None, "a socket's");
        assert_eq!(ipsec_policy(&policy[..100]), None, "too short");
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (4 + value.len()) as u16;
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn chain(table: &str, hook: u32, policy: u32, rules: u32) -> Vec<u8> {
        let hook = [attribute(1, &hook.to_be_bytes()), attribute(2, &[0; 4])].concat();
        [
            vec![1, 0, 0, 0],
            attribute(1, format!("{table}\0").as_bytes()),
            attribute(3, b"forward\0"),
            attribute(4 | 0x8000, &hook),
            attribute(5, &policy.to_be_bytes()),
            attribute(7, b"filter\0"),
            attribute(6, &rules.to_be_bytes()),
        ]
        .concat()
    }

    #[test]
    fn chains_with_rules_or_a_drop_policy_are_read() {
        let read = |bytes: &[u8]| nftables_chain(bytes).map(|chain| chain.to_string());
        let expected = |text: &str| Some(text.to_owned());
        assert_eq!(read(&chain("filter", 2, 1, 3)), expected("inet filter forward (3 rules)"));
        assert_eq!(read(&chain("filter", 2, 0, 0)), expected("inet filter forward (0 rules, policy drop)"));
        assert_eq!(read(&chain("filter", 3, 1, 1)), expected("inet filter forward (1 rule)"));
        assert_eq!(read(&chain("filter", 2, 1, 0)), None, "lets everything through");
        assert_eq!(read(&chain("filter", 1, 0, 3)), None, "of what comes in");
        assert_eq!(read(&chain("security", 3, 1, 3)), None);
    }
}

//! Routes to targets, and the policy rules by which they are looked up, by route netlink
//! (rtnetlink(7)).
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has many attributes, of which a few matter here, and gets more with every kernel"
)]

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    link::LinkMessage,
    route::{RouteAddress, RouteAttribute},
    rule::RuleMessage,
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::{
    config::{Config, Host},
    policy_rules::PolicyRule,
    preflight::facts::Way,
    sys::netlink::link_name,
};

/// Asks the kernel by a separate connection.
async fn with_kernel<T>(ask: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let answer = ask(handle).await;
    connection.abort();
    answer
}

/// The IPv4 policy rules.
pub(super) async fn policy_rules() -> Result<Vec<PolicyRule>> {
    with_kernel(async |handle| {
        let rules: Vec<RuleMessage> = handle.rule().get(IpVersion::V4).execute().try_collect().await?;
        Ok(rules.iter().map(PolicyRule::from).collect())
    })
    .await
}

/// The ways to the targets that `config` gives by address; one to which there is none is left out.
pub(super) async fn ways(config: &Config) -> Result<Vec<Way>> {
    let targets: BTreeSet<Ipv4Addr> = config
        .forwards
        .iter()
        .flat_map(|forward| &forward.targets)
        .filter_map(|target| match target.host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        })
        .collect();
    with_kernel(async |handle| {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let names: HashMap<u32, String> =
            links.iter().map(|link| (link.header.index, link_name(link).to_owned())).collect();
        let mut ways = Vec::new();
        for target in targets {
            let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(target, 32).build();
            let Some(Ok(route)) = handle.route().get(question).execute().boxed().next().await else {
                continue;
            };
            let mut interface = None;
            let mut gateway = None;
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => interface = names.get(index).cloned(),
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
                    _ => {}
                }
            }
            ways.extend(interface.map(|interface| Way { target, interface, gateway }));
        }
        Ok(ways)
    })
    .await
}

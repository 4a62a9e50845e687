//! The `Host` of a request: the server that the client believes it is talking to.
//!
//! A page on the web may have its name lead to 127.0.0.1 once it is loaded, and then have a browser
//! read from there what the page's owner could not reach (DNS rebinding). Such a request names the
//! page's host, so requests are answered only where the host is this machine. The port proves
//! nothing: it differs with `ssh -L`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use hyper::{Request, StatusCode, Version, header};

/// The names that this machine goes by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    names: HashSet<String>,
}

impl Names {
    /// Its host name, what its `/etc/hosts` calls the loopback and `own` addresses, and what the
    /// configuration adds.
    pub(crate) fn of_this_machine(configured: &[String], own: &HashSet<Ipv4Addr>) -> Self {
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self::from_files(configured, own, &read("/proc/sys/kernel/hostname"), &read("/etc/hosts"))
    }

    fn from_files(configured: &[String], own: &HashSet<Ipv4Addr>, hostname: &str, hosts: &str) -> Self {
        let is_own = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(address) => address.is_loopback() || own.contains(&address),
            IpAddr::V6(address) => address.is_loopback(),
        };
        let in_hosts = hosts.lines().flat_map(|line| {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let address = words.next().and_then(|word| word.parse().ok());
            address.is_some_and(is_own).then_some(words).into_iter().flatten()
        });
        let hostname = hostname.trim();
        let names = in_hosts
            .chain([hostname, hostname.split('.').next().unwrap_or_default(), "localhost"])
            .chain(configured.iter().map(String::as_str));
        let names = names.map(plain).filter(|name| !name.is_empty() && name != "(none)");
        Self { names: names.collect() }
    }

    /// Returns why a request is not answered, for the client; `None` if it is. `is_own` knows the
    /// addresses of this machine.
    pub(crate) fn refusal<B>(
        &self,
        request: &Request<B>,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Option<(StatusCode, String)> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (first, second) = (hosts.next(), hosts.next());
        // RFC 9112 3.2.
        let bad = |text: &str| Some((StatusCode::BAD_REQUEST, format!("{text}\n")));
        if second.is_some() {
            return bad("the request has more than one Host");
        }
        let Ok(written) = first.map(header::HeaderValue::to_str).transpose() else {
            return bad("the request's Host is no host");
        };
        let in_target = request.uri().authority().map(hyper::http::uri::Authority::as_str);
        if written.is_none() && in_target.is_none() {
            // Before HTTP/1.1 there was none. A browser always sends one.
            return match request.version() {
                Version::HTTP_09 | Version::HTTP_10 => None,
                _ => bad("the request has no Host"),
            };
        }
        let is_this_machine = |host: &str| {
            let host = without_port(host);
            let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
            match address.parse::<IpAddr>() {
                Ok(address) => is_own(address.to_canonical()) || self.names.contains(&plain(host)),
                Err(_) => self.names.contains(&plain(host)),
            }
        };
        let foreign = [in_target, written].into_iter().flatten().find(|host| !is_this_machine(host))?;
        let foreign: String = foreign.chars().filter(char::is_ascii_graphic).take(100).collect();
        Some((
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "\"{foreign}\" is no name or address of this machine that pls-router knows\n  fix: ask for it by its \
                 address, or add the name to `hosts` of [admin]\n"
            ),
        ))
    }
}

/// A host without its port.
fn without_port(host: &str) -> &str {
    let is_port = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    match host.rsplit_once(':') {
        Some((before, port)) if is_port(port) => before,
        Some(_) | None => host,
    }
}

/// A name as it is compared.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);

    fn names() -> Names {
        let hosts = "127.0.0.1 localhost loop # self\n::1 ip6-localhost\n10.0.2.68\tRouter.Internal\n\
                     10.0.2.99 other\n# 127.0.0.1 nothing\nnonsense\n\n";
        Names::from_files(
            &["metrics.example.com".to_owned()],
            &HashSet::from([OWN]),
            "vm1.corp.example\n",
            hosts,
        )
    }

    fn asked(version: Version, target: &str, hosts: &[&str]) -> Option<u16> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let is_own = |address: IpAddr| address.is_loopback() || address == IpAddr::V4(OWN);
        let refusal = names().refusal(&request.body(()).expect("a request"), is_own);
        refusal.map(|(status, _)| status.as_u16())
    }

    #[test]
    fn who_asks_for_this_machine_is_answered() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "127.9.9.9",
            "localhost",
            "LOCALHOST.:19090",
            "[::1]",
            "[::1]:9090",
            "[::ffff:127.0.0.1]",
            "10.0.2.68:9090",
            "vm1",
            "vm1.corp.example:9090",
            "router.internal",
            "loop",
            "metrics.example.com",
        ] {
            assert_eq!(asked(Version::HTTP_11, "/metrics", &[host]), None, "{host}");
        }
        assert_eq!(asked(Version::HTTP_11, "http://localhost:9090/metrics", &["localhost:9090"]), None);
        assert_eq!(asked(Version::HTTP_10, "/metrics", &[]), None);
    }

    #[test]
    fn who_asks_for_another_is_not() {
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "10.0.2.99",
            "other",
            "self",
            "nothing",
            "example.com",
            "metrics.example.com.evil.example",
            "0.0.0.0",
            "[::2]",
            "[::1].evil.example",
            "",
            ":9090",
            "localhost:evil",
        ] {
            assert_eq!(asked(Version::HTTP_11, "/metrics", &[host]), Some(421), "{host:?}");
            assert_eq!(asked(Version::HTTP_10, "/metrics", &[host]), Some(421), "{host:?}");
        }
        // Whichever of the two a proxy looks at.
        assert_eq!(asked(Version::HTTP_11, "http://evil.example/metrics", &["localhost"]), Some(421));
        assert_eq!(asked(Version::HTTP_11, "http://localhost/metrics", &["evil.example"]), Some(421));
        assert_eq!(asked(Version::HTTP_11, "/metrics", &[]), Some(400));
        assert_eq!(asked(Version::HTTP_11, "/metrics", &["localhost", "evil.example"]), Some(400));
        assert_eq!(asked(Version::HTTP_11, "/metrics", &["h\u{f6}st"]), Some(400));
    }
}

//! Every table and key that a configuration may have, for "unknown key" errors and for the test that holds
//! `deploy/config.toml` to them.

/// One table of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct SectionSchema {
    /// Its name.
    pub name: &'static str,
    /// Whether it is written `[[name]]` and may come several times.
    pub repeated: bool,
    /// Its keys.
    pub keys: &'static [&'static str],
}

/// `[interfaces]`
pub(super) const INTERFACES: SectionSchema =
    SectionSchema { name: "interfaces", repeated: false, keys: &["pls", "firewall", "mode"] };
/// `[[forward]]`
pub(super) const FORWARD: SectionSchema = SectionSchema {
    name: "forward",
    repeated: true,
    keys: &["name", "protocol", "listen", "target", "sources"],
};
/// `[[masquerade]]`
pub(super) const MASQUERADE: SectionSchema =
    SectionSchema { name: "masquerade", repeated: true, keys: &["name", "sources", "destinations"] };
/// `[snat]`
pub(super) const SNAT: SectionSchema =
    SectionSchema { name: "snat", repeated: false, keys: &["addresses", "ports"] };
/// `[health]`
pub(super) const HEALTH: SectionSchema = SectionSchema { name: "health", repeated: false, keys: &["listen"] };
/// `[admin]`
pub(super) const ADMIN: SectionSchema =
    SectionSchema { name: "admin", repeated: false, keys: &["listen", "socket", "pins"] };
/// `[limits]`
pub(super) const LIMITS: SectionSchema = SectionSchema { name: "limits", repeated: false, keys: &["flows"] };
/// `[timeouts]`
pub(super) const TIMEOUTS: SectionSchema = SectionSchema {
    name: "timeouts",
    repeated: false,
    keys: &["tcp_established", "tcp_transitory", "udp", "icmp"],
};

/// All tables, in the order of the sample file.
pub const SECTIONS: &[SectionSchema] =
    &[INTERFACES, FORWARD, MASQUERADE, SNAT, HEALTH, ADMIN, LIMITS, TIMEOUTS];

impl SectionSchema {
    /// As it is written in the file: `[snat]`, `[[forward]]`.
    #[must_use]
    pub fn title(&self) -> String {
        if self.repeated { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

//! Every table and key that a configuration may have, for "unknown key" errors and for the test
//! that holds `deploy/config.toml` to them.

/// One table of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct SectionSchema {
    /// Its name.
    pub name: &'static str,
    /// How it is written.
    pub form: Form,
    /// Its keys.
    pub keys: &'static [&'static str],
}

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[name]`
    Single,
    /// `[[name]]`: it may come several times.
    Repeated,
    /// `name = { .. }` in another table.
    Inline,
}

/// `[interfaces]`
pub(super) const INTERFACES: SectionSchema =
    SectionSchema { name: "interfaces", form: Form::Single, keys: &["pls", "firewall", "mode"] };
/// `[[forward]]`
pub(super) const FORWARD: SectionSchema = SectionSchema {
    name: "forward",
    form: Form::Repeated,
    keys: &["name", "protocol", "listen", "target", "sources", "mss", "timeouts"],
};
/// `[[masquerade]]`
pub(super) const MASQUERADE: SectionSchema = SectionSchema {
    name: "masquerade",
    form: Form::Repeated,
    keys: &["name", "sources", "destinations", "mss", "timeouts"],
};
/// `[snat]`
pub(super) const SNAT: SectionSchema =
    SectionSchema { name: "snat", form: Form::Single, keys: &["addresses", "ports", "exhausted"] };
/// `[answers]`
pub(super) const ANSWERS: SectionSchema =
    SectionSchema { name: "answers", form: Form::Single, keys: &["unreachable"] };
/// `[local]`
pub(super) const LOCAL: SectionSchema =
    SectionSchema { name: "local", form: Form::Single, keys: &["allow", "others"] };
/// `[health]`
pub(super) const HEALTH: SectionSchema =
    SectionSchema { name: "health", form: Form::Single, keys: &["listen", "from"] };
/// `[admin]`
pub(super) const ADMIN: SectionSchema =
    SectionSchema { name: "admin", form: Form::Single, keys: &["listen", "hosts", "socket", "pins"] };
/// `[limits]`
pub(super) const LIMITS: SectionSchema =
    SectionSchema { name: "limits", form: Form::Single, keys: &["flows", "half_open_per_source"] };
/// `[timeouts]`
pub(super) const TIMEOUTS: SectionSchema = SectionSchema {
    name: "timeouts",
    form: Form::Single,
    keys: &["tcp_established", "tcp_transitory", "udp", "udp_unreplied", "icmp"],
};
/// `timeouts` of a rule: the same keys.
pub(super) const RULE_TIMEOUTS: SectionSchema = SectionSchema { form: Form::Inline, ..TIMEOUTS };

/// All tables, in the order of the sample file.
pub const SECTIONS: &[SectionSchema] =
    &[INTERFACES, FORWARD, MASQUERADE, SNAT, ANSWERS, LOCAL, HEALTH, ADMIN, LIMITS, TIMEOUTS];

impl SectionSchema {
    /// As it is written in the file: `[snat]`, `[[forward]]`, or `timeouts` in a rule.
    #[must_use]
    pub fn title(&self) -> String {
        match self.form {
            Form::Single => format!("[{}]", self.name),
            Form::Repeated => format!("[[{}]]", self.name),
            Form::Inline => format!("`{}`", self.name),
        }
    }

    /// What to type for it.
    pub(super) fn form(&self) -> String {
        match self.form {
            Form::Single | Form::Repeated => self.title(),
            Form::Inline => format!("{} = {{ {} = ... }}", self.name, self.keys.first().unwrap_or(&"")),
        }
    }
}
